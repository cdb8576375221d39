//! Every way to tamper with the log is found, and named; what a killed writer leaves is not taken for tampering.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

use super::super::reference::Scope;
use super::super::root_key::RootKey;
use super::record::ChainedRecord;
use super::*;
use crate::service::Principal;

/// A log of records; its files are closed when they are 2 KiB long, which is after three of them.
struct Rig {
    dir: tempfile::TempDir,
    root: Arc<RootKey>,
}

impl Rig {
    fn new() -> Self {
        let root = RootKey::init(|key| {
            key.fill(7);
            Ok::<(), sealblk_keymem::KeyMemError>(())
        });
        let dir = tempfile::tempdir().expect("a temporary directory");
        Self { dir, root: Arc::new(root.expect("locked memory")) }
    }

    fn with(records: usize) -> Self {
        let rig = Self::new();
        (0..records).for_each(|number| rig.append(number));
        rig
    }

    fn trail(&self) -> AuditTrail {
        AuditTrail::closing_at(self.dir.path(), 2048)
    }

    fn append(&self, number: usize) {
        self.trail().prepare().expect("there is room");
        self.trail().append(&event(number), Some(&self.root)).expect("appended");
    }

    fn append_unsealed(&self, number: usize) {
        self.trail().append(&event(number), None).expect("appended");
    }

    fn report(&self) -> AuditReport {
        self.trail().verify(self.dir.path(), 1, Some(&self.root)).expect("verified")
    }

    fn findings(&self) -> Vec<AuditFinding> {
        self.report().findings
    }

    fn files(&self) -> Vec<PathBuf> {
        files(self.dir.path()).expect("listed")
    }

    /// All lines with the file each is in.
    fn lines(&self) -> Vec<(PathBuf, String)> {
        let lines = |path: PathBuf| {
            let text = fs::read_to_string(&path).expect("a file of the log");
            text.lines().map(|line| (path.clone(), line.to_owned())).collect::<Vec<_>>()
        };
        self.files().into_iter().flat_map(lines).collect()
    }

    /// Puts other lines in the place of those there are, each in its file.
    fn rewrite(&self, lines: &[(PathBuf, String)]) {
        for file in self.files() {
            let text: String =
                lines.iter().filter(|(path, _)| *path == file).map(|(_, line)| format!("{line}\n")).collect();
            fs::write(file, text).expect("rewritten");
        }
    }

    fn current(&self) -> PathBuf {
        self.dir.path().join(CURRENT)
    }

    fn names(&self) -> Vec<String> {
        let name = |record: Value| record["eventName"].as_str().expect("a name").to_owned();
        AuditRecords::of(self.dir.path()).expect("listed").map(|record| name(record.expect("read"))).collect()
    }
}

fn event(number: usize) -> Event {
    let caller = Principal("uid:0".to_owned());
    Event::new("Decrypt", &caller, &Scope::default(), json!({ "number": number }))
}

/// Which record a finding is about.
fn names_record(finding: &AuditFinding, sequence: u64) -> bool {
    match finding {
        AuditFinding::Missing { from, to } => (*from..=*to).contains(&sequence),
        AuditFinding::Altered { sequence: at, .. } | AuditFinding::OutOfOrder { sequence: at, .. } => {
            *at == sequence
        }
        _ => false,
    }
}

#[test]
fn a_log_that_nobody_touched_is_clean() {
    for records in [0, 1, 2, 25] {
        let rig = Rig::with(records);
        let report = rig.report();
        assert!(report.is_clean(), "{:?}", report.findings);
        assert_eq!(report.records, u64::try_from(records).expect("few"));
        assert_eq!(report.last_sequence, report.records);
        assert_eq!(report.sealed_sequence, (records > 0).then_some(report.records));
    }
}

#[test]
fn the_chain_goes_on_from_file_to_file() {
    let rig = Rig::with(25);
    assert!(rig.files().len() > 4, "{:?}", rig.files());
    let report = rig.report();
    assert_eq!((report.records, report.findings), (25, Vec::new()));
    // Killed between closing a file and making the next.
    let last = rig.report().last_sequence;
    fs::rename(rig.current(), rig.dir.path().join(closed_name(last))).expect("renamed");
    assert!(rig.report().is_clean());
    rig.append(26);
    assert_eq!(rig.report().records, 26);
    assert!(rig.report().is_clean());
}

#[test]
fn files_that_were_moved_away_are_missing_unless_that_is_said() {
    let rig = Rig::with(25);
    let oldest = rig.files().remove(0);
    let kept = fs::read_to_string(&oldest).expect("read").lines().count();
    fs::remove_file(oldest).expect("moved away");
    let to = u64::try_from(kept).expect("few");
    assert_eq!(rig.findings(), [AuditFinding::Missing { from: 1, to }]);
    let report = rig.trail().verify(rig.dir.path(), to + 1, Some(&rig.root)).expect("verified");
    assert!(report.is_clean(), "{:?}", report.findings);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_record_that_is_taken_out_is_named(which: Index) {
        let rig = Rig::with(12);
        let mut lines = rig.lines();
        let index = which.index(lines.len());
        lines.remove(index);
        rig.rewrite(&lines);
        let sequence = u64::try_from(index + 1).expect("few");
        prop_assert_eq!(rig.findings(), [AuditFinding::Missing { from: sequence, to: sequence }]);
        // The next writer does not make it good.
        rig.append(13);
        prop_assert!(rig.findings().iter().any(|finding| names_record(finding, sequence)));
    }

    #[test]
    fn a_record_of_which_any_byte_is_changed_is_named(which: Index, byte: Index, change in 1_u8..128) {
        let rig = Rig::with(12);
        let lines = rig.lines();
        let index = which.index(lines.len());
        let sequence = u64::try_from(index + 1).expect("few");
        let (file, line) = &lines[index];
        let mut bytes = fs::read(file).expect("read");
        let start = bytes.windows(line.len()).position(|at| at == line.as_bytes()).expect("it is there");
        bytes[start + byte.index(line.len())] ^= change;
        fs::write(file, bytes).expect("written");
        let findings = rig.findings();
        prop_assert!(findings.iter().any(|finding| names_record(finding, sequence)), "{findings:?}");
        rig.append(13);
        let findings = rig.findings();
        prop_assert!(findings.iter().any(|finding| names_record(finding, sequence)), "{findings:?}");
    }

    #[test]
    fn a_record_that_is_written_anew_with_its_own_hash_is_named(which: Index, then_next: bool) {
        let rig = Rig::with(12);
        let mut lines = rig.lines();
        let index = which.index(lines.len());
        let sequence = u64::try_from(index + 1).expect("few");
        let before = ChainedRecord::parse(lines[index].1.as_bytes()).expect("a record").previous;
        let mut link = record::Link { sequence: sequence - 1, hash: before };
        let mut forged = Vec::new();
        link.append(&event(99), &mut forged).expect("forged");
        lines[index].1 = String::from_utf8(forged).expect("text").trim_end().to_owned();
        rig.rewrite(&lines);
        if then_next {
            rig.append(13);
        }
        let findings = rig.findings();
        prop_assert!(findings.iter().any(|finding| names_record(finding, sequence)), "{findings:?}");
    }

    #[test]
    fn two_records_that_change_places_are_named(first: Index, second: Index) {
        let rig = Rig::with(12);
        let mut lines = rig.lines();
        let (one, other) = (first.index(lines.len()), second.index(lines.len()));
        prop_assume!(one != other);
        let moved = lines[one].1.clone();
        lines[one].1 = std::mem::replace(&mut lines[other].1, moved);
        rig.rewrite(&lines);
        let late = u64::try_from(one.min(other) + 1).expect("few");
        let findings = rig.findings();
        prop_assert!(findings.iter().any(|finding| names_record(finding, late)), "{findings:?}");
    }

    #[test]
    fn a_log_that_is_cut_off_anywhere_is_named(at: Index, then_next: bool) {
        let rig = Rig::with(2);
        let bytes = fs::read(rig.current()).expect("read");
        let keep = at.index(bytes.len() - 1);
        let whole = bytes[..keep].iter().filter(|byte| **byte == b'\n').count();
        // Cut only before the last line's end, both records are whole.
        fs::write(rig.current(), &bytes[..keep]).expect("cut off");
        if then_next {
            rig.append(3);
        }
        let findings = rig.findings();
        for sequence in whole + 1..=2 {
            let sequence = u64::try_from(sequence).expect("few");
            let missing_newline_only = keep + 1 == bytes.len() && sequence == 2;
            prop_assert!(
                missing_newline_only || findings.iter().any(|finding| names_record(finding, sequence)),
                "{keep} bytes left: {findings:?}"
            );
        }
    }
}

#[test]
fn records_missing_at_the_end_are_named_even_if_the_anchor_is_mended() {
    let rig = Rig::with(6);
    let lines = rig.lines();
    let sealed = fs::read(rig.dir.path().join("audit.json")).expect("read");
    rig.rewrite(&lines[..4]);
    assert_eq!(rig.findings(), [AuditFinding::Missing { from: 5, to: 6 }]);
    // Without the root key the end can be moved in the anchor, but not in the seal.
    let shorter = ChainedRecord::parse(lines[3].1.as_bytes()).expect("a record").link;
    let forge = |before: Option<&anchor::Anchor>| {
        anchor::Anchor::at(shorter, before, None)
            .and_then(|anchor| anchor.store(rig.dir.path()))
            .expect("stored");
    };
    let anchor::Found::Whole(before) = anchor::Anchor::load(rig.dir.path()).expect("loaded") else {
        panic!("the anchor is whole")
    };
    forge(Some(&before));
    assert_eq!(rig.findings(), [AuditFinding::Missing { from: 5, to: 6 }]);
    forge(None);
    assert_eq!(rig.findings(), [AuditFinding::SealMissing]);
    fs::remove_file(rig.dir.path().join("audit.json")).expect("removed");
    assert_eq!(rig.findings(), [AuditFinding::AnchorLost { at: None }]);
    fs::write(rig.dir.path().join("audit.json"), sealed).expect("put back");
    rig.rewrite(&lines[..4]);
    assert_eq!(rig.findings(), [AuditFinding::Missing { from: 5, to: 6 }]);
}

#[test]
fn a_log_that_is_forged_from_the_beginning_has_no_seal_of_ours() {
    let rig = Rig::with(5);
    let forger = Rig::new();
    let other = RootKey::init(|key| {
        key.fill(8);
        Ok::<(), sealblk_keymem::KeyMemError>(())
    });
    let other = other.expect("locked memory");
    for number in 0..5 {
        forger.trail().prepare().expect("there is room");
        forger.trail().append(&event(number + 50), Some(&other)).expect("appended");
    }
    for name in fs::read_dir(rig.dir.path()).expect("listed") {
        fs::remove_file(name.expect("an entry").path()).expect("removed");
    }
    for file in fs::read_dir(forger.dir.path()).expect("listed") {
        let file = file.expect("an entry");
        fs::copy(file.path(), rig.dir.path().join(file.file_name())).expect("copied");
    }
    assert_eq!(rig.findings(), [AuditFinding::SealForged { sequence: 5 }]);
}

#[test]
fn what_a_killed_writer_leaves_is_recovered_and_no_finding() {
    let rig = Rig::with(4);
    let anchor = fs::read(rig.dir.path().join("audit.json")).expect("read");
    rig.append(5);
    // Killed after the line and before its anchor.
    fs::write(rig.dir.path().join("audit.json"), &anchor).expect("put back");
    assert!(rig.report().is_clean(), "{:?}", rig.findings());
    rig.append(6);
    let report = rig.report();
    assert!(report.is_clean() && report.records == 6, "{report:?}");
    // Killed within a line.
    let torn = [fs::read(rig.current()).expect("read"), b"{\"eventVersion\":\"1.0".to_vec()].concat();
    fs::write(rig.current(), torn).expect("torn");
    assert!(rig.report().is_clean(), "{:?}", rig.findings());
    rig.append(7);
    let report = rig.report();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.records, report.recovered), (8, 1));
    assert_eq!(rig.names()[6..], ["AuditLogRecovered", "Decrypt"]);
}

#[test]
fn lines_added_behind_the_anchor_are_found_also_after_the_next_writer() {
    let rig = Rig::with(2);
    let mut link = ChainedRecord::parse(rig.lines()[1].1.as_bytes()).expect("a record").link;
    let mut text = fs::read(rig.current()).expect("read");
    for number in 0..3 {
        link.append(&event(number), &mut text).expect("forged");
    }
    fs::write(rig.current(), text).expect("written");
    assert_eq!(rig.findings(), [AuditFinding::Unanchored { from: 3, to: 5 }]);
    rig.append(6);
    assert_eq!(rig.findings(), [AuditFinding::Unanchored { from: 3, to: 5 }]);
}

#[test]
fn a_lost_anchor_is_found_also_after_the_next_writer() {
    let rig = Rig::with(2);
    fs::remove_file(rig.dir.path().join("audit.json")).expect("removed");
    rig.append(3);
    assert_eq!(rig.findings(), [AuditFinding::AnchorLost { at: Some(3) }]);
}

#[test]
fn a_call_without_the_root_key_keeps_the_seal_that_was() {
    let rig = Rig::with(2);
    rig.append_unsealed(3);
    let report = rig.report();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!((report.last_sequence, report.sealed_sequence), (3, Some(2)));
    rig.append(4);
    assert_eq!(rig.report().sealed_sequence, Some(4));
}

#[test]
fn a_log_from_before_the_chain_is_covered_as_a_whole() {
    let rig = Rig::new();
    let unchained = "{\"eventName\":\"CreateKey\"}\n{\"eventName\":\"ListKeys\"}\n";
    fs::write(rig.current(), unchained).expect("written");
    assert!(rig.report().is_clean(), "before anything is chained there is nothing to judge");
    rig.append(1);
    assert_eq!(rig.names(), ["CreateKey", "ListKeys", "AuditLogBegun", "Decrypt"]);
    let report = rig.report();
    assert!(report.is_clean() && report.follows_unchained_log, "{report:?}");
    let text = fs::read_to_string(rig.current()).expect("read").replacen("ListKeys", "ListKeyz", 1);
    fs::write(rig.current(), text).expect("altered");
    assert_eq!(rig.findings(), [AuditFinding::BeginningAltered]);
}

#[test]
fn no_bytes_make_verification_fail() {
    let rig = Rig::with(3);
    for bytes in [&[0_u8; 3000][..], b"\n\n\n", b"{}\n", &[0xff; 100], &vec![b'x'; 3 << 20]] {
        let text = [fs::read(rig.current()).expect("read"), bytes.to_vec(), b"\n".to_vec()].concat();
        fs::write(rig.current(), text).expect("written");
        assert!(!rig.report().is_clean());
        rig.append(4);
        assert!(!rig.report().is_clean());
    }
}
