//! Running programs, in bounded time.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Nothing that a test runs to its end takes longer on the slowest machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// A program that has ended.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Finished {
    /// Its standard output; it must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.status.success(), "{self}");
        self.stdout
    }

    /// Its standard error; it must have failed with `code`.
    #[track_caller]
    pub fn refused(self, code: i32) -> String {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self.stderr
    }

    /// Its standard error and output; it must have failed in whatever way.
    #[track_caller]
    pub fn failed(self) -> String {
        assert!(!self.status.success(), "{self}");
        self.stderr + &self.stdout
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}\nstdout: {}\nstderr: {}", self.what, self.status, self.stdout, self.stderr)
    }
}

/// Runs `command` to its end, without standard input.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    let mut output = tempfile::tempfile().expect("a file for the output");
    let mut errors = tempfile::tempfile().expect("a file for the errors");
    let handle = |file: &File| file.try_clone().expect("a second handle of the file");
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(handle(&output))
        .stderr(handle(&errors))
        .spawn()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let status = wait_within(&mut child, PATIENCE);
    let text = |file: &mut File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("the output can be read");
        String::from_utf8_lossy(&bytes).into_owned()
    };
    let (stdout, stderr) = (text(&mut output), text(&mut errors));
    let Some(status) = status else {
        panic!("{what} did not end within {PATIENCE:?}\nstdout: {stdout}\nstderr: {stderr}");
    };
    Finished { status, stdout, stderr, what }
}

/// Waits for `child` to end; kills it and says `None` if it does not within `limit`.
pub fn wait_within(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let ended = ends_within(child, limit);
    if !ended {
        child.kill().expect("a child that was not waited for can be killed");
    }
    let status = child.wait().expect("a child can be waited for");
    ended.then_some(status)
}

/// Whether `child` ends within `limit`.
fn ends_within(child: &Child, limit: Duration) -> bool {
    let pid = Pid::from_child(child);
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).expect("the kernel has pidfds");
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("a limit of minutes fits");
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return ready > 0,
            Err(Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// Which package has a program, for the message when it is missing.
const PACKAGES: &[(&str, &str)] = &[
    ("nbdinfo", "libnbd-bin"),
    ("nbdcopy", "libnbd-bin"),
    ("nbdsh", "libnbd-bin and python3-libnbd"),
    ("openssl", "openssl"),
    ("qemu-img", "qemu-utils"),
    ("qemu-io", "qemu-utils"),
    ("nbd-client", "nbd-client"),
    ("fio", "fio"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("cpio", "cpio"),
    ("losetup", "mount"),
    ("strace", "strace"),
    ("mkfs.ext4", "e2fsprogs"),
    ("e2fsck", "e2fsprogs"),
    ("softhsm2-util", "softhsm2"),
    ("pkcs11-tool", "opensc"),
];

/// The program's name again; fails the test, with the way to get it, if it is not there.
#[track_caller]
pub fn require(program: &str) -> &str {
    let dirs = format!("/usr/bin:/usr/sbin:/bin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let there = dirs.split(':').any(|dir| Path::new(dir).join(program).is_file());
    let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
    assert!(there, "{program} is missing: scripts/install-tools, or apt-get install {package}");
    program
}

/// A foreign program, found in the system's directories first: libnbd's Python module belongs to the system's
/// Python, not to another one that may come earlier in PATH.
#[track_caller]
pub fn foreign(program: &str) -> Command {
    let path = format!("/usr/bin:/usr/sbin:/bin:/sbin:{}", std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new(require(program));
    command.env("PATH", path);
    command
}
