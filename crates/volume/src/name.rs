//! A volume's name: what people call it, and a further name of its NBD export. Need not be unique; commands take ids.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::id::{SnapshotId, VolumeId};

/// The longest name, in characters: EC2's longest value of a tag.
const MAX_CHARS: usize = 256;

/// 1 to 256 characters without control characters, and not an id: who asks for another volume by its id must not be
/// given this one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeName(String);

/// Not a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a volume's name has 1 to {MAX_CHARS} characters, none of them a control character, and is no id")]
pub struct InvalidName;

impl VolumeName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for VolumeName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        text.to_owned().try_into()
    }
}

impl TryFrom<String> for VolumeName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        let is_id = text.parse::<VolumeId>().is_ok() || text.parse::<SnapshotId>().is_ok();
        let fits = (1..=MAX_CHARS).contains(&text.chars().count());
        if fits && !is_id && !text.chars().any(char::is_control) { Ok(Self(text)) } else { Err(InvalidName) }
    }
}

impl From<VolumeName> for String {
    fn from(name: VolumeName) -> Self {
        name.0
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_text_that_can_be_shown_and_no_id() {
        for good in ["db", "Datenbank \u{fc}ber alles", "vol-1", &"x".repeat(MAX_CHARS)] {
            assert_eq!(good.parse::<VolumeName>().map(String::from).as_deref(), Ok(good));
        }
        for bad in ["", "a\nb", "a\0b", "vol-0123456789abcdef0", "snap-0123456789abcdef0"] {
            assert_eq!(bad.parse::<VolumeName>(), Err(InvalidName), "{bad:?}");
        }
        assert_eq!("x".repeat(MAX_CHARS + 1).parse::<VolumeName>(), Err(InvalidName));
    }
}
