//! What others cannot see of a secret: a forked child, a tracer, a core dump.
//!
//! Every search has a positive control: the same means does find a key in ordinary memory.
#![allow(unsafe_code, reason = "fork and reading by address are what these tests are about")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sealblk_keymem::{Backing, Secret, harden_process};

mod process;
use process::{BACKINGS, MaskedKey, Probe, backing_of, expect_subject, run_subject, subject, vm_flags_at};

fn address_of(secret: &Secret<64>) -> usize {
    secret.expose(|bytes| bytes.as_ptr() as usize)
}

/// The key in ordinary memory.
fn on_the_heap(key: &MaskedKey) -> Box<[u8; 64]> {
    let mut bytes = Box::new([0; 64]);
    key.unmask_to(&mut bytes);
    bytes
}

#[test]
fn forked_child_has_neither_the_secret_nor_trouble_dropping_it() {
    const NAME: &str = "forked_child_has_neither_the_secret_nor_trouble_dropping_it";
    let Some(part) = subject() else {
        return BACKINGS.iter().for_each(|(kind, _)| expect_subject(NAME, kind));
    };
    let key = MaskedKey::random();
    let heap = on_the_heap(&key);
    let secret = key.secret_on(backing_of(&part));
    let (secret_at, heap_at) = (address_of(&secret), heap.as_ptr() as usize);
    let mut probe = Probe::new();
    assert!(probe.can_read(secret_at) && probe.can_read(heap_at));
    // SAFETY: the child uses system calls and `drop` of a secret (which makes one system call) and leaves by
    // `_exit`; it takes no lock and allocates nothing.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let inherited = i32::from(probe.can_read(heap_at));
        let leaked = i32::from(probe.can_read(secret_at));
        drop(secret);
        // SAFETY: ends the child at once, without running what belongs to the parent.
        unsafe { libc::_exit(leaked * 2 + inherited) };
    }
    let mut status = 0;
    // SAFETY: `status` is a place for one int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
    assert_eq!(libc::WEXITSTATUS(status), 1, "bit 0: heap inherited; bit 1: secret inherited");
    // The child's drop has not touched the parent's.
    assert_eq!(secret.expose(|bytes| key.found_in(bytes)), [0, 16, 32, 48]);
}

#[test]
fn secret_memory_cannot_be_read_through_proc_pid_mem() {
    let key = MaskedKey::random();
    let heap = on_the_heap(&key);
    let memory = File::open("/proc/self/mem").expect("/proc/self/mem");
    let read = |address: usize| {
        let mut bytes = [0; 64];
        let offset = u64::try_from(address).expect("an address");
        memory.read_exact_at(&mut bytes, offset).map(|()| key.found_in(&bytes).len())
    };
    assert_eq!(read(heap.as_ptr() as usize).expect("ordinary memory is readable"), 4);
    let weaker = key.secret_on(Backing::LockedAnonymous);
    assert_eq!(read(address_of(&weaker)).expect("so is anonymous memory, as documented"), 4);
    let secret = key.secret_on(Backing::SecretMemory);
    assert!(read(address_of(&secret)).is_err());
}

#[test]
fn secret_memory_cannot_be_read_by_another_process() {
    const NAME: &str = "secret_memory_cannot_be_read_by_another_process";
    if subject().is_none() {
        return expect_subject(NAME, "tracee");
    }
    let key = MaskedKey::random();
    let heap = on_the_heap(&key);
    let secret = key.secret_on(Backing::SecretMemory);
    let owner = std::process::id();
    let (secret_at, heap_at) = (address_of(&secret), heap.as_ptr() as usize);
    // SAFETY: the child uses two system calls and stack memory, and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let read = |address: usize| {
            let mut bytes = [0u8; 64];
            let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 64 };
            let remote = libc::iovec { iov_base: address as *mut _, iov_len: 64 };
            let owner = owner.cast_signed();
            // SAFETY: `local` is 64 writable bytes; the kernel checks `remote` in the other process.
            i32::from(
                unsafe { libc::process_vm_readv(owner, &raw const local, 1, &raw const remote, 1, 0) } == 64,
            )
        };
        let found = read(secret_at) * 2 + read(heap_at);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(found) };
    }
    let mut status = 0;
    // SAFETY: `status` is a place for one int.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 1, "heap only: {status:#x}");
}

/// The core files that a crashed subject left in `dir`.
fn core_files(dir: &Path) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(dir).expect("the directory");
    entries.map(|entry| std::fs::read(entry.expect("an entry").path()).expect("a core file")).collect()
}

/// Whether the kernel writes cores as files into the working directory.
fn cores_are_files_here() -> bool {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").expect("core_pattern");
    !pattern.starts_with(['|', '/', '@'])
}

#[test]
fn r12_core_dump_does_not_hold_the_key() {
    const NAME: &str = "r12_core_dump_does_not_hold_the_key";
    let Some(part) = subject() else {
        for (kind, _) in BACKINGS {
            let dir = tempfile::tempdir().expect("a directory");
            // Both processes need to know both keys: they are handed over in files outside the crash directory.
            let keys = tempfile::tempdir().expect("a directory");
            let (held, control) = (MaskedKey::random(), MaskedKey::random());
            held.save(&keys.path().join("held"));
            control.save(&keys.path().join("control"));
            let part = format!("{} {kind}", keys.path().display());
            let output = run_subject(NAME, &part, dir.path());
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
            if !cores_are_files_here() {
                continue; // The subject has checked the flag that leaves the pages out, and said so.
            }
            let cores = core_files(dir.path());
            assert_eq!(cores.len(), 1, "one core file: {output:?}");
            assert_ne!(control.found_in(&cores[0]), [], "the control is in the dump");
            assert_eq!(held.found_in(&cores[0]), [], "the secret is not");
        }
        return;
    };
    let keys = Path::new(part.split(' ').next().expect("a directory"));
    let unlimited = setrlimit(Resource::Core, Rlimit { current: None, maximum: None });
    let hard = getrlimit(Resource::Core).maximum;
    let up_to_hard = || setrlimit(Resource::Core, Rlimit { current: hard, maximum: hard });
    unlimited.or_else(|_| up_to_hard()).expect("dumps allowed as far as this user can");
    let heap = on_the_heap(&MaskedKey::load(&keys.join("control")));
    let secret = MaskedKey::load(&keys.join("held")).secret_on(backing_of(&part));
    assert!(vm_flags_at(address_of(&secret)).iter().any(|flag| flag == "dd"));
    std::hint::black_box(&heap);
    std::process::abort();
}

#[test]
fn r12_hardened_process_leaves_no_core_dump() {
    const NAME: &str = "r12_hardened_process_leaves_no_core_dump";
    let Some(_) = subject() else {
        let dir = tempfile::tempdir().expect("a directory");
        let output = run_subject(NAME, "crash", dir.path());
        assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{output:?}");
        assert!(!output.status.core_dumped());
        assert!(core_files(dir.path()).is_empty());
        return;
    };
    harden_process().expect("hardened");
    std::process::abort();
}
