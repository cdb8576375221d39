//! The helper program for AWS KMS: answers one call of a parent `sealblk`, and ends. Not for people.
#![forbid(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use sealblk_keymem::harden_process;
use sealblk_kms::helper::serve_helper;

fn main() -> ExitCode {
    match serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
            // Nothing can be done about a stderr that is gone; the exit code still tells.
            let _ = writeln!(io::stderr().lock(), "error: {error}{cause}");
            ExitCode::FAILURE
        }
    }
}

fn serve() -> Result<(), Box<dyn std::error::Error>> {
    harden_process()?;
    // The standard library would keep a passphrase in its buffer.
    let unbuffered = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(serve_helper(unbuffered, io::stdout(), sealblk_kms_aws::open)?)
}
