//! A document and its bytes: no files here.

use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::RecordError;
use crate::file::MAX_RECORD_BYTES;

const FORMAT: &str = "Format";
const VERSION: &str = "Version";
const CHECKSUM: &str = "Checksum";

/// The members of a document, without the record's own (`Format`, `Version`, `Checksum`).
pub type Fields = Map<String, Value>;

/// What can be stored as a record: a struct that serde writes as a JSON object.
///
/// It has no member named `Format`, `Version` or `Checksum`, and should be `#[serde(deny_unknown_fields)]`:
/// a member that this release does not know may matter.
pub trait Document: Serialize + DeserializeOwned {
    /// The name of the format, the same for ever: `sealblk-volume`.
    const FORMAT: &'static str;
    /// The version that this release writes. It changes whenever the meaning of the members does.
    const VERSION: u32;

    /// Turns the members of an older `version` into those of [`VERSION`](Self::VERSION), or `None` if this
    /// release does not know that version. Called only for versions below `VERSION`, after the checksum held.
    fn migrate(version: u32, fields: Fields) -> Option<Fields> {
        let _ = (version, fields);
        None
    }
}

/// Why bytes are not a record of the wanted format. The file adds its path.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    Damaged { line: usize, column: usize, reason: String },
    WrongFormat { found: Option<String> },
    UnknownVersion { found: u64 },
}

impl Rejection {
    fn damaged(reason: impl Into<String>) -> Self {
        Self::Damaged { line: 0, column: 0, reason: reason.into() }
    }

    /// As an error about the record of a `T` at `path`, whose generation before is whole at `previous`.
    pub(crate) fn at<T: Document>(self, path: PathBuf, previous: Option<PathBuf>) -> RecordError {
        match self {
            Self::Damaged { line, column, reason } => {
                RecordError::Damaged { path, line, column, reason, previous }
            }
            Self::WrongFormat { found } => RecordError::WrongFormat { path, found, expected: T::FORMAT },
            Self::UnknownVersion { found } => {
                RecordError::UnknownVersion { path, found, supported: T::VERSION }
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Envelope<'a, T> {
    format: &'static str,
    version: u32,
    #[serde(flatten)]
    document: &'a T,
}

/// The bytes of `document`'s record, for a store that is not a file; `path` is for the error.
///
/// # Errors
/// [`RecordError::Unstorable`] and [`RecordError::TooLarge`].
pub fn to_bytes<T: Document>(path: &Path, document: &T) -> Result<Vec<u8>, RecordError> {
    let bytes =
        encode(document).map_err(|reason| RecordError::Unstorable { path: path.to_owned(), reason })?;
    match u64::try_from(bytes.len()) {
        Ok(length) if length <= MAX_RECORD_BYTES => Ok(bytes),
        _ => Err(RecordError::TooLarge { path: path.to_owned(), limit: MAX_RECORD_BYTES }),
    }
}

/// The document in the bytes of a record that came from a store; `path` is for the error. The caller bounds
/// how many bytes it reads ([`MAX_RECORD_BYTES`]).
///
/// # Errors
/// [`RecordError::Damaged`] (with no previous generation), [`RecordError::WrongFormat`] and
/// [`RecordError::UnknownVersion`].
pub fn from_bytes<T: Document>(path: &Path, bytes: &[u8]) -> Result<T, RecordError> {
    decode(bytes).map_err(|rejection| rejection.at::<T>(path.to_owned(), None))
}

/// The bytes of `document`'s record, or why it cannot be one.
pub(crate) fn encode<T: Document>(document: &T) -> Result<Vec<u8>, String> {
    let envelope = Envelope { format: T::FORMAT, version: T::VERSION, document };
    let mut bytes = serde_json::to_vec_pretty(&envelope).map_err(|error| error.to_string())?;
    // The closing brace makes room for one more member, whose line the checksum does not cover.
    bytes.truncate(bytes.len().saturating_sub("\n}".len()));
    bytes.extend_from_slice(b",\n");
    let last = format!("  \"{CHECKSUM}\": \"{}\"\n}}\n", checksum(&bytes));
    bytes.extend_from_slice(last.as_bytes());
    // A member of the document named like one of the record's own shows here, and so does a `Serialize` that
    // `Deserialize` does not understand: better now than at the next start.
    let members = bytes.split(|&byte| byte == b'\n').filter(|line| is_own_member(line)).count();
    if members != 3 {
        return Err(format!("it has a member of its own named {FORMAT}, {VERSION} or {CHECKSUM}"));
    }
    match decode::<T>(&bytes) {
        Ok(_) => Ok(bytes),
        Err(rejection) => Err(format!("it would not be read again: {rejection:?}")),
    }
}

/// Whether a line of pretty-printed JSON begins one of the record's own members, at the top level.
fn is_own_member(line: &[u8]) -> bool {
    [FORMAT, VERSION, CHECKSUM].iter().any(|name| line.starts_with(format!("  \"{name}\": ").as_bytes()))
}

/// The document in the bytes of a record.
pub(crate) fn decode<T: Document>(bytes: &[u8]) -> Result<T, Rejection> {
    let mut fields: Fields = serde_json::from_slice(bytes).map_err(|error| Rejection::Damaged {
        line: error.line(),
        column: error.column(),
        reason: without_position(&error),
    })?;
    match fields.remove(FORMAT) {
        Some(Value::String(format)) if format == T::FORMAT => {}
        Some(Value::String(format)) => return Err(Rejection::WrongFormat { found: Some(format) }),
        _ => return Err(Rejection::WrongFormat { found: None }),
    }
    let stated = fields.remove(CHECKSUM);
    if stated.as_ref().and_then(Value::as_str) != Some(checksum(checksummed(bytes)).as_str()) {
        return Err(Rejection::damaged("its checksum does not fit its content"));
    }
    let version = fields.remove(VERSION);
    let version = version.as_ref().and_then(Value::as_u64);
    let found = version.ok_or_else(|| Rejection::damaged("it has no version"))?;
    let fields = match u32::try_from(found) {
        Ok(version) if version == T::VERSION => Some(fields),
        Ok(version) if version < T::VERSION => T::migrate(version, fields),
        _ => None,
    };
    let fields = fields.ok_or(Rejection::UnknownVersion { found })?;
    serde_json::from_value(Value::Object(fields)).map_err(|error| Rejection::damaged(error.to_string()))
}

/// What the checksum covers: everything before the last line but one.
fn checksummed(bytes: &[u8]) -> &[u8] {
    let before_last_line = |bytes: &[u8]| {
        let line_end = bytes.len().saturating_sub(1);
        let text = bytes.get(..line_end).unwrap_or_default();
        text.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1)
    };
    let without_brace = bytes.get(..before_last_line(bytes)).unwrap_or_default();
    without_brace.get(..before_last_line(without_brace)).unwrap_or_default()
}

fn checksum(bytes: &[u8]) -> String {
    let digest = Sha256::digest(bytes);
    let digits: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// The message of a parse error without the position, which the error has as fields.
fn without_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let position = format!(" at line {} column {}", error.line(), error.column());
    message.strip_suffix(&position).map_or_else(|| message.clone(), str::to_owned)
}
