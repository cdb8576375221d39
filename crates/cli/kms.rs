//! The key service of a pool: calls for volumes go through a child process each (`kms-helper`), administrative calls
//! are made here. Neither ever shows a data key to the process that calls.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use sealblk_control::{ControlError, PoolDirectory};
use sealblk_keymem::harden_process;
use sealblk_kms::helper::{HelperProgram, ProviderConfig, serve_helper};
use sealblk_kms::local::{LocalKms, RootKeyProtection, Scope};
use sealblk_kms::{Helpers, Principal, RoutedKms, Unlock};

use crate::exit::Failure;
use crate::place::Place;

/// The hidden command that serves one call.
pub(crate) const HELPER_COMMAND: &str = "kms-helper";
/// The program that speaks to AWS KMS; it is beside this one.
const AWS_HELPER: &str = "sealblk-kms-aws";

/// The pool's key service for volumes: every call in a child, of this very binary or of AWS KMS's.
pub(crate) fn for_volumes(pool: &PoolDirectory, place: &Place) -> Result<RoutedKms, Failure> {
    Ok(for_key_file(pool)?.unlocked_by(unlock(pool, place)?))
}

/// The same, for a pool whose root key is known to be in a key file.
pub(crate) fn for_key_file(pool: &PoolDirectory) -> Result<RoutedKms, Failure> {
    let program = std::env::current_exe()
        .map_err(|source| Failure::Control(ControlError::Start { what: "the key helper", source }))?;
    let aws = program.with_file_name(AWS_HELPER);
    let helpers = Helpers {
        own: HelperProgram { path: program, args: vec![HELPER_COMMAND.into()], environment: Vec::new() },
        aws: HelperProgram { path: aws, args: Vec::new(), environment: aws_environment() },
    };
    let local = ProviderConfig::Local { dir: pool.key_store(), scope: scope(pool), caller: caller() };
    let others = pool.other_key_stores()?.into_iter().map(|(account, dir)| (account.to_string(), dir));
    Ok(RoutedKms::new(local, &pool.key_providers(), helpers).with_other_accounts(others))
}

/// What AWS's standard chain of credentials and settings looks at.
fn aws_environment() -> Vec<(OsString, OsString)> {
    let others = ["HOME", "PATH", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"];
    std::env::vars_os()
        .filter(|(name, _)| {
            name.to_str().is_some_and(|name| name.starts_with("AWS_") || others.contains(&name))
        })
        .collect()
}

/// The pool's embedded key store, for what is done to keys themselves.
pub(crate) fn store(pool: &PoolDirectory, place: &Place) -> Result<LocalKms, Failure> {
    harden_process().map_err(ControlError::from)?;
    Ok(open_store(pool)?.unlocked_by(unlock(pool, place)?))
}

fn open_store(pool: &PoolDirectory) -> Result<LocalKms, Failure> {
    Ok(LocalKms::open(&pool.key_store(), scope(pool), caller())?)
}

/// Whether a root key that a call may need takes a person to open: the account's, or that of an account whose key it uses.
pub(crate) fn asks_for_a_passphrase(pool: &PoolDirectory) -> bool {
    let asks =
        |store: LocalKms| matches!(store.root_key_protection(), Ok(Some(RootKeyProtection::Passphrase(_))));
    let others = pool.other_key_stores().unwrap_or_default();
    let mut others = others.values().filter_map(|dir| LocalKms::open(dir, scope(pool), caller()).ok());
    open_store(pool).is_ok_and(asks) || others.any(asks)
}

/// What opens the root key. A passphrase is asked for only if there is one to be known, and not before it is needed.
fn unlock(pool: &PoolDirectory, place: &Place) -> Result<Unlock, Failure> {
    // Of a store that does not open the calls themselves tell; what needs no key goes on without.
    let asks = asks_for_a_passphrase(pool);
    if asks {
        // Before there is a passphrase in this process.
        harden_process().map_err(ControlError::from)?;
    }
    Ok(Unlock { passphrase: asks.then(|| Arc::clone(&place.source)), credentials: place.credentials.clone() })
}

/// Serves one call for the parent process.
pub(crate) fn serve() -> Result<(), Failure> {
    harden_process().map_err(ControlError::from)?;
    // The standard library would keep a passphrase in its buffer.
    let unbuffered = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    Ok(serve_helper(unbuffered, io::stdout(), ProviderConfig::open)?)
}

fn scope(pool: &PoolDirectory) -> Scope {
    let record = pool.record();
    Scope { region: record.region.clone(), account: pool.account().to_string() }
}

fn caller() -> Principal {
    Principal(format!("uid:{}", rustix::process::geteuid().as_raw()))
}
