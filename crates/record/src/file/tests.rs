//! Stores that end early, and what is found afterwards.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::*;
use crate::document::Fields;

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Sample {
    size: u64,
    tags: BTreeMap<String, String>,
}

impl Document for Sample {
    const FORMAT: &'static str = "sealblk-sample";
    const VERSION: u32 = 2;

    fn migrate(version: u32, mut fields: Fields) -> Option<Fields> {
        let tags = serde_json::Value::Object(Fields::new());
        (version == 1).then(|| fields.insert("Tags".into(), tags))?;
        Some(fields)
    }
}

fn sample(size: u64) -> Sample {
    Sample { size, tags: BTreeMap::from([("Name".into(), "a \"quoted\" näme".into())]) }
}

fn record() -> (TempDir, RecordFile<Sample>) {
    let dir = tempfile::tempdir().expect("a directory");
    let record = RecordFile::new(dir.path().join("sample.json"));
    (dir, record)
}

fn names(dir: &TempDir) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("the directory");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort_unstable();
    names
}

fn store_until(record: &RecordFile<Sample>, document: &Sample, last: Step) {
    let stop = |step| if step == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
    record.store_in_steps(document, stop).expect("no error before the end");
}

/// A whole record with the checksum that belongs to it.
fn with_checksum(text: &str) -> String {
    let path = tempfile::NamedTempFile::new().expect("a file");
    fs::write(&path, text).expect("written");
    let sum = std::process::Command::new("sha256sum").arg(path.path()).output().expect("sha256sum");
    let sum = String::from_utf8(sum.stdout).expect("text");
    format!("{text}  \"Checksum\": \"sha256:{}\"\n}}\n", sum.split(' ').next().expect("a sum"))
}

#[test]
fn stored_record_is_the_documented_text_and_loads_again() {
    let (dir, record) = record();
    assert!(matches!(record.load(), Err(RecordError::Missing { .. })));
    assert!(!record.exists().expect("looked"));
    record.store(&sample(7)).expect("stored");
    assert!(record.exists().expect("looked"));
    assert_eq!(record.load().expect("loaded"), sample(7));
    let expected = with_checksum(
        "{\n  \"Format\": \"sealblk-sample\",\n  \"Version\": 2,\n  \"Size\": 7,\n  \"Tags\": {\n    \"Name\": \"a \\\"quoted\\\" näme\"\n  },\n",
    );
    assert_eq!(fs::read_to_string(record.path()).expect("text"), expected);
    assert_eq!(fs::metadata(record.path()).expect("there").permissions().mode() & 0o7777, 0o600);
    assert_eq!(names(&dir), ["sample.json"]);
}

#[test]
fn store_that_ends_after_any_step_leaves_the_old_or_the_new_record_whole() {
    use Step::{DirectorySynced, LeftoversRemoved, PreviousKept, Renamed, TemporaryCreated, TemporarySynced};
    let steps = [LeftoversRemoved, TemporaryCreated, TemporarySynced, PreviousKept, Renamed, DirectorySynced];
    for (first_end, second_end) in steps.iter().flat_map(|first| steps.map(|second| (*first, second))) {
        let (dir, record) = record();
        record.store(&sample(1)).expect("stored");
        record.store(&sample(2)).expect("stored");
        let mut current = 2;
        for (size, end) in [(3, first_end), (4, second_end)] {
            store_until(&record, &sample(size), end);
            if matches!(end, Renamed | DirectorySynced) {
                current = size;
            }
            assert_eq!(record.load().expect("whole"), sample(current), "{first_end:?}, {second_end:?}");
            let previous = RecordFile::<Sample>::new(record.previous_path());
            assert!(previous.load().expect("whole").size <= current);
        }
        record.store(&sample(5)).expect("stored");
        assert_eq!(record.load().expect("whole"), sample(5));
        let previous = RecordFile::<Sample>::new(record.previous_path());
        assert_eq!(previous.load().expect("whole"), sample(current), "{first_end:?}, {second_end:?}");
        assert_eq!(names(&dir), ["sample.json", "sample.json.prev"], "{first_end:?}, {second_end:?}");
    }
}

#[test]
fn first_store_that_ends_early_leaves_no_record() {
    for end in [Step::TemporaryCreated, Step::TemporarySynced, Step::PreviousKept] {
        let (_dir, record) = record();
        store_until(&record, &sample(1), end);
        assert!(matches!(record.load(), Err(RecordError::Missing { .. })), "{end:?}");
    }
}

#[test]
fn leftovers_of_this_record_are_removed_and_those_of_others_stay() {
    let (dir, record) = record();
    let other = RecordFile::<Sample>::new(dir.path().join("other.json"));
    store_until(&record, &sample(1), Step::TemporarySynced);
    store_until(&other, &sample(1), Step::TemporarySynced);
    record.store(&sample(2)).expect("stored");
    let names = names(&dir);
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(names.iter().any(|name| name.starts_with(".other.json~")), "{names:?}");
}

#[test]
fn damage_is_reported_with_its_place_and_the_previous_generation() {
    let (_dir, record) = record();
    record.store(&sample(1)).expect("stored");
    record.store(&sample(2)).expect("stored");
    let text = fs::read_to_string(record.path()).expect("text");
    fs::write(record.path(), text.replace("\"Size\": 2", "\"Size\": ?")).expect("written");
    let error = record.load().expect_err("damaged");
    let previous = record.previous_path();
    assert!(
        matches!(&error, RecordError::Damaged { line: 4, column: 11, previous: Some(p), .. } if *p == previous),
        "{error:?}"
    );
    let shown = error.to_string();
    assert!(shown.contains("line 4, column 11") && shown.contains(".json.prev"), "{shown}");
    // A digit changed for another one is still JSON, and a number is a number.
    fs::write(record.path(), text.replace("\"Size\": 2", "\"Size\": 3")).expect("written");
    assert!(matches!(record.load(), Err(RecordError::Damaged { line: 0, previous: Some(_), .. })));
    // A damaged record does not replace the whole one beside it.
    record.store(&sample(4)).expect("stored");
    let previous = RecordFile::<Sample>::new(previous);
    assert_eq!(previous.load().expect("whole"), sample(1));
    fs::write(previous.path(), "{").expect("written");
    fs::write(record.path(), "{").expect("written");
    assert!(matches!(record.load(), Err(RecordError::Damaged { previous: None, .. })));
}

#[test]
fn another_format_is_not_read() {
    let (_dir, record) = record();
    fs::write(record.path(), r#"{"Format": "sealblk-other", "Version": 2, "Size": 1}"#).expect("written");
    let found_other = |found: &Option<String>| found.as_deref() == Some("sealblk-other");
    assert!(matches!(record.load(), Err(RecordError::WrongFormat { found, .. }) if found_other(&found)));
    fs::write(record.path(), r#"{"Size": 1}"#).expect("written");
    assert!(matches!(record.load(), Err(RecordError::WrongFormat { found: None, .. })));
}

#[test]
fn older_version_is_migrated_and_unknown_ones_are_refused() {
    let (_dir, record) = record();
    let write = |version: &str, rest: &str| {
        let text = format!("{{\n  \"Format\": \"sealblk-sample\",\n  \"Version\": {version},\n{rest}");
        fs::write(record.path(), with_checksum(&text)).expect("written");
        record.load()
    };
    assert_eq!(write("1", "  \"Size\": 9,\n").expect("migrated"), Sample { size: 9, tags: BTreeMap::new() });
    for (version, number) in [("0", 0), ("3", 3), ("4294967296", 1 << 32)] {
        let error = write(version, "  \"Size\": 9,\n").expect_err("unknown");
        assert!(
            matches!(error, RecordError::UnknownVersion { found, supported: 2, .. } if found == number),
            "{error:?}"
        );
    }
    for version in ["-1", "\"2\"", "2.0"] {
        assert!(matches!(write(version, "  \"Size\": 9,\n"), Err(RecordError::Damaged { .. })), "{version}");
    }
}

#[test]
fn unknown_member_is_damage_that_is_named() {
    let (_dir, record) = record();
    let text = "{\n  \"Format\": \"sealblk-sample\",\n  \"Version\": 2,\n  \"Size\": 1,\n  \"Tags\": {},\n  \"Compression\": true,\n";
    fs::write(record.path(), with_checksum(text)).expect("written");
    let error = record.load().expect_err("a member that may matter");
    assert!(error.to_string().contains("Compression"), "{error}");
}

#[test]
fn too_large_is_refused_in_both_directions() {
    let (dir, record) = record();
    let mut large = sample(1);
    large.tags.insert("Filler".into(), "x".repeat(17 << 20));
    assert!(matches!(record.store(&large), Err(RecordError::TooLarge { .. })));
    assert_eq!(names(&dir), [""; 0]);
    let file = File::create(record.path()).expect("created");
    file.set_len(1 << 40).expect("a sparse terabyte");
    assert!(matches!(record.load(), Err(RecordError::TooLarge { .. })));
}

#[test]
fn document_with_a_member_of_the_records_own_is_not_stored() {
    #[derive(Debug, Deserialize, Serialize)]
    struct Clash {
        #[serde(rename = "Version")]
        version: u32,
    }
    impl Document for Clash {
        const FORMAT: &'static str = "sealblk-clash";
        const VERSION: u32 = 1;
    }
    let (dir, _) = record();
    let record = RecordFile::new(dir.path().join("clash.json"));
    assert!(matches!(record.store(&Clash { version: 1 }), Err(RecordError::Unstorable { .. })));
    assert_eq!(names(&dir), [""; 0]);
}

#[test]
fn removed_record_leaves_nothing_and_its_past_is_not_that_of_the_next() {
    let (dir, record) = record();
    record.store(&sample(1)).expect("stored");
    record.store(&sample(2)).expect("stored");
    store_until(&record, &sample(3), Step::TemporarySynced);
    record.remove().expect("removed");
    assert_eq!(names(&dir), [""; 0]);
    assert!(matches!(record.remove(), Err(RecordError::Missing { .. })));
    fs::write(record.previous_path(), "left by a crash in the midst of a removal").expect("written");
    record.store(&sample(4)).expect("stored");
    assert_eq!(names(&dir), ["sample.json"]);
}
