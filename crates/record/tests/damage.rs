//! Damage to a stored record is an error or makes no difference; it is never a panic or another value.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sealblk_record::{Document, RecordError, RecordFile};
use serde::{Deserialize, Serialize};

/// Every shape that our records use. Unknown fields are let pass here: the checksum alone has to notice.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Sample {
    size: u64,
    encrypted: bool,
    kms_key_id: Option<String>,
    tags: BTreeMap<String, String>,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
enum Part {
    File(String),
    Offset { bytes: i64 },
    Nothing,
}

impl Document for Sample {
    const FORMAT: &'static str = "sealblk-sample";
    const VERSION: u32 = 12;
}

fn samples() -> impl Strategy<Value = Sample> {
    let part = prop_oneof![
        any::<String>().prop_map(Part::File),
        any::<i64>().prop_map(|bytes| Part::Offset { bytes }),
        Just(Part::Nothing),
    ];
    let tags = proptest::collection::btree_map(any::<String>(), any::<String>(), 0..3);
    let parts = proptest::collection::vec(part, 0..3);
    (any::<u64>(), any::<bool>(), proptest::option::of(any::<String>()), tags, parts).prop_map(
        |(size, encrypted, kms_key_id, tags, parts)| Sample { size, encrypted, kms_key_id, tags, parts },
    )
}

fn stored(sample: &Sample) -> (tempfile::TempDir, RecordFile<Sample>, Vec<u8>) {
    let dir = tempfile::tempdir().expect("a directory");
    let record = RecordFile::new(dir.path().join("sample.json"));
    record.store(sample).expect("stored");
    let bytes = std::fs::read(record.path()).expect("read");
    (dir, record, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(64) })]

    #[test]
    fn what_is_stored_is_loaded(sample in samples()) {
        let (_dir, record, _) = stored(&sample);
        prop_assert_eq!(record.load().expect("loaded"), sample);
    }

    #[test]
    fn one_damaged_byte_is_an_error_or_makes_no_difference(
        sample in samples(), damage in proptest::collection::vec((any::<prop::sample::Index>(), 1..=255u8), 40)
    ) {
        let (_dir, record, bytes) = stored(&sample);
        for (place, difference) in damage {
            let mut damaged = bytes.clone();
            *place.get_mut(&mut damaged) ^= difference;
            std::fs::write(record.path(), &damaged).expect("written");
            if let Ok(loaded) = record.load() {
                prop_assert_eq!(&loaded, &sample);
            }
        }
    }

    #[test]
    fn cut_or_prolonged_record_is_an_error_or_makes_no_difference(
        sample in samples(), at in any::<prop::sample::Index>(), more in any::<Vec<u8>>()
    ) {
        let (_dir, record, bytes) = stored(&sample);
        let mut cut = bytes.clone();
        cut.truncate(at.index(bytes.len()));
        for changed in [cut.clone(), [cut, more.clone()].concat(), [bytes, more].concat()] {
            std::fs::write(record.path(), &changed).expect("written");
            if let Ok(loaded) = record.load() {
                prop_assert_eq!(&loaded, &sample);
            }
        }
    }

    #[test]
    fn arbitrary_bytes_are_an_error(bytes in any::<Vec<u8>>()) {
        let dir = tempfile::tempdir().expect("a directory");
        let record = RecordFile::<Sample>::new(dir.path().join("sample.json"));
        std::fs::write(record.path(), bytes).expect("written");
        prop_assert!(record.load().is_err());
    }
}

#[test]
fn every_bit_of_a_record_flipped_is_an_error_or_makes_no_difference() {
    let tags = BTreeMap::from([("Name".to_owned(), "data".to_owned())]);
    let parts = vec![Part::File("data".into()), Part::Offset { bytes: -8 }, Part::Nothing];
    let sample = Sample { size: 1 << 30, encrypted: true, kms_key_id: None, tags, parts };
    let (_dir, record, bytes) = stored(&sample);
    let mut noticed = 0;
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(record.path(), &damaged).expect("written");
        match record.load() {
            Ok(loaded) => assert_eq!(loaded, sample),
            Err(_) => noticed += 1,
        }
    }
    // Only the line end behind the closing brace does not matter, and few of its bits make white space of it.
    assert!(noticed >= bytes.len() * 8 - 8, "{noticed} of {}", bytes.len() * 8);
}

#[test]
fn deeply_nested_record_is_an_error() {
    let dir = tempfile::tempdir().expect("a directory");
    let record = RecordFile::<Sample>::new(dir.path().join("sample.json"));
    std::fs::write(record.path(), "[".repeat(1 << 20)).expect("written");
    assert!(matches!(record.load(), Err(RecordError::Damaged { line: 1, .. })));
}
