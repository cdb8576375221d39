//! One conversation with a helper process: start it, write the request, read the reply, see it end; all of it before
//! a deadline. It waits in `poll` on the pipes and on the process itself, never by sleeping.
//!
//! Nothing is read ahead: what the caller has not asked for stays in the pipe, so that a data key's only copy in this
//! process is where the caller wants it. The process runs in a group of its own, which is killed if it has not ended
//! by itself, so that nothing it started outlives the call.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How much of the helper's standard error is kept for the error message, in bytes.
const STDERR_BYTES_MAX: usize = 2048;

/// What went wrong with the helper itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("could not be started")]
    Start(#[source] io::Error),
    #[error("did not finish within {} ms and was killed", .0.as_millis())]
    TimedOut(Duration),
    #[error("broke off in the middle of {0}{1}")]
    ShortReply(&'static str, Ending),
    #[error("wrote {0} bytes of key instead of 64{1}")]
    ShortKey(usize, Ending),
    #[error("wrote {0} bytes of key instead of 64")]
    KeyBytes(usize),
    #[error("wrote more than 64 bytes of key")]
    LongKey,
    #[error("gave a key whose two halves are equal")]
    EqualHalves,
    #[error("wrote bytes after the end of its reply")]
    LongReply,
    #[error("announced a reply of more than 1 MiB")]
    HugeReply,
    #[error("wrote something that is not a reply: {0}")]
    Garbage(String),
    #[error("answered another question")]
    OtherAnswer,
    #[error("takes no plaintext key from this process")]
    NoPlaintext,
    #[error("replied, but then failed{0}")]
    FailedAfterReply(Ending),
    #[error("cannot be talked to")]
    Io(#[from] io::Error),
    #[error("gave a key that no locked memory could be had for")]
    KeyMemory(#[from] sealblk_keymem::KeyMemError),
}

/// How the helper ended and what it said on standard error, as the end of a message.
#[derive(Debug)]
pub(crate) struct Ending(String);

#[cfg(any(test, feature = "fuzzing"))]
impl Ending {
    /// That of a helper which has nothing to say.
    pub(super) fn well() -> Self {
        Self(" (exit status 0)".to_owned())
    }
}

impl std::fmt::Display for Ending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// How a program is started.
#[derive(Clone, Copy)]
pub(crate) struct Start<'r> {
    pub(crate) program: &'r Path,
    pub(crate) args: &'r [OsString],
    /// All of its environment.
    pub(crate) environment: &'r [(OsString, OsString)],
    /// What it is given on standard input, before end of file.
    pub(crate) request: &'r [u8],
    /// From now to its end.
    pub(crate) timeout: Duration,
}

/// A running helper. Dropped before it has ended, it is killed with its group and reaped.
pub(crate) struct Exchange<'r> {
    child: Child,
    /// Readable once the process has ended.
    ended: OwnedFd,
    stdin: Option<ChildStdin>,
    request: &'r [u8],
    stdout: OwnedFd,
    stderr: Option<OwnedFd>,
    said: Vec<u8>,
    timeout: Duration,
    deadline: Instant,
    reaped: bool,
    /// `send_with` is writing: nobody else does.
    sending: bool,
}

impl<'r> Exchange<'r> {
    /// Starts the program with three pipes; it will be given the request.
    pub(crate) fn start(how: &Start<'r>) -> Result<Self, Fault> {
        let &Start { program, args, environment, request, timeout } = how;
        let deadline = Instant::now() + timeout;
        let mut command = Command::new(program);
        command.args(args).env_clear().process_group(0);
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Fault::Start)?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("standard output was made a pipe").into();
        let stderr = child.stderr.take().map(OwnedFd::from);
        let ended = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(ended) => ended,
            Err(error) => {
                kill(&mut child);
                return Err(io::Error::from(error).into());
            }
        };
        let said = Vec::new();
        let (reaped, sending) = (false, false);
        let exchange =
            Self { child, ended, stdin, request, stdout, stderr, said, timeout, deadline, reaped, sending };
        for pipe in
            [exchange.stdin.as_ref().map(AsFd::as_fd), Some(exchange.stdout.as_fd()), exchange.stderr_fd()]
        {
            pipe.map_or(Ok(()), unblock)?;
        }
        Ok(exchange)
    }

    /// Writes the request and `secret` behind it, the latter straight from where it is. A helper that does not take them
    /// is judged by its reply.
    pub(super) fn send_with(&mut self, secret: &[u8]) -> Result<(), Fault> {
        self.sending = true;
        for mut part in [std::mem::take(&mut self.request), secret] {
            while let Some(pipe) = self.stdin.as_ref().filter(|_| !part.is_empty()) {
                match rustix::io::write(pipe, part) {
                    Ok(written) => part = part.get(written..).unwrap_or_default(),
                    Err(Errno::AGAIN) => self.wait(Awaited::Room)?,
                    Err(Errno::INTR) => {}
                    Err(_) => self.stdin = None,
                }
            }
        }
        self.stdin = None;
        Ok(())
    }

    /// Reads until `buffer` is full or the helper has closed its output; the number of bytes read.
    pub(crate) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match rustix::io::read(&self.stdout, rest) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::AGAIN) => self.wait(Awaited::Output)?,
                Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(filled)
    }

    /// Sees the helper close its output and exit with status 0.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        if self.fill(&mut [0])? != 0 {
            return Err(Fault::LongReply);
        }
        let status = self.status()?;
        if status.success() { Ok(()) } else { Err(Fault::FailedAfterReply(self.describe(status))) }
    }

    /// The exit status, waiting for it; `None` if a signal ended it.
    pub(crate) fn code(&mut self) -> Result<Option<i32>, Fault> {
        Ok(self.status()?.code())
    }

    /// How the helper ended, waiting for it: for the message about a reply that stopped short.
    pub(crate) fn ending(&mut self) -> Result<Ending, Fault> {
        let status = self.status()?;
        Ok(self.describe(status))
    }

    fn status(&mut self) -> Result<ExitStatus, Fault> {
        self.wait(Awaited::End)?;
        self.drain_stderr();
        let status = self.child.wait()?;
        self.reaped = true;
        Ok(status)
    }

    fn describe(&self, status: ExitStatus) -> Ending {
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!(" (exit status {code}"),
            (None, signal) => format!(" (killed by signal {}", signal.unwrap_or_default()),
        };
        let said = String::from_utf8_lossy(&self.said);
        let said = said.trim().escape_debug();
        Ending(if self.said.is_empty() { format!("{how})") } else { format!("{how}, saying: {said})") })
    }

    /// Waits for one of two things; meanwhile writes the request and takes in standard error.
    fn wait(&mut self, awaited: Awaited) -> Result<(), Fault> {
        loop {
            if !self.sending {
                self.write_request();
            }
            self.drain_stderr();
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Fault::TimedOut(self.timeout));
            }
            let first = match (awaited, &self.stdin) {
                (Awaited::Output, _) => PollFd::new(&self.stdout, PollFlags::IN),
                (Awaited::Room, Some(pipe)) => PollFd::new(pipe, PollFlags::OUT),
                (Awaited::Room, None) => return Ok(()),
                (Awaited::End, _) => PollFd::new(&self.ended, PollFlags::IN),
            };
            let mut fds = vec![first];
            fds.extend(self.stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT)));
            fds.extend(self.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
            let timeout =
                Timespec::try_from(left).unwrap_or(Timespec { tv_sec: i64::from(i32::MAX), tv_nsec: 0 });
            match poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
            if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
                return Ok(());
            }
        }
    }

    /// Writes what the pipe takes of the request and closes it after the last byte. A helper that does not read it is
    /// judged by its reply.
    fn write_request(&mut self) {
        while let Some(pipe) = &self.stdin {
            match rustix::io::write(pipe, self.request) {
                Ok(written) => self.request = self.request.get(written..).unwrap_or_default(),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => continue,
                Err(_) => self.request = &[],
            }
            if self.request.is_empty() {
                self.stdin = None;
            }
        }
    }

    fn drain_stderr(&mut self) {
        let mut chunk = [0; 512];
        while let Some(pipe) = &self.stderr {
            match rustix::io::read(pipe, &mut chunk[..]) {
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR) => {}
                Ok(0) | Err(_) => self.stderr = None,
                Ok(count) => {
                    let room = STDERR_BYTES_MAX.saturating_sub(self.said.len());
                    self.said.extend(chunk.iter().take(count.min(room)));
                }
            }
        }
    }

    fn stderr_fd(&self) -> Option<BorrowedFd<'_>> {
        self.stderr.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        if !self.reaped {
            kill(&mut self.child);
        }
    }
}

/// What `wait` waits for.
#[derive(Clone, Copy)]
enum Awaited {
    Output,
    /// Room for more of what is sent, or nobody to take it.
    Room,
    End,
}

/// Kills the group and reaps its leader. Errors mean that it has ended already.
fn kill(child: &mut Child) {
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
    let _ = child.wait();
}

fn unblock(pipe: BorrowedFd<'_>) -> Result<(), Fault> {
    let flags = fcntl_getfl(pipe).map_err(io::Error::from)?;
    fcntl_setfl(pipe, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
    Ok(())
}
