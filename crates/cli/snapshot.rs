//! `sealblk snapshot …`.

pub(crate) mod args;
mod copy;
mod interrupt;

pub(crate) use self::args::SnapshotCommand;
use crate::exit::Failure;
use crate::output::Output;
use crate::place::Place;

/// Does what `sealblk snapshot` was asked for.
pub(crate) fn run(command: SnapshotCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Copy(args) => copy::run(&args, place, output),
    }
}
