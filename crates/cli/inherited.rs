//! What the process was started with: listening sockets that a service manager made (`LISTEN_FDS`,
//! sd_listen_fds(3)), and a client on standard input and output.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sealblk_control::InheritedClient;

/// The sockets that were passed to this process, by descriptors of our own; none if there are none.
///
/// A number from the environment is not yet a file that is ours: the kernel is asked for a second descriptor of
/// whatever has that number in this very process, which fails cleanly if nothing has.
pub(crate) fn listening_sockets() -> io::Result<Vec<OwnedFd>> {
    let numbers = sd_notify::listen_fds()?;
    if numbers.len() == 0 {
        return Ok(Vec::new());
    }
    let this_process = pidfd_open(getpid(), PidfdFlags::empty())?;
    let own = |number| Ok(pidfd_getfd(&this_process, number, PidfdGetfdFlags::empty())?);
    numbers.map(own).collect()
}

/// Whoever is at the other end of standard input and output.
pub(crate) fn client() -> io::Result<InheritedClient> {
    Ok(InheritedClient {
        from: io::stdin().as_fd().try_clone_to_owned()?,
        to: io::stdout().as_fd().try_clone_to_owned()?,
    })
}
