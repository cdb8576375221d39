//! `sealblk snapshot copy`: from one repository or pool to another, or in place, under the key that is asked for.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use sealblk_control::{
    ControlError, CopiedSnapshot, CopyExplanation, CopyRun, CopySnapshot, Pool, PoolDirectory,
    RepositoryPlace, SnapshotId,
};
use sealblk_keymem::harden_process;

use super::interrupt::stop_on_signals;
use crate::exit::Failure;
use crate::kms;
use crate::output::{Output, fields};
use crate::place::Place;
use crate::progress::Progress;
use crate::repository_args::{RepositoryArgs, credentials, parse_option};
use crate::size::show_bytes;

/// What is copied, and what it becomes.
#[derive(Args)]
pub(crate) struct CopyArgs {
    /// The snapshot to copy
    #[arg(value_name = "SNAP", required_unless_present = "resume", conflicts_with = "resume")]
    snapshot: Option<String>,
    /// Go on with this copy, which was interrupted
    #[arg(
        long,
        value_name = "SNAP",
        conflicts_with_all = ["encrypted", "no_encrypted", "kms_key_id", "description", "explain"]
    )]
    resume: Option<String>,
    /// Encrypt the copy, under the default key unless --kms-key-id names another
    #[arg(long, conflicts_with = "no_encrypted")]
    encrypted: bool,
    /// Leave the copy of an unencrypted snapshot unencrypted; that of an encrypted one is encrypted all the same
    #[arg(long)]
    no_encrypted: bool,
    /// The key that wraps the copy's data key: id, ARN or alias; needs --encrypted
    #[arg(long, value_name = "KEY")]
    kms_key_id: Option<String>,
    /// What is to be said of the copy
    #[arg(long, value_name = "TEXT", default_value = "")]
    description: String,
    /// The pool that the snapshot, and the key that it is encrypted under, belong to, if not this one
    #[arg(long, value_name = "DIR")]
    source_pool: Option<PathBuf>,
    /// The repository that the snapshot is in [default: that of --source-pool, else the copy's own]
    #[arg(long, value_name = "DIR|S3")]
    source_repository: Option<String>,
    /// How that repository's store is reached, as --repository-option; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_option, requires = "source_repository")]
    source_repository_option: Vec<(String, String)>,
    /// Only say whether the copy would be encrypted, under which key and why; copy nothing
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    repository: RepositoryArgs,
}

/// Copies, or goes on copying.
pub(super) fn run(args: &CopyArgs, place: &Place, output: &Output) -> Result<(), Failure> {
    let directory = place.open_pool()?;
    let into = open(&directory, args.repository.place(&directory)?, place)?;
    let from = source(args, &directory, place)?;
    if let Some(copy) = &args.resume {
        let copy = id(copy)?;
        return make(output, |run| into.resume_copy(from.as_ref(), copy, run));
    }
    let request = CopySnapshot {
        source: id(args.snapshot.as_deref().unwrap_or_default())?,
        encrypted: match (args.encrypted, args.no_encrypted) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        },
        kms_key_id: args.kms_key_id.clone(),
        description: args.description.clone(),
    };
    let from = from.as_ref().unwrap_or(&into);
    if args.explain {
        let explanation = into.explain_copy_snapshot(from, &request)?;
        return Ok(output.result(&explanation, || explain(&explanation))?);
    }
    make(output, |run| into.copy_snapshot(from, &request, run))
}

fn id(text: &str) -> Result<SnapshotId, Failure> {
    Ok(text.parse().map_err(ControlError::MalformedId)?)
}

fn open(directory: &PoolDirectory, repository: RepositoryPlace, place: &Place) -> Result<Pool, Failure> {
    let kms = kms::for_volumes(directory, place)?;
    let pool = Pool::new(directory.clone(), Arc::new(kms));
    Ok(pool.with_repository(repository).with_store_environment(credentials()))
}

/// Where the source is, if it is said to be elsewhere.
fn source(args: &CopyArgs, own: &PoolDirectory, place: &Place) -> Result<Option<Pool>, Failure> {
    let directory = match &args.source_pool {
        Some(path) => existing(path, place)?,
        None if args.source_repository.is_none() => return Ok(None),
        None => own.clone(),
    };
    let repository = match &args.source_repository {
        Some(location) => {
            let repository = Some(location.clone());
            let repository_option = args.source_repository_option.clone();
            RepositoryArgs { repository, repository_option }.place(&directory)?
        }
        // Not what the environment says: that is where this pool's are.
        None => match directory.of_region().settings()?.snapshot_repository() {
            Some(name) => RepositoryPlace::named(name.clone(), credentials())?,
            None => RepositoryPlace::own(&directory),
        },
    };
    open(&directory, repository, place).map(Some)
}

/// A pool that is there already: one must not come into being by a mistyped name.
fn existing(path: &Path, place: &Place) -> Result<PoolDirectory, Failure> {
    let path = std::path::absolute(path)?;
    if !path.join("pool.json").exists() {
        return Err(Failure::usage(format!("--source-pool: there is no pool at {}", path.display())));
    }
    let pool = PoolDirectory::open_or_create(&path)?;
    Ok(match &place.account {
        Some(account) => pool.acting_as(account.clone())?,
        None => pool,
    })
}

fn make(
    output: &Output,
    copy: impl FnOnce(&CopyRun<'_>) -> Result<CopiedSnapshot, ControlError>,
) -> Result<(), Failure> {
    // Before any key is asked for.
    harden_process().map_err(ControlError::from)?;
    let stop = stop_on_signals()?;
    let progress = RefCell::new(Progress::new("copying", output));
    let begun = Cell::new(None);
    let run = CopyRun {
        begun: &|copy| begun.set(Some(copy)),
        progress: &|done, total| progress.borrow_mut().report(done, total),
        stop: &stop,
    };
    let copied = copy(&run);
    drop(progress);
    match copied {
        Ok(copied) => tell(&copied, output),
        Err(error) => {
            if let Some(copy) = begun.get() {
                output.note(&format!(
                    "{copy} is not complete: `sealblk snapshot copy --resume {copy}` goes on, `sealblk snapshot delete {copy}` gives it up"
                ));
            }
            Err(error.into())
        }
    }
}

fn tell(copied: &CopiedSnapshot, output: &Output) -> Result<(), Failure> {
    let snapshot = &copied.snapshot;
    output.result(copied, || snapshot.snapshot_id.to_string())?;
    let key = snapshot.kms_key_id.as_ref();
    let how = key.map_or("not encrypted".to_owned(), |key| format!("encrypted under {key}"));
    let moved = show_bytes(copied.transferred_bytes);
    let base = if copied.incremental { ", the rest was there" } else { "" };
    output.text_note(&format!("{how}; {moved} written{base}"));
    Ok(())
}

fn explain(explanation: &CopyExplanation) -> String {
    let yes = |yes| if yes { "yes" } else { "no" }.to_owned();
    let mut pairs = vec![("Encrypted", yes(explanation.encrypted))];
    pairs.extend(explanation.kms_key_id.as_ref().map(|key| ("KmsKeyId", key.clone())));
    pairs.push(("Reason", explanation.reason.to_owned()));
    pairs.extend(explanation.incremental_on.map(|copy| ("IncrementalOn", copy.to_string())));
    fields(&pairs)
}
