//! Where a data key is in the process that asked a helper for it: in locked memory, and nowhere else. A file, and so
//! a process, of its own: no other test's threads are in the memory that is searched.

mod store;

use std::fs::File;
use std::os::unix::fs::FileExt;

use sealblk_keymem::DataKey;
use sealblk_kms::helper::{ProviderConfig, serve_helper};
use sealblk_kms::{DecryptRequest, Kms};
use store::{TestStore, VOLUME, context, helper, volume_key};

/// Keeps the searched pattern itself from being found.
const MASK: u8 = 0xa5;
const HALF: usize = 32;

/// Not a test: the helper process.
#[test]
#[ignore = "run by the other test as its helper"]
fn helper_process() {
    let Ok(stdout) = File::options().write(true).open("/proc/self/fd/3") else { return };
    serve_helper(std::io::stdin(), stdout, ProviderConfig::open).expect("served");
}

#[test]
fn r18_after_a_helpers_reply_the_key_is_in_locked_memory_and_nowhere_else() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let own = context(VOLUME);
    let request = DecryptRequest { wrapped: &wrapped, key: &arn, context: &own, grant: None };
    let key = helper(&store).decrypt(&request).expect("decrypted");
    assert_eq!(copies(&key), 0);

    // The search finds a copy where there is one: of the whole key, and of its second half alone.
    let planted = key.expose(|bytes| bytes.to_vec());
    assert_ne!(copies(&key), 0, "{} bytes planted", planted.len());
    let mut planted = std::hint::black_box(planted);
    planted[..HALF].fill(0);
    assert_ne!(copies(&key), 0, "{} bytes planted", planted.len());
    std::hint::black_box(&planted);
}

/// How often either half of the key is in this process's readable memory outside the key's own pages.
fn copies(key: &DataKey) -> usize {
    let masked: [u8; 2 * HALF] = key.expose(|bytes| std::array::from_fn(|i| bytes[i] ^ MASK));
    let own_address = key.expose(|bytes| bytes.as_ptr().addr());
    let maps = std::fs::read_to_string("/proc/self/maps").expect("the list of mappings");
    let memory = File::open("/proc/self/mem").expect("this process's memory");
    let ranges = maps.lines().filter_map(readable_range).filter(|range| !range.contains(&own_address));
    ranges.map(|range| count_in(&memory, range, &masked)).sum()
}

fn readable_range(line: &str) -> Option<std::ops::Range<usize>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let parse = |text| usize::from_str_radix(text, 16).expect("an address");
    rest.starts_with('r').then(|| parse(start)..parse(end))
}

/// Memory that cannot be read this way ([vvar], for one) holds no copy that this process made.
fn count_in(memory: &File, range: std::ops::Range<usize>, masked: &[u8]) -> usize {
    let mut content = vec![0; range.len()];
    let Ok(length) = memory.read_at(&mut content, range.start as u64) else { return 0 };
    let half_is_at = |window: &[u8]| {
        let equals = |half: &[u8]| window.iter().zip(half).all(|(found, wanted)| found ^ MASK == *wanted);
        equals(&masked[..HALF]) || equals(&masked[HALF..])
    };
    let count = content[..length].windows(HALF).filter(|window| half_is_at(window)).count();
    content.fill(0);
    count
}
