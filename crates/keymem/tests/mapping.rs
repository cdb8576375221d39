//! What the kernel says about the mapping of a secret, and what it does about guard pages, writes and limits.
#![allow(unsafe_code, reason = "touching what must not be touched is what these tests are about")]

use std::io::Write;
use std::os::unix::process::ExitStatusExt;

use rustix::process::{Resource, Rlimit, setrlimit};
use sealblk_keymem::{Backing, DataKey, KeyMemError, Locked, Secret, backing};

mod process;
use process::{
    BACKINGS, MaskedKey, Probe, backing_of, expect_subject, mapping_at, mappings, run_subject, subject,
    vm_flags_at,
};

fn address_of(secret: &Secret<64>) -> usize {
    secret.expose(|bytes| bytes.as_ptr() as usize)
}

#[test]
fn pages_are_locked_not_dumped_not_inherited_and_read_only() {
    for (_, backing) in BACKINGS {
        let secret = MaskedKey::random().secret_on(backing);
        let address = address_of(&secret);
        let flags = vm_flags_at(address);
        for wanted in ["lo", "dd", "dc", "rd"] {
            assert!(flags.iter().any(|flag| flag == wanted), "{backing:?} lacks {wanted}: {flags:?}");
        }
        assert!(!flags.iter().any(|flag| flag == "wr"), "{backing:?} is writable: {flags:?}");
        assert_eq!(mapping_at(address).name.contains("secretmem"), backing == Backing::SecretMemory);
    }
    let ordinary = vec![0u8; 1 << 20];
    let flags = vm_flags_at(ordinary.as_ptr() as usize);
    for other in ["lo", "dd", "dc"] {
        assert!(!flags.iter().any(|flag| flag == other), "the heap has {other} too: {flags:?}");
    }
}

#[test]
fn fill_and_value_see_memory_that_already_is_locked_and_excluded() {
    for (_, backing) in BACKINGS {
        let filled = Secret::<64>::init_on(backing, |bytes| {
            let flags = vm_flags_at(bytes.as_ptr() as usize);
            for wanted in ["lo", "dd", "dc", "wr"] {
                assert!(flags.iter().any(|flag| flag == wanted), "{backing:?} lacks {wanted}: {flags:?}");
            }
            Ok::<_, KeyMemError>(())
        });
        filled.expect("locked memory");
    }
}

#[test]
fn every_new_secret_gets_the_kind_of_memory_that_is_announced() {
    let secret = DataKey::init(|_| Ok::<_, KeyMemError>(())).expect("locked memory");
    assert_eq!(secret.backing(), backing());
    assert_eq!(Locked::new(|| 7u32).expect("locked memory").backing(), backing());
}

#[test]
fn value_ends_at_a_guard_page_and_pages_begin_behind_one() {
    for (_, backing) in BACKINGS {
        let secret = MaskedKey::random().secret_on(backing);
        let address = address_of(&secret);
        let body = mapping_at(address).range;
        assert_eq!(address + 64, body.end);
        let mut probe = Probe::new();
        assert!(probe.can_read(body.start) && probe.can_read(body.end - 1));
        assert!(!probe.can_read(body.start - 1) && !probe.can_read(body.end));
        assert_eq!(mapping_at(body.start - 1).access, "---p");
        assert_eq!(mapping_at(body.end).access, "---p");
    }
}

#[test]
fn touching_a_guard_page_or_writing_to_a_made_secret_ends_the_process() {
    const NAME: &str = "touching_a_guard_page_or_writing_to_a_made_secret_ends_the_process";
    let Some(part) = subject() else {
        let empty = tempfile::tempdir().expect("a directory");
        for (kind, _) in BACKINGS {
            // Reading the secret's own bytes is fine: the faults below are not for another reason.
            expect_subject(NAME, &format!("read {kind}"));
            for touch in ["before", "behind", "write"] {
                let output = run_subject(NAME, &format!("{touch} {kind}"), empty.path());
                assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{touch} {kind}: {output:?}");
            }
        }
        return;
    };
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).expect("no core file");
    let secret = MaskedKey::random().secret_on(backing_of(&part));
    let address = address_of(&secret);
    let body = mapping_at(address).range;
    let touched = match part.split(' ').next() {
        Some("read") => address,
        Some("before") => body.start - 1,
        Some("behind") => body.end,
        Some("write") => {
            // SAFETY: no reference to the byte is live; the page is read-only, so the write is a fault.
            unsafe { (address as *mut u8).write_volatile(1) };
            return;
        }
        _ => panic!("unknown part {part}"),
    };
    // SAFETY: a mapped address; where it is a guard page, the read is a fault.
    std::hint::black_box(unsafe { (touched as *const u8).read_volatile() });
}

#[test]
fn mapping_is_gone_after_a_drop_an_error_and_a_panic() {
    // Alone in its process, so that no other test's mappings come and go.
    if subject().is_none() {
        return expect_subject("mapping_is_gone_after_a_drop_an_error_and_a_panic", "count");
    }
    let ours = || mappings().iter().filter(|m| m.access == "---p" || m.name.contains("secretmem")).count();
    let before = ours();
    for (_, backing) in BACKINGS {
        let secret = MaskedKey::random().secret_on(backing);
        assert!(ours() > before);
        drop(secret);
        assert_eq!(ours(), before);
        let failed = Secret::<64>::init_on(backing, |_| {
            Err(KeyMemError { step: "test", source: std::io::Error::other("on purpose") })
        });
        assert!(failed.is_err());
        assert_eq!(ours(), before);
        let panicked =
            std::panic::catch_unwind(|| Locked::new_on(backing, || -> u32 { panic!("on purpose") }));
        assert!(panicked.is_err());
        assert_eq!(ours(), before);
    }
}

#[test]
fn read_system_call_fills_a_secret_without_a_detour() {
    for (_, backing) in BACKINGS {
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        writer.write_all(&[0xa5; 64]).expect("room in the pipe");
        let secret = Secret::<64>::init_on(backing, |bytes| {
            let read = rustix::io::read(&reader, bytes).expect("read into locked memory");
            assert_eq!(read, 64);
            Ok::<_, KeyMemError>(())
        });
        assert!(secret.expect("locked memory").expose(|bytes| *bytes == [0xa5; 64]));
    }
}

#[test]
fn hundred_secrets_fit_an_ordinary_users_limit() {
    const NAME: &str = "hundred_secrets_fit_an_ordinary_users_limit";
    let Some(part) = subject() else {
        return BACKINGS.iter().for_each(|(kind, _)| expect_subject(NAME, kind));
    };
    become_ordinary_user(8 << 20);
    let keys: Vec<_> = (0..100).map(|_| MaskedKey::random()).collect();
    let secrets: Vec<_> = keys.iter().map(|key| key.secret_on(backing_of(&part))).collect();
    for (key, secret) in keys.iter().zip(&secrets) {
        assert_eq!(secret.expose(|bytes| key.found_in(bytes)), [0, 16, 32, 48]);
    }
}

#[test]
fn failure_to_lock_is_an_error_that_names_the_limit() {
    const NAME: &str = "failure_to_lock_is_an_error_that_names_the_limit";
    let Some(part) = subject() else {
        return BACKINGS.iter().for_each(|(kind, _)| expect_subject(NAME, kind));
    };
    become_ordinary_user(64 << 10);
    let mut held = Vec::new();
    let error = loop {
        let made = Secret::<64>::init_on(backing_of(&part), |bytes| {
            bytes.fill(3);
            Ok::<_, KeyMemError>(())
        });
        match made {
            Ok(secret) => held.push(secret),
            Err(error) => break error,
        }
        assert!(held.len() < 100, "the limit does not bite");
    };
    assert_eq!(held.len(), 16, "64 KiB are 16 pages of one secret each");
    assert!(error.to_string().contains("RLIMIT_MEMLOCK"), "{error}");
    assert!(held.iter().all(|secret| secret.expose(|bytes| *bytes == [3; 64])));
    // Room again once one is dropped.
    held.pop();
    held.push(MaskedKey::random().secret_on(backing_of(&part)));
}

/// Gives up root, if it is root, and sets the limit of locked memory.
fn become_ordinary_user(locked_bytes: u64) {
    let limit = Rlimit { current: Some(locked_bytes), maximum: Some(locked_bytes) };
    setrlimit(Resource::Memlock, limit).expect("a lower limit");
    if rustix::process::getuid().is_root() {
        const NOBODY: libc::uid_t = 65534;
        // SAFETY: no memory is involved; all threads of the process change together (the C library's promise).
        assert_eq!(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) }, 0);
    }
}
