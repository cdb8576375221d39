//! Reading the log as a judge: what is missing, altered, out of order, forged or cut off, and which record it is.
//!
//! What it cannot find: a key store put back as a whole, log and anchor, to an earlier moment (compare with a number and
//! hash noted elsewhere); records forged since the last seal by somebody who may write the directory and has no root key.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::super::hex;
use super::super::root_key::RootKey;
use super::anchor::{Anchor, Found};
use super::record::{ChainedRecord, GENESIS, Hash};
use super::trail::AuditTrail;
use super::{files, next_line};

/// Findings that are told one by one; further ones are counted.
const FINDINGS_MAX: usize = 1000;

/// Where a line is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuditPlace {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: u64,
}

/// Something that no crash leaves behind.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, thiserror::Error)]
#[serde(tag = "Finding", rename_all_fields = "PascalCase")]
#[allow(missing_docs, reason = "each field is in its variant's message")]
pub enum AuditFinding {
    /// Records that are not there.
    #[error("records {from} to {to} are missing")]
    Missing { from: u64, to: u64 },
    /// A record that is not as it was written.
    #[error("record {sequence} has been altered{}", told(place.as_ref()))]
    Altered { sequence: u64, place: Option<AuditPlace> },
    /// A line that is not a record, where none should be.
    #[error("there is a line that is not a record{}", told(Some(place)))]
    Foreign { place: AuditPlace },
    /// A record behind a later one, or a second time.
    #[error("record {sequence} is out of order or there twice{}", told(Some(place)))]
    OutOfOrder { sequence: u64, place: AuditPlace },
    /// Records that the anchor does not know, more than a killed writer leaves.
    #[error("records {from} to {to} were added behind the anchor")]
    Unanchored { from: u64, to: u64 },
    /// The anchor is gone or damaged, or was when record `at` was written.
    #[error("the anchor, audit.json, is missing or damaged{}", since(*at))]
    AnchorLost { at: Option<u64> },
    /// There is a root key, and the anchor has no seal.
    #[error("the anchor, audit.json, has lost its seal")]
    SealMissing,
    /// The seal was not made with this key store's root key.
    #[error("the seal on record {sequence} is forged, or of another root key")]
    SealForged { sequence: u64 },
    /// The lines from before the log was chained are not those that were there.
    #[error("the lines from before record 1 have been altered")]
    BeginningAltered,
    /// The log is younger than a key.
    #[error("the key {key} is older than the log: what came before has been taken away")]
    KeyOlderThanLog { key: String },
}

fn told(place: Option<&AuditPlace>) -> String {
    place.map_or_else(String::new, |place| format!(" ({}, line {})", place.file.display(), place.line))
}

fn since(at: Option<u64>) -> String {
    at.map_or_else(String::new, |at| format!(" (found by the writer of record {at})"))
}

/// What the log says of itself.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AuditReport {
    /// Whole records that were read.
    pub records: u64,
    /// The last record's number, 0 if there is none; to be noted elsewhere, with its hash.
    pub last_sequence: u64,
    /// The last record's hash; 64 hex digits.
    pub last_hash: String,
    /// The last record that a seal covers, if there is a seal. Later ones are chained, and no more.
    pub sealed_sequence: Option<u64>,
    /// Whether the seal was checked: the root key was at hand.
    pub seal_checked: bool,
    /// Lines that a killed writer had begun, and that the next one cut off.
    pub recovered: u64,
    /// Whether the log goes on one from before records were chained; that one's bytes are covered as a whole.
    pub follows_unchained_log: bool,
    /// When the log was begun; `None` without an anchor.
    pub since: Option<Timestamp>,
    /// What is wrong, at most 1000 of it.
    pub findings: Vec<AuditFinding>,
    /// How much more is wrong.
    pub further_findings: u64,
}

impl AuditReport {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.findings.is_empty()
    }

    pub(in crate::local) fn find(&mut self, finding: AuditFinding) {
        if self.findings.len() < FINDINGS_MAX {
            self.findings.push(finding);
        } else {
            self.further_findings += 1;
        }
    }
}

impl AuditTrail {
    /// Reads the whole log and judges it, while nobody writes. It must begin with record `first`: those before it have
    /// been moved away. `root` checks the seal.
    pub(in crate::local) fn verify(
        &self,
        dir: &Path,
        first: u64,
        root: Option<&RootKey>,
    ) -> io::Result<AuditReport> {
        let _lock = self.lock()?;
        let anchor = Anchor::load(dir)?;
        let sealed = match &anchor {
            Found::Whole(anchor) => anchor.sealed().map(|link| (link.sequence, link.hash)),
            _ => None,
        };
        let mut judge = Judge::new(first, sealed);
        for file in files(dir)? {
            judge.read(&file)?;
        }
        judge.conclude(&anchor, root)
    }
}

struct Judge {
    /// The number that comes next.
    expected: u64,
    /// The hash of the record before it, if that is known.
    previous: Option<Hash>,
    /// Lines that are not records, since the last one that is.
    pending: Vec<AuditPlace>,
    /// Further such lines.
    pending_more: u64,
    /// Whether the last pending line has no end: a writer may have been killed.
    torn: bool,
    /// All bytes before the first record.
    beginning: Option<(Sha256, u64)>,
    /// The record that the seal is about, and whether it is as it was then.
    sealed: Option<(u64, Hash)>,
    sealed_differs: bool,
    first: u64,
    report: AuditReport,
}

impl Judge {
    fn new(first: u64, sealed: Option<(u64, Hash)>) -> Self {
        let report = AuditReport {
            records: 0,
            last_sequence: 0,
            last_hash: hex::encode(&GENESIS),
            sealed_sequence: sealed.map(|(sequence, _)| sequence),
            seal_checked: false,
            recovered: 0,
            follows_unchained_log: false,
            since: None,
            findings: Vec::new(),
            further_findings: 0,
        };
        Self {
            expected: first,
            previous: (first == 1).then_some(GENESIS),
            pending: Vec::new(),
            pending_more: 0,
            torn: false,
            beginning: Some((Sha256::new(), 0)),
            sealed,
            sealed_differs: false,
            first,
            report,
        }
    }

    fn read(&mut self, file: &Path) -> io::Result<()> {
        let mut reader = BufReader::new(File::open(file)?);
        let mut number = 0;
        while let Some(line) = next_line(&mut reader)? {
            number += 1;
            self.torn = !line.whole;
            if let Some(record) = ChainedRecord::parse(&line.bytes) {
                self.record(&record, &AuditPlace { file: file.to_owned(), line: number });
                continue;
            }
            if let Some((hash, length)) = &mut self.beginning {
                hash.update(&line.bytes);
                hash.update(if line.whole { &b"\n"[..] } else { b"" });
                *length += u64::try_from(line.bytes.len()).unwrap_or(u64::MAX) + u64::from(line.whole);
            }
            if self.pending.len() < FINDINGS_MAX {
                self.pending.push(AuditPlace { file: file.to_owned(), line: number });
            } else {
                self.pending_more += 1;
            }
        }
        Ok(())
    }

    fn record(&mut self, record: &ChainedRecord, place: &AuditPlace) {
        let sequence = record.link.sequence;
        self.begin(record);
        self.report.records += 1;
        if self.sealed.is_some_and(|(sealed, hash)| sealed == sequence && hash != record.link.hash) {
            self.sealed_differs = true;
        }
        if sequence < self.expected {
            self.settle(self.expected);
            self.out_of_order(sequence, place);
            return;
        }
        self.settle(sequence);
        if self.previous.is_some_and(|previous| previous != record.previous) {
            // The one before is whole and not what this one was chained to: somebody mended its hash.
            self.report.find(AuditFinding::Altered { sequence: sequence.saturating_sub(1), place: None });
        }
        self.note(record);
        self.previous = Some(record.link.hash);
        self.expected = sequence.saturating_add(1);
        (self.report.last_sequence, self.report.last_hash) = (sequence, hex::encode(&record.link.hash));
    }

    /// At the first record: what is before it is a log from before there was a chain, or nothing.
    fn begin(&mut self, record: &ChainedRecord) {
        let Some((hash, length)) = self.beginning.take() else { return };
        if record.event_name == "AuditLogBegun" && record.link.sequence == 1 {
            let same = record.parameters.bytes == length
                && hex::decode_32(&record.parameters.sha256) == Some(hash.finalize().into());
            self.report.follows_unchained_log = true;
            if !same {
                self.report.find(AuditFinding::BeginningAltered);
            }
            self.pending.clear();
            self.pending_more = 0;
        }
    }

    /// Lines that are not records stand for the records that are missing before `sequence`.
    fn settle(&mut self, sequence: u64) {
        for place in std::mem::take(&mut self.pending) {
            self.previous = None;
            if self.expected < sequence {
                let altered = AuditFinding::Altered { sequence: self.expected, place: Some(place) };
                self.report.find(altered);
                self.expected += 1;
            } else {
                self.report.find(AuditFinding::Foreign { place });
            }
        }
        self.report.further_findings += std::mem::take(&mut self.pending_more);
        if self.expected < sequence {
            self.report.find(AuditFinding::Missing { from: self.expected, to: sequence - 1 });
            self.expected = sequence;
            self.previous = None;
        }
    }

    fn out_of_order(&mut self, sequence: u64, place: &AuditPlace) {
        // It was taken for missing when a later one came.
        let holds = |finding: &AuditFinding| matches!(finding, AuditFinding::Missing { from, to } if (*from..=*to).contains(&sequence));
        if let Some(index) = self.report.findings.iter().position(holds)
            && let AuditFinding::Missing { from, to } = self.report.findings.remove(index)
        {
            if from < sequence {
                self.report.find(AuditFinding::Missing { from, to: sequence - 1 });
            }
            if sequence < to {
                self.report.find(AuditFinding::Missing { from: sequence + 1, to });
            }
        }
        self.report.find(AuditFinding::OutOfOrder { sequence, place: place.clone() });
    }

    /// What earlier writers found.
    fn note(&mut self, record: &ChainedRecord) {
        let at = record.link.sequence;
        match record.event_name.as_str() {
            "AuditLogRecovered" => self.report.recovered += 1,
            "AuditLogAnchorLost" => self.report.find(AuditFinding::AnchorLost { at: Some(at) }),
            "AuditLogUnanchored" => {
                let (from, to) = (record.parameters.from, record.parameters.to);
                self.report.find(AuditFinding::Unanchored { from, to });
            }
            // What it tells of is found to be missing.
            _ => {}
        }
    }

    /// At the end: what the anchor knows.
    fn conclude(mut self, anchor: &Found, root: Option<&RootKey>) -> io::Result<AuditReport> {
        let read_to = self.expected.saturating_sub(1);
        match anchor {
            Found::Whole(anchor) => {
                self.report.since = Some(anchor.since());
                let last = anchor.last();
                if self.torn && last.sequence <= read_to {
                    // A killed writer's: the next one will tell of it.
                    self.pending.pop();
                }
                let sealed = self.sealed.map_or(0, |(sequence, _)| sequence);
                self.settle(last.sequence.max(sealed).saturating_add(1).max(self.expected));
                if last.sequence == read_to && self.previous.is_some_and(|hash| hash != last.hash) {
                    self.report.find(AuditFinding::Altered { sequence: read_to, place: None });
                }
                if read_to > last.sequence.saturating_add(1) {
                    let from = last.sequence.saturating_add(1);
                    self.report.find(AuditFinding::Unanchored { from, to: read_to });
                }
            }
            Found::Damaged => self.report.find(AuditFinding::AnchorLost { at: None }),
            Found::Absent if self.report.records > 0 || self.first > 1 => {
                self.report.find(AuditFinding::AnchorLost { at: None });
            }
            // A log from before there was a chain, or none: nothing to judge.
            Found::Absent => {
                self.report.follows_unchained_log = !self.pending.is_empty();
                return Ok(self.report);
            }
        }
        self.settle(self.expected);
        if let (Found::Whole(anchor), Some(root)) = (anchor, root) {
            self.report.seal_checked = true;
            match self.sealed {
                Some((sequence, _)) if self.sealed_differs || !anchor.seal_is_ours(root)? => {
                    self.report.find(AuditFinding::SealForged { sequence });
                }
                Some(_) => {}
                None if self.report.records > 0 => self.report.find(AuditFinding::SealMissing),
                None => {}
            }
        }
        Ok(self.report)
    }
}
