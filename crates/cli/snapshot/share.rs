//! `sealblk snapshot share`, `unshare`: who else may make volumes and copies of a snapshot.

use clap::Args;
use sealblk_control::{ControlError, Group, Permission, Pool, ShareWith, SnapshotDescription};

use super::id;
use crate::exit::Failure;
use crate::output::Output;
use crate::repository_args::RepositoryArgs;

#[derive(Args)]
pub(crate) struct ShareArgs {
    /// The snapshot's id
    #[arg(value_name = "SNAP")]
    snapshot: String,
    /// The account, 12 digits; may be given several times
    #[arg(long, value_name = "ID", required_unless_present = "public", conflicts_with = "public", num_args = 1..)]
    account_id: Vec<String>,
    /// Every account; never of an encrypted snapshot
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
}

impl ShareArgs {
    /// Reads the accounts. Not clap's business: a malformed one has an error code of its own.
    fn with(&self) -> Result<ShareWith, Failure> {
        if self.public {
            return Ok(ShareWith::Everybody);
        }
        let accounts = self.account_id.iter().map(|account| account.parse());
        Ok(ShareWith::Accounts(accounts.collect::<Result<_, _>>().map_err(ControlError::from)?))
    }
}

/// Shares a snapshot.
pub(super) fn share(pool: &Pool, args: &ShareArgs, output: &Output) -> Result<(), Failure> {
    let shared = pool.share_snapshot(id(&args.snapshot)?, &args.with()?)?;
    show(&shared, output)?;
    if let Some(key) = &shared.kms_key_id {
        output.text_note(&format!(
            "they also need the key: its policy must let them use {key} (sealblk key policy)"
        ));
    }
    Ok(())
}

/// Takes it back.
pub(super) fn unshare(pool: &Pool, args: &ShareArgs, output: &Output) -> Result<(), Failure> {
    show(&pool.unshare_snapshot(id(&args.snapshot)?, &args.with()?)?, output)
}

fn show(snapshot: &SnapshotDescription, output: &Output) -> Result<(), Failure> {
    Ok(output
        .result(snapshot, || format!("{} is shared with {}", snapshot.snapshot_id, recipients(snapshot)))?)
}

/// Whom a snapshot is shared with, in words.
pub(super) fn recipients(snapshot: &SnapshotDescription) -> String {
    let names: Vec<String> = snapshot.create_volume_permissions.iter().map(name).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

fn name(permission: &Permission) -> String {
    match permission {
        Permission::UserId(account) => account.to_string(),
        Permission::Group(Group::All) => "everybody".to_owned(),
    }
}
