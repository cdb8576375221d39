//! The command `sealblk`: argv to a call into `sealblk-control`, a result to stdout, an error to an exit code.
//!
//! Only this package prints, reads the environment and exits; it decides nothing about volumes or keys.
//! docs/CLI.md is its contract.
#![forbid(unsafe_code)]

mod args;
mod attach;
mod audit;
mod bench;
mod endpoint_args;
mod exit;
mod image;
mod inherited;
mod init;
mod key;
mod kms;
mod manual;
mod output;
mod passphrase;
mod place;
mod progress;
mod providers;
mod repository_args;
mod restore;
mod rewrap;
mod settings;
mod size;
mod snapshot;
mod stats;
mod volume;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use exit::Failure;
use output::Output;
use place::Place;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return exit::usage(&error),
    };
    let mode = cli.global.output;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(mode),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let output = Output::new(cli.global.output, cli.global.quiet);
    match cli.command {
        Command::Init(args) => init::run(&args, &Place::find(&cli.global)?, &output),
        Command::Volume(command) => volume::run(command, &Place::find(&cli.global)?, &output),
        Command::Snapshot(command) => snapshot::run(command, &Place::find(&cli.global)?, &output),
        Command::Key(command) => key::run(command, &Place::find(&cli.global)?, &output),
        Command::Kms(command) => providers::run(command, &Place::find(&cli.global)?, &output),
        Command::Settings(command) => settings::run(command, &Place::find(&cli.global)?, &output),
        Command::Audit(command) => audit::run(command, &Place::find(&cli.global)?, &output),
        Command::Bench(args) => bench::run(&args, &output),
        Command::Completions { shell } => manual::completions(shell, &output),
        Command::Man { dir } => manual::pages(dir.as_deref(), &output),
        Command::KmsHelper => kms::serve(),
        Command::RestoreHelper => restore::serve_helper(),
    }
}
