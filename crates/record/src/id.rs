//! Identifiers of volumes and snapshots: `vol-` or `snap-` and 17 lower-case hexadecimal digits, as EC2
//! writes them. Says nothing about whether such an object exists. Read from argv and from records.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Hexadecimal digits after the prefix.
const DIGITS: usize = 17;
/// The bits those digits hold.
const MASK: u128 = (1 << (4 * DIGITS)) - 1;
/// How much of a malformed identifier an error repeats.
const SHOWN_CHARS: usize = 64;

/// What kind of object an identifier names.
pub trait IdKind: Copy + Ord + fmt::Debug + Send + Sync + 'static {
    /// What stands before the digits, with the dash.
    const PREFIX: &'static str;
    /// What a person calls the object.
    const NOUN: &'static str;
}

/// The kind of [`VolumeId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum VolumeKind {}

impl IdKind for VolumeKind {
    const PREFIX: &'static str = "vol-";
    const NOUN: &'static str = "volume";
}

/// The kind of [`SnapshotId`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SnapshotKind {}

impl IdKind for SnapshotKind {
    const PREFIX: &'static str = "snap-";
    const NOUN: &'static str = "snapshot";
}

/// A volume's identifier: `vol-` and 17 lower-case hexadecimal digits.
pub type VolumeId = ResourceId<VolumeKind>;
/// A snapshot's identifier: `snap-` and 17 lower-case hexadecimal digits.
pub type SnapshotId = ResourceId<SnapshotKind>;

/// An identifier of kind `K`. Displays and serialises as its text; parses strictly, so that one object has
/// one spelling and an identifier is always a safe file name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ResourceId<K: IdKind> {
    digits: u128,
    kind: PhantomData<K>,
}

impl<K: IdKind> ResourceId<K> {
    /// The identifier made of the first 68 of these 72 random bits.
    pub const fn from_random(random: [u8; 9]) -> Self {
        let [a, b, c, d, e, f, g, h, i] = random;
        let bits = u128::from_be_bytes([0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f, g, h, i]);
        Self { digits: (bits >> 4) & MASK, kind: PhantomData }
    }

    /// A fresh identifier from the kernel's random source. With 68 random bits, a billion objects share
    /// one with probability 2^-9; the caller still creates the object's directory exclusively.
    pub fn generate() -> Result<Self, getrandom::Error> {
        let mut random = [0; 9];
        getrandom::fill(&mut random)?;
        Ok(Self::from_random(random))
    }
}

impl<K: IdKind> fmt::Display for ResourceId<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Through `pad`, so that a table can give a width.
        f.pad(&format!("{}{:0DIGITS$x}", K::PREFIX, self.digits))
    }
}

impl<K: IdKind> fmt::Debug for ResourceId<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Not an identifier of the kind asked for (EC2: `InvalidVolumeID.Malformed`, `InvalidSnapshotID.Malformed`).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid {noun} id \"{given}\": expected \"{prefix}\" and {DIGITS} lower-case hexadecimal digits")]
pub struct MalformedId {
    /// `volume` or `snapshot`.
    pub noun: &'static str,
    /// `vol-` or `snap-`.
    pub prefix: &'static str,
    /// What was given: escaped, at most 64 characters of it.
    pub given: String,
}

impl<K: IdKind> FromStr for ResourceId<K> {
    type Err = MalformedId;

    fn from_str(text: &str) -> Result<Self, MalformedId> {
        let is_digit = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        text.strip_prefix(K::PREFIX)
            .filter(|digits| digits.len() == DIGITS && digits.bytes().all(is_digit))
            .and_then(|digits| u128::from_str_radix(digits, 16).ok())
            .map(|digits| Self { digits, kind: PhantomData })
            .ok_or_else(|| MalformedId {
                noun: K::NOUN,
                prefix: K::PREFIX,
                given: text.chars().take(SHOWN_CHARS).collect::<String>().escape_debug().to_string(),
            })
    }
}

impl<K: IdKind> Serialize for ResourceId<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de, K: IdKind> Deserialize<'de> for ResourceId<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_bits_become_17_digits() {
        let id = VolumeId::from_random([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x5a]);
        assert_eq!(id.to_string(), "vol-0123456789abcdef5");
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_ne!(VolumeId::generate().expect("random"), VolumeId::generate().expect("random"));
    }

    #[test]
    fn only_the_exact_shape_is_an_id() {
        let wrong = [
            "",
            "vol-",
            "vol-0123456789abcdef",
            "vol-0123456789abcdef01",
            "vol-0123456789ABCDEF0",
            "snap-0123456789abcdef0",
            "VOL-0123456789abcdef0",
            "vol-+123456789abcdef0",
            "vol-0123456789abcde/.",
            " vol-0123456789abcdef0",
            "vol-０123456789abcd",
        ];
        for text in wrong {
            let error = text.parse::<VolumeId>().expect_err(text);
            assert_eq!(error.noun, "volume");
        }
        assert!("snap-0123456789abcdef0".parse::<SnapshotId>().is_ok());
    }

    #[test]
    fn an_error_shows_a_bounded_and_escaped_part() {
        let error = format!("\u{1b}[31m{}", "x".repeat(10_000)).parse::<VolumeId>().expect_err("malformed");
        assert!(error.given.len() < 100, "{}", error.given);
        assert!(!error.to_string().contains('\u{1b}'));
    }
}
