//! The key service of a pool: calls for volumes go through a child process each (`kms-helper`), administrative calls
//! are made here. Neither ever shows a data key to the process that calls.

use std::io;
use std::time::Duration;

use sealblk_control::{ControlError, PoolDirectory};
use sealblk_keymem::harden_process;
use sealblk_kms::Principal;
use sealblk_kms::helper::{HelperKms, ProviderConfig, serve_helper};
use sealblk_kms::local::{LocalKms, Scope};

use crate::exit::Failure;

/// The hidden command that serves one call.
pub(crate) const HELPER_COMMAND: &str = "kms-helper";
/// How long a key service may take to answer.
const CALL_TIME: Duration = Duration::from_secs(10);

/// The pool's key service for volumes: every call in a child of this very binary.
pub(crate) fn for_volumes(pool: &PoolDirectory) -> Result<HelperKms, Failure> {
    let program = std::env::current_exe()
        .map_err(|source| Failure::Control(ControlError::Start { what: "the key helper", source }))?;
    let provider = ProviderConfig::Local { dir: pool.key_store(), scope: scope(pool), caller: caller() };
    Ok(HelperKms { program, args: vec![HELPER_COMMAND.into()], provider, timeout: CALL_TIME })
}

/// The pool's embedded key store, for what is done to keys themselves.
pub(crate) fn store(pool: &PoolDirectory) -> Result<LocalKms, Failure> {
    harden_process().map_err(ControlError::from)?;
    Ok(LocalKms::open(&pool.key_store(), scope(pool), caller())?)
}

/// Serves one call for the parent process.
pub(crate) fn serve() -> Result<(), Failure> {
    harden_process().map_err(ControlError::from)?;
    Ok(serve_helper(io::stdin().lock(), io::stdout())?)
}

fn scope(pool: &PoolDirectory) -> Scope {
    let record = pool.record();
    Scope { region: record.region.clone(), account: record.account.clone() }
}

fn caller() -> Principal {
    Principal(format!("uid:{}", rustix::process::geteuid().as_raw()))
}
