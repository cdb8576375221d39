//! Headers and pages, there and back, and what is refused.

use super::*;

fn of() -> MapIdentity {
    MapIdentity { volume_id: VolumeId::from_random([1; 9]), size: VolumeSize::MIN }
}

fn headers() -> Vec<Header> {
    let origin = Origin { snapshot: SnapshotId::from_random([2; 9]), blocks: 2 };
    let base = Tracking::Exact(SnapshotId::from_random([3; 9]));
    [Restoration::None, Restoration::Pending(origin), Restoration::Complete(origin)]
        .into_iter()
        .flat_map(|restoration| [Tracking::Unknown, base].map(|tracking| Header { restoration, tracking }))
        .collect()
}

/// A header with other bytes and the checksum that fits them.
fn changed(header: &Header, change: impl FnOnce(&mut Sector)) -> Result<Header, MapError> {
    let mut sector = header.encode(of());
    change(&mut sector);
    let sum: [u8; 32] = Sha256::digest(&sector[..HEADER_BYTES]).into();
    sector[HEADER_BYTES..].copy_from_slice(&sum);
    Header::decode(&sector, of()).map(|(header, _)| header)
}

#[test]
fn a_header_is_read_as_it_was_written() {
    for header in headers() {
        assert_eq!(Header::decode(&header.encode(of()), of()).expect("a header"), (header, of()));
    }
    assert_eq!(Header::decode(&[0; SECTOR_BYTES], of()).expect("never written"), (Header::BLANK, of()));
}

#[test]
fn a_header_of_another_volume_size_version_or_state_is_refused() {
    let header = headers()[3];
    let other = MapIdentity { volume_id: VolumeId::from_random([9; 9]), ..of() };
    assert!(matches!(Header::decode(&header.encode(other), of()), Err(MapError::OtherVolume)));
    let grown = MapIdentity { size: VolumeSize::MAX, ..of() };
    assert!(matches!(Header::decode(&header.encode(grown), of()), Err(MapError::OtherVolume)));
    let (_, before) = Header::decode(&header.encode(of()), grown).expect("of the volume before it grew");
    assert_eq!(before, of());
    let later = changed(&header, |sector| sector[8] = 2);
    assert!(matches!(later, Err(MapError::UnknownVersion { found: 2 })));
    for at in [0, 12, 48, 49, 56, 90] {
        let changed = changed(&header, |sector| sector[at] ^= 0x40);
        assert!(matches!(changed, Err(MapError::Damaged { at: 0, .. })), "byte {at}: {changed:?}");
    }
}

#[test]
fn a_page_is_read_only_where_it_was_written() {
    let words: [u64; PAGE_WORDS] = std::array::from_fn(|word| word as u64 * 0x0123_4567_89ab);
    let page = encode_page(of(), Array::Missing, 7, words.into_iter());
    assert_eq!(decode_page(of(), Array::Missing, 7, &page), Some(words));
    let other = MapIdentity { volume_id: VolumeId::from_random([9; 9]), ..of() };
    assert_eq!(decode_page(other, Array::Missing, 7, &page), None);
    assert_eq!(decode_page(of(), Array::Changed, 7, &page), None);
    assert_eq!(decode_page(of(), Array::Missing, 8, &page), None);
    assert_eq!(decode_page(of(), Array::Missing, 0, &[0; SECTOR_BYTES]), None, "never written");
}

#[test]
fn the_arrays_of_the_largest_volume_lie_behind_each_other() {
    let blocks = VolumeSize::MAX.bytes() / BLOCK_BYTES as u64;
    let numbers = 0..pages(blocks);
    let missing = page_sectors(Array::Missing, numbers.clone(), blocks);
    let changed = page_sectors(Array::Changed, numbers, blocks);
    assert_eq!((missing.start, PAGE_BITS), (Lba(8), 3968));
    assert!(missing.end() <= changed.start && changed.end().byte_offset() <= file_bytes(blocks));
    assert!(file_bytes(blocks) < 36 << 20, "{}", file_bytes(blocks));
}
