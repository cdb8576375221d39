//! Completion scripts and manual pages, made from the same definition as `--help`.

use std::fs;
use std::path::Path;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::args::Cli;
use crate::exit::Failure;
use crate::output::Output;

/// Writes the completion script of `shell` to stdout.
pub(crate) fn completions(shell: Shell, output: &Output) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sealblk", &mut script);
    Ok(output.line(&String::from_utf8_lossy(&script))?)
}

/// Writes the manual page of every command into `dir`, or that of `sealblk` to stdout.
pub(crate) fn pages(dir: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let Some(dir) = dir else {
        let mut page = Vec::new();
        clap_mangen::Man::new(Cli::command()).render(&mut page)?;
        return Ok(output.line(&String::from_utf8_lossy(&page))?);
    };
    let write = || {
        fs::create_dir_all(dir)?;
        clap_mangen::generate_to(Cli::command(), dir)
    };
    write().map_err(|source| Failure::file("cannot write the manual pages to", dir, source))
}
