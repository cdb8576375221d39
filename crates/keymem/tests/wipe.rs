//! That a secret is nowhere else while it lives, and nowhere at all once it is dropped.
//!
//! The whole readable memory of a process of its own is searched for each quarter of the key. The search reads
//! through the kernel (`process::Probe`), so it sees secret memory too, and every test begins by finding what it
//! later must not find.

use std::hint::black_box;

use sealblk_keymem::{KeyMemError, Locked, Secret, scrub_stack};

mod process;
use process::{BACKINGS, MaskedKey, Probe, backing_of, expect_subject, subject};

/// Runs `test` in a process of its own for each kind of memory; `false`: this is not yet that process.
fn alone(name: &str) -> Option<String> {
    let part = subject();
    if part.is_none() {
        BACKINGS.iter().for_each(|(kind, _)| expect_subject(name, kind));
    }
    part
}

/// The addresses where the key is found. Another thread does the search, while this one waits: the search itself
/// would otherwise overwrite the stack where the residue is.
fn search(key: &MaskedKey) -> Vec<usize> {
    std::thread::scope(|scope| scope.spawn(|| Probe::new().search(key)).join()).expect("searched")
}

/// The four quarters of a key that begins at `address`.
fn quarters(address: usize) -> Vec<usize> {
    (0..4).map(|quarter| address + quarter * 16).collect()
}

/// Leaves the key on the stack, 16 KiB below the caller, as any careless function does somewhere.
#[inline(never)]
fn use_on_the_stack(key: &MaskedKey) {
    use_below(key, 16);
}

/// Leaves the key on the stack, so many KiB below the caller.
#[inline(never)]
fn use_below(key: &MaskedKey, kibibytes: u32) {
    let mut room = [0; 1024];
    match kibibytes.checked_sub(1) {
        Some(further) => use_below(key, further),
        None => key.unmask_to(room.first_chunk_mut().expect("room for a key")),
    }
    black_box(&room);
}

#[test]
fn r19_secret_is_in_its_page_only_and_nowhere_after_drop() {
    let Some(part) = alone("r19_secret_is_in_its_page_only_and_nowhere_after_drop") else { return };
    let key = MaskedKey::random();
    assert_eq!(search(&key), []);
    let secret = key.secret_on(backing_of(&part));
    let address = secret.expose(|bytes| bytes.as_ptr() as usize);
    assert_eq!(search(&key), quarters(address));
    drop(secret);
    assert_eq!(search(&key), []);
}

#[test]
fn r19_locked_value_is_in_its_page_only_and_nowhere_after_drop() {
    struct RoundKeys([u8; 64], u32);
    let Some(part) = alone("r19_locked_value_is_in_its_page_only_and_nowhere_after_drop") else { return };
    let key = MaskedKey::random();
    let locked = Locked::new_on(backing_of(&part), || {
        use_on_the_stack(&key);
        let mut keys = RoundKeys([0; 64], 14);
        key.unmask_to(&mut keys.0);
        black_box(&keys);
        keys
    });
    let locked = locked.expect("locked memory");
    let address = locked.expose(|keys| keys.0.as_ptr() as usize);
    assert_eq!(search(&key), quarters(address));
    assert_eq!(locked.expose(|keys| keys.1), 14);
    drop(locked);
    assert_eq!(search(&key), []);
}

#[test]
fn secret_is_nowhere_after_its_making_failed() {
    let Some(part) = alone("secret_is_nowhere_after_its_making_failed") else { return };
    let key = MaskedKey::random();
    let failed = Secret::<64>::init_on(backing_of(&part), |bytes| {
        key.unmask_to(bytes);
        use_on_the_stack(&key);
        assert!(search(&key).len() >= 4);
        Err(KeyMemError { step: "test", source: std::io::Error::other("on purpose") })
    });
    assert!(failed.is_err());
    assert_eq!(search(&key), []);
}

#[test]
fn scrub_overwrites_what_a_function_left_on_the_stack() {
    let Some(_) = alone("scrub_overwrites_what_a_function_left_on_the_stack") else { return };
    let key = MaskedKey::random();
    assert_eq!(search(&key), []);
    use_on_the_stack(&key);
    assert_ne!(search(&key), [], "a function leaves its locals behind");
    use_on_the_stack(&key);
    scrub_stack();
    assert_eq!(search(&key), []);
}
