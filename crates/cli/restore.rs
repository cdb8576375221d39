//! Restoring volumes from snapshots: the hidden helper that reads a snapshot for a serving process, and `volume restore`.

use std::fmt;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::{env, io, thread};

use sealblk_control::{
    ControlError, Pool, RestoreEvent, RestoreEvents, RestoreProgram, Stop, VolumeDescription, VolumeId,
    serve_restore_helper, with_causes,
};
use sealblk_keymem::harden_process;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;
use crate::output::Output;
use crate::progress::Progress;
use crate::repository_args::credentials;

/// The hidden command that reads a snapshot.
pub(crate) const HELPER_COMMAND: &str = "restore-helper";

/// `pool`, able to restore its volumes from snapshots wherever they are.
pub(crate) fn able_to_restore(pool: Pool) -> Result<Pool, Failure> {
    let path =
        env::current_exe().map_err(|source| ControlError::Start { what: "the restore helper", source })?;
    let program = RestoreProgram { path, args: vec![HELPER_COMMAND.to_owned()] };
    Ok(pool.with_restore_program(program).with_store_environment(credentials()))
}

/// Reads a snapshot for the parent process, which is at the other end of standard input.
pub(crate) fn serve_helper() -> Result<(), Failure> {
    harden_process().map_err(ControlError::from)?;
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(serve_restore_helper(socket, credentials())?)
}

/// Brings all blocks of a volume.
pub(crate) fn run(pool: &Pool, volume: VolumeId, output: &Output) -> Result<(), Failure> {
    let volume = to_the_end(pool, volume, output)?;
    Ok(output.result(&volume, || format!("{} restored", volume.volume_id))?)
}

/// The same, with a progress bar. Ctrl-C stops it in order.
pub(crate) fn to_the_end(
    pool: &Pool,
    volume: VolumeId,
    output: &Output,
) -> Result<VolumeDescription, Failure> {
    let stop = Stop::default();
    stop_on_signals(stop.clone())?;
    let mut progress = Progress::new("restoring", output);
    Ok(pool.restore_volume(volume, &mut |done, total| progress.report(done, total), &stop)?)
}

fn stop_on_signals(stop: Stop) -> Result<(), Failure> {
    let failed = |source| ControlError::Start { what: "the watch for signals", source };
    let io = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let caught = {
        let _inside = io.enter();
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    };
    let (mut interrupt, mut terminate) = (caught.0.map_err(failed)?, caught.1.map_err(failed)?);
    let wait = move || {
        io.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        });
        stop.request();
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(())
}

/// What is told of a restoration while the volume is served.
pub(crate) fn tell(volume: VolumeId, output: Output) -> RestoreEvents {
    Box::new(move |event| output.note(&format!("{volume}: {}", Told(event))))
}

struct Told<'a>(&'a RestoreEvent);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            RestoreEvent::Trouble(error) => {
                write!(f, "warning: {error}; it is missing until that can be read")
            }
            RestoreEvent::Complete(snapshot) => write!(f, "restored; {snapshot} is not needed any more"),
            RestoreEvent::Unfinished(error) => {
                write!(f, "warning: restored, but not all is done: {}", with_causes(error))
            }
        }
    }
}
