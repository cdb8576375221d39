//! `sealblk bench`: a machine's own figures in a minute. How fast its cipher kernels are, and what encryption
//! costs of a volume's speed, without any other program. scripts/bench compares with others (docs/BENCHMARKS.md).

mod cipher;
mod load;
mod machine;
mod pinning;
mod report;
mod scratch;
mod server;
mod tax;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use sealblk_control::ControlError;
use sealblk_keymem::harden_process;
use sealblk_xts::CipherError;
use tokio::sync::watch;

use crate::args::BenchArgs;
use crate::exit::Failure;
use crate::output::Output;
use load::LoadError;
use machine::Machine;
use report::Report;
use scratch::Scratch;
use server::Volumes;

/// The share of the time that the cipher kernels get.
const CIPHER_SHARE: f64 = 0.25;

/// A load average from which on others take what is to be measured.
const BUSY: f64 = 0.5;

/// Why a measurement came to no end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The load on a volume.
    #[error(transparent)]
    Load(LoadError),
    /// There is no cipher.
    #[error(transparent)]
    Cipher(#[from] CipherError),
    /// Somebody wants it to stop.
    #[error("interrupted: there are no figures")]
    Interrupted,
    /// Threads could not be bound to processors.
    #[error("cannot bind threads to processors")]
    Pinning(#[from] io::Error),
}

impl From<LoadError> for BenchError {
    fn from(error: LoadError) -> Self {
        match error {
            LoadError::Interrupted => Self::Interrupted,
            error => Self::Load(error),
        }
    }
}

/// Measures this machine.
pub(crate) fn run(args: &BenchArgs, output: &Output) -> Result<(), Failure> {
    // As a process that serves is: it costs what it costs.
    harden_process().map_err(ControlError::from)?;
    let scratch = Scratch::new(args.directory.as_deref(), args.size.saturating_mul(2))?;
    let machine = Machine::this();
    let time = Duration::from_secs(args.seconds.into());
    let volumes = Volumes { directory: scratch.path(), bytes: args.size, direct: args.direct };
    let report = while_served(&volumes, |interrupted| {
        // From here on a signal ends it in order.
        output.text_note(&format!("measuring for about {} seconds", args.seconds));
        if machine.load_average > BUSY {
            output.note(&format!(
                "this machine is busy (load {:.1}): figures will be too low, and ratios wrong",
                machine.load_average
            ));
        }
        let cipher = cipher::measure(time.mul_f64(CIPHER_SHARE), interrupted)?;
        let (tax, latency) = tax::measure(&volumes, time.mul_f64(1.0 - CIPHER_SHARE), interrupted)?;
        Ok(Report::new(args, machine, cipher, tax, latency))
    })?;
    Ok(output.result(&report, || report.text())?)
}

/// Does `measure` while both volumes are served; then ends serving them, whatever came of it.
///
/// What `measure` is given becomes true when a signal asks for the end.
fn while_served<T>(
    volumes: &Volumes<'_>,
    measure: impl FnOnce(&AtomicBool) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let interrupted = AtomicBool::new(false);
    let (stop, stopped) = watch::channel(false);
    let (ready, is_ready) = mpsc::channel();
    thread::scope(|scope| {
        let server = scope.spawn(|| {
            // Moved in, so that the measurement learns of an end before it was ready.
            let ready = ready;
            volumes.serve(&ready, &stopped, &interrupted)
        });
        let measured = is_ready.recv().ok().map(|()| measure(&interrupted));
        stop.send_replace(true);
        let served = server.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match measured {
            // A load that failed because its server did has the lesser story to tell.
            Some(measured) => served.and(measured),
            None => {
                Err(served.err().unwrap_or_else(|| Failure::usage("the server ended before it was ready")))
            }
        }
    })
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    let upper = figures.len() / 2;
    let lower = figures.len().saturating_sub(1) / 2;
    match (figures.get(lower), figures.get(upper)) {
        (Some(lower), Some(upper)) => (lower + upper) / 2.0,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]).to_bits(), 2.5_f64.to_bits());
        assert_eq!(median(Vec::new()).to_bits(), 0.0_f64.to_bits());
    }
}
