//! Accounts: 12 digits, as AWS writes them. Says nothing about whether anybody uses the account.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How many digits an account has.
const DIGITS: usize = 12;
/// How much of a malformed account an error repeats.
const SHOWN_CHARS: usize = 64;

/// An account's number: exactly 12 digits, and so always a safe file name. Displays and serialises as its text.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AccountId(Box<str>);

/// Not an account (EC2: `InvalidUserID.Malformed`).
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid account \"{given}\": expected {DIGITS} digits")]
pub struct MalformedAccountId {
    /// What was given: escaped, at most 64 characters of it.
    pub given: String,
}

impl AccountId {
    /// The 12 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for AccountId {
    /// The account of a pool that was given none: 000000000000.
    fn default() -> Self {
        Self("0".repeat(DIGITS).into())
    }
}

impl FromStr for AccountId {
    type Err = MalformedAccountId;

    fn from_str(text: &str) -> Result<Self, MalformedAccountId> {
        if text.len() == DIGITS && text.bytes().all(|c| c.is_ascii_digit()) {
            return Ok(Self(text.into()));
        }
        let given = text.chars().take(SHOWN_CHARS).collect::<String>().escape_debug().to_string();
        Err(MalformedAccountId { given })
    }
}

impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for AccountId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for AccountId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn twelve_digits_are_an_account_and_nothing_else_is() {
        let account: AccountId = "111122223333".parse().expect("an account");
        assert_eq!(account.to_string(), "111122223333");
        assert_eq!(AccountId::default().as_str(), "000000000000");
        for text in
            ["", "11112222333", "1111222233334", "11112222333x", "../../../../", "１１１１", "+11122223333"]
        {
            assert!(text.parse::<AccountId>().is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_shows_a_bounded_and_escaped_part() {
        let error = format!("\u{1b}[31m{}", "x".repeat(10_000)).parse::<AccountId>().expect_err("malformed");
        assert!(error.given.len() < 100 && !error.to_string().contains('\u{1b}'));
    }
}
