//! The audit log: one JSON line per call, successful or not, chained by hashes.
//!
//! ```text
//! DIR/
//!   audit.log                      the lines, oldest first
//!   audit-0000000000012345.log     older lines, up to that record; closed when they were 16 MiB
//!   audit.json                     the anchor: how many records there are, and the last one's hash
//!   audit.lock                     held by whoever writes or verifies
//! ```
//!
//! Every line carries its place in the chain (`record`): a number, the hash of the line before, and its own hash. The
//! anchor is apart from the lines, so that lines missing at the end are noticed, and sealed by a MAC under a key from
//! the root key whenever the root key is at hand, so that a log written anew from the beginning is noticed too
//! (`anchor`). `trail` writes, `verify` finds what is missing, altered, out of order or forged, and says which.
//!
//! A call returns only when its line is stored; without room for a line it is refused before it does anything.

mod anchor;
mod event;
mod record;
mod trail;
mod verify;

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

pub(super) use self::event::Event;
pub(super) use self::trail::AuditTrail;
pub use self::verify::{AuditFinding, AuditPlace, AuditReport};

/// The longest line, in bytes: a call's parameters are bounded far below.
const LINE_BYTES_MAX: usize = 1 << 20;
/// Where the lines are that are written now.
const CURRENT: &str = "audit.log";

/// The log's files, those that are there, oldest first.
fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut closed = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if name.to_str().is_some_and(is_closed) {
            closed.push(dir.join(name));
        }
    }
    closed.sort();
    let current = dir.join(CURRENT);
    if current.try_exists()? {
        closed.push(current);
    }
    Ok(closed)
}

/// The name of a file that is closed after the record with this number.
fn closed_name(last: u64) -> String {
    format!("audit-{last:016}.log")
}

fn is_closed(name: &str) -> bool {
    let number = name.strip_prefix("audit-").and_then(|rest| rest.strip_suffix(".log"));
    number.is_some_and(|digits| digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_digit()))
}

/// A line of a file, without its end.
struct Line {
    bytes: Vec<u8>,
    /// Whether its end is there; only the last of a file can be without.
    whole: bool,
}

/// The next line of a file; one that is too long comes in pieces, none of which is a record.
fn next_line(reader: &mut BufReader<fs::File>) -> io::Result<Option<Line>> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(LINE_BYTES_MAX).expect("a mebibyte fits") + 1;
    reader.by_ref().take(limit).read_until(b'\n', &mut bytes)?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let whole = bytes.pop_if(|last| *last == b'\n').is_some();
    Ok(Some(Line { bytes, whole }))
}

/// The log's records as documents, oldest first; lines that are none are left out. For showing; `verify` judges.
pub struct AuditRecords {
    files: std::vec::IntoIter<PathBuf>,
    current: Option<BufReader<fs::File>>,
}

impl AuditRecords {
    pub(super) fn of(dir: &Path) -> io::Result<Self> {
        Ok(Self { files: files(dir)?.into_iter(), current: None })
    }
}

impl Iterator for AuditRecords {
    type Item = io::Result<serde_json::Value>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let Some(reader) = &mut self.current else {
                match fs::File::open(self.files.next()?) {
                    Ok(file) => self.current = Some(BufReader::new(file)),
                    Err(error) => return Some(Err(error)),
                }
                continue;
            };
            match next_line(reader) {
                Ok(Some(line)) => {
                    if let Ok(document) = serde_json::from_slice(&line.bytes) {
                        return Some(Ok(document));
                    }
                }
                Ok(None) => self.current = None,
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests;
