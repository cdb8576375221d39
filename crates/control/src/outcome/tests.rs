//! The tables of ebs.md B.1 to B.4, as they are printed there.

use super::*;

const DEFAULT: &str = "default";
const SPECIFIED: &str = "specified";
const SNAPSHOTS: &str = "snapshot's";

const EMPTY: Source<'_> = Source::Empty;
const OWN_PLAIN: Source<'_> = Source::Snapshot { key: None, shared: false };
const OWN_ENCRYPTED: Source<'_> = Source::Snapshot { key: Some(SNAPSHOTS), shared: false };
const SHARED_PLAIN: Source<'_> = Source::Snapshot { key: None, shared: true };
const SHARED_ENCRYPTED: Source<'_> = Source::Snapshot { key: Some(SNAPSHOTS), shared: true };

/// ebs.md B.1: row, Encrypted set, by default, source, key without KmsKeyId, key with KmsKeyId.
type Row = (u8, bool, bool, Source<'static>, Option<&'static str>, Option<&'static str>);

#[rustfmt::skip]
const TABLE: [Row; 20] = [
    ( 1, false, false, EMPTY,            None,            None),
    ( 2, false, false, OWN_PLAIN,        None,            None),
    ( 3, false, false, OWN_ENCRYPTED,    Some(SNAPSHOTS), None),
    ( 4, false, false, SHARED_PLAIN,     None,            None),
    ( 5, false, false, SHARED_ENCRYPTED, Some(DEFAULT),   None),
    ( 6, true,  false, EMPTY,            Some(DEFAULT),   Some(SPECIFIED)),
    ( 7, true,  false, OWN_PLAIN,        Some(DEFAULT),   Some(SPECIFIED)),
    ( 8, true,  false, OWN_ENCRYPTED,    Some(SNAPSHOTS), Some(SPECIFIED)),
    ( 9, true,  false, SHARED_PLAIN,     Some(DEFAULT),   Some(SPECIFIED)),
    (10, true,  false, SHARED_ENCRYPTED, Some(DEFAULT),   Some(SPECIFIED)),
    (11, false, true,  EMPTY,            Some(DEFAULT),   None),
    (12, false, true,  OWN_PLAIN,        Some(DEFAULT),   None),
    (13, false, true,  OWN_ENCRYPTED,    Some(SNAPSHOTS), None),
    (14, false, true,  SHARED_PLAIN,     Some(DEFAULT),   None),
    (15, false, true,  SHARED_ENCRYPTED, Some(DEFAULT),   None),
    (16, true,  true,  EMPTY,            Some(DEFAULT),   Some(SPECIFIED)),
    (17, true,  true,  OWN_PLAIN,        Some(DEFAULT),   Some(SPECIFIED)),
    (18, true,  true,  OWN_ENCRYPTED,    Some(SNAPSHOTS), Some(SPECIFIED)),
    (19, true,  true,  SHARED_PLAIN,     Some(DEFAULT),   Some(SPECIFIED)),
    (20, true,  true,  SHARED_ENCRYPTED, Some(DEFAULT),   Some(SPECIFIED)),
];

fn ask(
    encrypted: Option<bool>,
    kms_key_id: Option<&'static str>,
    by_default: bool,
    source: Source<'static>,
) -> Result<Outcome<'static>, OutcomeError> {
    let defaults = EncryptionDefaults { by_default, key: DEFAULT };
    outcome(EncryptionRequest { encrypted, kms_key_id }, defaults, source)
}

#[test]
fn r45_every_row_of_the_table_has_its_outcome() {
    for (row, encrypted, by_default, source, without_key, with_key) in TABLE {
        let encrypted = encrypted.then_some(true);
        let expected = without_key.map_or(Outcome::Unencrypted, |key| Outcome::Encrypted { key });
        assert_eq!(ask(encrypted, None, by_default, source), Ok(expected), "row {row} without a key");
        let expected =
            with_key.map(|key| Outcome::Encrypted { key }).ok_or(OutcomeError::KeyWithoutEncrypted);
        assert_eq!(ask(encrypted, Some(SPECIFIED), by_default, source), expected, "row {row} with a key");
        let request = EncryptionRequest { encrypted, kms_key_id: None };
        let defaults = EncryptionDefaults { by_default, key: DEFAULT };
        assert_eq!(super::row(request, defaults, source), row);
    }
}

/// ebs.md B.2: by default, source, Encrypted, with a key; the key of the copy.
type CopyRow = (bool, Source<'static>, Option<bool>, bool, Result<Option<&'static str>, OutcomeError>);

#[rustfmt::skip]
const COPIES: [CopyRow; 22] = [
    (false, OWN_PLAIN,        None,        false, Ok(None)),
    (false, OWN_PLAIN,        Some(false), false, Ok(None)),
    (false, OWN_PLAIN,        Some(true),  false, Ok(Some(DEFAULT))),
    (false, OWN_PLAIN,        Some(true),  true,  Ok(Some(SPECIFIED))),
    (false, OWN_ENCRYPTED,    None,        false, Ok(Some(DEFAULT))),
    (false, OWN_ENCRYPTED,    Some(false), false, Ok(Some(DEFAULT))),
    (false, OWN_ENCRYPTED,    Some(true),  false, Ok(Some(DEFAULT))),
    (false, OWN_ENCRYPTED,    Some(true),  true,  Ok(Some(SPECIFIED))),
    (false, SHARED_PLAIN,     None,        false, Ok(None)),
    (false, SHARED_PLAIN,     Some(true),  false, Ok(Some(DEFAULT))),
    (false, SHARED_ENCRYPTED, None,        false, Ok(Some(DEFAULT))),
    (false, SHARED_ENCRYPTED, Some(true),  true,  Ok(Some(SPECIFIED))),
    (true,  OWN_PLAIN,        None,        false, Ok(Some(DEFAULT))),
    (true,  OWN_PLAIN,        Some(false), false, Ok(Some(DEFAULT))),
    (true,  OWN_PLAIN,        Some(true),  true,  Ok(Some(SPECIFIED))),
    (true,  OWN_ENCRYPTED,    None,        false, Ok(Some(DEFAULT))),
    (true,  OWN_ENCRYPTED,    Some(true),  true,  Ok(Some(SPECIFIED))),
    (true,  SHARED_PLAIN,     None,        false, Ok(Some(DEFAULT))),
    (true,  SHARED_ENCRYPTED, None,        false, Ok(Some(DEFAULT))),
    (true,  SHARED_ENCRYPTED, Some(true),  true,  Ok(Some(SPECIFIED))),
    (false, OWN_PLAIN,        None,        true,  Err(OutcomeError::KeyWithoutEncrypted)),
    (true,  OWN_ENCRYPTED,    Some(false), true,  Err(OutcomeError::KeyWithEncryptionOff)),
];

#[test]
fn r59_r60_every_copy_has_its_outcome() {
    for (by_default, source, encrypted, with_key, expected) in COPIES {
        let request = EncryptionRequest { encrypted, kms_key_id: with_key.then_some(SPECIFIED) };
        let found = copy_outcome(request, EncryptionDefaults { by_default, key: DEFAULT }, source);
        let key = found.map(|outcome| match outcome {
            Outcome::Unencrypted => None,
            Outcome::Encrypted { key } => Some(key),
        });
        assert_eq!(key, expected, "{by_default} {source:?} {encrypted:?} {with_key}");
    }
}

#[test]
fn r49_nothing_that_comes_from_an_encrypted_snapshot_is_unencrypted() {
    for encrypted in [None, Some(false), Some(true)] {
        for (kms_key_id, by_default, source) in [None, Some(SPECIFIED)]
            .into_iter()
            .flat_map(|key| [false, true].map(|by_default| (key, by_default)))
            .flat_map(|(key, by_default)| {
                [OWN_ENCRYPTED, SHARED_ENCRYPTED].map(|source| (key, by_default, source))
            })
        {
            let request = EncryptionRequest { encrypted, kms_key_id };
            let defaults = EncryptionDefaults { by_default, key: DEFAULT };
            assert_ne!(outcome(request, defaults, source), Ok(Outcome::Unencrypted));
            assert_ne!(copy_outcome(request, defaults, source), Ok(Outcome::Unencrypted));
        }
    }
}

#[test]
fn r39_encrypted_false_is_encrypted_under_the_default_key_when_encryption_by_default_is_on() {
    for source in [EMPTY, OWN_PLAIN, SHARED_PLAIN] {
        assert_eq!(ask(Some(false), None, true, source), Ok(Outcome::Encrypted { key: DEFAULT }));
        assert_eq!(ask(Some(false), None, false, source), Ok(Outcome::Unencrypted));
    }
}

#[test]
fn r49_encrypted_false_is_refused_for_an_encrypted_source() {
    for (source, by_default) in
        [(OWN_ENCRYPTED, false), (OWN_ENCRYPTED, true), (SHARED_ENCRYPTED, false), (SHARED_ENCRYPTED, true)]
    {
        assert_eq!(ask(Some(false), None, by_default, source), Err(OutcomeError::SourceStaysEncrypted));
    }
}

#[test]
fn a_key_with_encryption_switched_off_is_refused() {
    for source in [EMPTY, OWN_PLAIN, OWN_ENCRYPTED, SHARED_PLAIN, SHARED_ENCRYPTED] {
        for by_default in [false, true] {
            assert_eq!(
                ask(Some(false), Some(SPECIFIED), by_default, source),
                Err(OutcomeError::KeyWithEncryptionOff)
            );
        }
    }
}

/// ebs.md B.3: what stands beside the tables, and what becomes of it. Encrypted, with a key, by default, source.
type EdgeRow = (Option<bool>, bool, bool, Source<'static>, Result<Option<&'static str>, &'static str>);

#[rustfmt::skip]
const EDGES: [EdgeRow; 12] = [
    (None,        true,  false, EMPTY,            Err("InvalidParameterDependency")),
    (None,        true,  true,  EMPTY,            Err("InvalidParameterDependency")),
    (None,        true,  true,  OWN_ENCRYPTED,    Err("InvalidParameterDependency")),
    (Some(false), false, true,  EMPTY,            Ok(Some(DEFAULT))),
    (Some(false), false, true,  OWN_PLAIN,        Ok(Some(DEFAULT))),
    (Some(false), false, true,  SHARED_PLAIN,     Ok(Some(DEFAULT))),
    (Some(false), false, false, EMPTY,            Ok(None)),
    (Some(false), false, false, OWN_ENCRYPTED,    Err("InvalidParameterCombination")),
    (Some(false), false, true,  OWN_ENCRYPTED,    Err("InvalidParameterCombination")),
    (Some(false), false, false, SHARED_ENCRYPTED, Err("InvalidParameterCombination")),
    (Some(false), true,  false, EMPTY,            Err("InvalidParameterCombination")),
    (Some(false), true,  true,  OWN_ENCRYPTED,    Err("InvalidParameterCombination")),
];

#[test]
fn r45_r54_every_edge_has_its_outcome() {
    for (encrypted, with_key, by_default, source, expected) in EDGES {
        let found = ask(encrypted, with_key.then_some(SPECIFIED), by_default, source);
        let found = found.map(key_of).map_err(OutcomeError::code);
        assert_eq!(found, expected, "{encrypted:?} {with_key} {by_default} {source:?}");
    }
}

/// ebs.md B.4: parent, Encrypted, with a key; by default off, by default on. `Err`: ValidationException.
type StartRow =
    (Source<'static>, Option<bool>, bool, Result<Option<&'static str>, ()>, Result<Option<&'static str>, ()>);

#[rustfmt::skip]
const STARTS: [StartRow; 18] = [
    (EMPTY,         None,        false, Ok(None),            Ok(Some(DEFAULT))),
    (EMPTY,         None,        true,  Ok(Some(SPECIFIED)), Ok(Some(SPECIFIED))),
    (EMPTY,         Some(true),  false, Ok(Some(DEFAULT)),   Ok(Some(DEFAULT))),
    (EMPTY,         Some(true),  true,  Ok(Some(SPECIFIED)), Ok(Some(SPECIFIED))),
    (EMPTY,         Some(false), false, Ok(None),            Err(())),
    (EMPTY,         Some(false), true,  Err(()),             Err(())),
    (OWN_PLAIN,     None,        false, Ok(None),            Err(())),
    (OWN_ENCRYPTED, None,        false, Ok(Some(SNAPSHOTS)), Ok(Some(SNAPSHOTS))),
    (OWN_PLAIN,     Some(true),  false, Err(()),             Err(())),
    (OWN_PLAIN,     Some(true),  true,  Err(()),             Err(())),
    (OWN_PLAIN,     Some(false), false, Err(()),             Err(())),
    (OWN_PLAIN,     Some(false), true,  Err(()),             Err(())),
    (OWN_PLAIN,     None,        true,  Err(()),             Err(())),
    (OWN_ENCRYPTED, Some(true),  false, Err(()),             Err(())),
    (OWN_ENCRYPTED, Some(true),  true,  Err(()),             Err(())),
    (OWN_ENCRYPTED, Some(false), false, Err(()),             Err(())),
    (OWN_ENCRYPTED, Some(false), true,  Err(()),             Err(())),
    (OWN_ENCRYPTED, None,        true,  Err(()),             Err(())),
];

#[test]
fn every_snapshot_that_is_written_block_by_block_has_its_outcome() {
    for (parent, encrypted, with_key, off, on) in STARTS {
        for (by_default, expected) in [(false, off), (true, on)] {
            let request = EncryptionRequest { encrypted, kms_key_id: with_key.then_some(SPECIFIED) };
            let found = start_outcome(request, EncryptionDefaults { by_default, key: DEFAULT }, parent);
            if let Err(error) = found {
                assert_eq!(error.code(), "ValidationException");
            }
            assert_eq!(
                found.map(key_of).map_err(drop),
                expected,
                "{parent:?} {encrypted:?} {with_key} {by_default}"
            );
        }
    }
}

fn key_of(outcome: Outcome<'static>) -> Option<&'static str> {
    match outcome {
        Outcome::Unencrypted => None,
        Outcome::Encrypted { key } => Some(key),
    }
}
