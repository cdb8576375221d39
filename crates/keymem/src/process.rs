//! What a process that holds keys forbids itself, beyond what the pages do.
//!
//! Called once by the binary, first thing in `main`. It is not about the pages: they keep out of dumps and
//! children without it. This keeps the rest of the process out too: stacks, registers, library heaps.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::set_no_new_privs;

use crate::KeyMemError;

/// Makes the process undumpable (`PR_SET_DUMPABLE` 0, `RLIMIT_CORE` 0, soft and hard) and unable to gain
/// privileges through `execve` (`PR_SET_NO_NEW_PRIVS`).
///
/// Undumpable also means: no `ptrace` and no `/proc/PID/mem` for another process without `CAP_SYS_PTRACE`,
/// of the same user or not. Both settings against dumps are needed: a `core_pattern` that pipes to a program
/// ignores a core limit of 0.
///
/// Call it before threads are started: `NO_NEW_PRIVS` belongs to the calling thread and to those started by
/// it. `execve` makes a process dumpable again (prctl(2)), so a child that gets keys calls this itself; the
/// other two are inherited. Calling it twice is harmless.
///
/// # Errors
/// The kernel refused one of the three; those before it stay in force.
pub fn harden_process() -> Result<(), KeyMemError> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(KeyMemError::at("make the process undumpable (PR_SET_DUMPABLE)"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(KeyMemError::at("forbid core dumps (RLIMIT_CORE)"))?;
    set_no_new_privs(true).map_err(KeyMemError::at("give up gaining privileges (PR_SET_NO_NEW_PRIVS)"))
}
