//! Tests of the page format.

use proptest::prelude::*;

use super::*;

fn snapshot(number: u8) -> SnapshotId {
    SnapshotId::from_random([number; 9])
}

const LEAF: Place = Place { level: 0, position: 77 };

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = (any::<u8>(), any::<[u8; 32]>());
    prop::collection::btree_map(0_u16..1024, entry, 1..40).prop_map(|entries| {
        let entry = |(slot, (generation, hash))| Entry {
            slot,
            blocks: 1,
            reference: Reference { generation: snapshot(generation), hash: ContentHash::from_bytes(hash) },
        };
        entries.into_iter().map(entry).collect()
    })
}

proptest! {
    #[test]
    fn a_page_is_read_as_it_was_written(entries in entries()) {
        let page = Page::new(LEAF, entries).expect("not empty");
        let bytes = page.encode();
        prop_assert!(bytes.len() as u64 <= MAX_PAGE_BYTES);
        prop_assert_eq!(Page::decode(LEAF, &bytes), Ok(page));
    }

    #[test]
    fn no_bytes_make_the_parser_panic(
        entries in entries(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = Page::new(LEAF, entries).expect("not empty").encode();
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        // The hash is what finds damage; whatever is read here is at least a page.
        if let Ok(page) = Page::decode(LEAF, &bytes) {
            prop_assert_eq!(Page::decode(LEAF, &page.encode()), Ok(page.clone()));
        }
    }
}

#[test]
fn the_bytes_are_those_of_the_format_document() {
    let reference = Reference { generation: snapshot(0x11), hash: ContentHash::from_bytes([0xab; 32]) };
    let page = Page::new(LEAF, vec![Entry { slot: 3, blocks: 1, reference }]).expect("not empty").encode();
    let mut expected = b"SEALPAGE\x01\x00\x00\x00\x4d\x00\x00\x00\x01\x00\x01\x00".to_vec();
    expected.extend(b"11111111111111111");
    expected.extend(b"\x03\x00\x00\x00\x01\x00\x00\x00");
    expected.extend([0xab; 32]);
    assert_eq!(page, expected);
}

#[test]
fn a_page_of_another_place_or_version_is_refused() {
    let reference = Reference { generation: snapshot(1), hash: ContentHash::of(b"") };
    let bytes = Page::new(LEAF, vec![Entry { slot: 0, blocks: 1, reference }]).expect("not empty").encode();
    let elsewhere = Page::decode(Place { level: 0, position: 78 }, &bytes);
    assert_eq!(elsewhere, Err("it is page 77 of level 0".to_owned()));
    let mut newer = bytes.clone();
    newer[8] = 2;
    assert!(Page::decode(LEAF, &newer).expect_err("unknown").contains("version 2"));
    let mut longer = bytes;
    longer.push(0);
    assert_eq!(Page::decode(LEAF, &longer), Err("bytes follow its last entry".to_owned()));
}

#[test]
fn a_page_without_entries_is_not_stored() {
    assert_eq!(Page::new(LEAF, Vec::new()), None);
}
