//! Killing a command at each of its durable steps.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::pool::Pool;
use super::process::{require, run};

/// What makes a step durable, or is the last before it.
pub const STEPS: &str = "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,linkat";

/// `sealblk` with these arguments, killed at the `step`th call of one of its threads that is in `calls`. Whether it got
/// through.
pub fn killed_at(pool: &Pool, calls: &str, step: usize, args: &[&str]) -> bool {
    killed(pool, calls, None, step, args)
}

/// The same of calls that name `path`.
pub fn killed_at_path(pool: &Pool, calls: &str, path: &Path, step: usize, args: &[&str]) -> bool {
    killed(pool, calls, Some(path), step, args)
}

fn killed(pool: &Pool, calls: &str, path: Option<&Path>, step: usize, args: &[&str]) -> bool {
    let command = pool.command(args);
    let mut traced = Command::new(require("strace"));
    traced.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("trace={calls}")]);
    traced.args(["-e", &format!("inject={calls}:signal=KILL:when={step}")]);
    traced.args(path.into_iter().flat_map(|path| [OsStr::new("-P"), path.as_os_str()]));
    traced.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    run(&mut traced).status.success()
}
