//! What `harden_process` leaves a process unable to do.

use rustix::process::{DumpableBehavior, Resource, Rlimit, dumpable_behavior, getrlimit, setrlimit};
use rustix::thread::no_new_privs;
use sealblk_keymem::harden_process;

mod process;
use process::{expect_subject, subject};

#[test]
fn hardened_process_is_undumpable_has_no_core_limit_and_gains_no_privileges() {
    const NAME: &str = "hardened_process_is_undumpable_has_no_core_limit_and_gains_no_privileges";
    if subject().is_none() {
        return expect_subject(NAME, "harden");
    }
    assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::Dumpable), "else this shows nothing");
    assert_eq!(no_new_privs(), Ok(false), "else this shows nothing");
    harden_process().expect("hardened");
    assert_eq!(dumpable_behavior(), Ok(DumpableBehavior::NotDumpable));
    assert_eq!(getrlimit(Resource::Core), Rlimit { current: Some(0), maximum: Some(0) });
    assert_eq!(no_new_privs(), Ok(true));
    assert_eq!(std::thread::spawn(no_new_privs).join().expect("a thread"), Ok(true));
}

#[test]
fn hardening_twice_and_after_a_core_limit_of_zero_is_harmless() {
    const NAME: &str = "hardening_twice_and_after_a_core_limit_of_zero_is_harmless";
    if subject().is_none() {
        return expect_subject(NAME, "harden");
    }
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).expect("a lower limit");
    harden_process().expect("hardened");
    harden_process().expect("hardened again");
}
