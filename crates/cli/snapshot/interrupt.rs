//! Ctrl-C on a long operation: the first asks it to stop cleanly, the second ends the process.

use sealblk_control::{ControlError, Stop};
use tokio::signal::unix::{SignalKind, signal};

use crate::exit::Failure;

/// What a shell reports of a command that was interrupted.
const INTERRUPTED: i32 = 130;

/// A request to stop, made at the first SIGINT, SIGTERM or SIGHUP.
pub(crate) fn stop_on_signals() -> Result<Stop, Failure> {
    let failed = |source| ControlError::Start { what: "waiting for signals", source };
    let stop = Stop::default();
    let asked = stop.clone();
    let io = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let [mut interrupt, mut terminate, mut hangup] = {
        let _inside = io.enter();
        let catch = |kind| signal(kind).map_err(failed);
        [catch(SignalKind::interrupt())?, catch(SignalKind::terminate())?, catch(SignalKind::hangup())?]
    };
    let wait = move || {
        io.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if asked.is_requested() {
                    // What is stored is whole at every moment; only the next command has more to clean up.
                    std::process::exit(INTERRUPTED);
                }
                asked.request();
            }
        });
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait).map_err(failed)?;
    Ok(stop)
}
