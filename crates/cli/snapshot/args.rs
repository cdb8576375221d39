//! What can be typed after `sealblk snapshot`.

use clap::{Args, Subcommand};

use super::copy::CopyArgs;
use super::share::ShareArgs;
use crate::repository_args::RepositoryArgs;

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Save a volume as it is at this moment, attached or not, and print the snapshot's id
    #[command(after_help = "\
Examples:
  SNAP=$(sealblk snapshot create vol-0123456789abcdef0)
  sealblk snapshot create vol-0123456789abcdef0 --description 'before the upgrade'
  sealblk snapshot create vol-0123456789abcdef0 --repository s3://backups/host1
  sealblk snapshot create vol-0123456789abcdef0 --resume snap-0123456789abcdef0

Clients go on reading and writing meanwhile. Only what has changed since the volume's last snapshot is stored. No key
service is asked: an encrypted volume's blocks are stored as they are, encrypted. Interrupted, by Ctrl-C or a lost store, it can
be gone on with (--resume) or deleted.")]
    Create(CreateArgs),
    /// Copy a snapshot: to encrypt it, to put it under another key, or to have it in another pool
    #[command(after_help = "\
Examples:
  sealblk snapshot copy snap-0123456789abcdef0 --encrypted
  sealblk snapshot copy snap-0123456789abcdef0 --encrypted --kms-key-id alias/archive
  sealblk --pool /srv/berlin snapshot copy snap-0123456789abcdef0 --source-pool /srv/paris
  sealblk snapshot copy --resume snap-0fedcba9876543210

Interrupted, the copy is pending: --resume goes on with it, `sealblk snapshot delete` gives it up.")]
    Copy(CopyArgs),
    /// List the account's snapshots, in whatever state
    #[command(after_help = "\
Examples:
  sealblk snapshot list
  sealblk snapshot list --volume vol-0123456789abcdef0
  sealblk snapshot list --shared-with-me
  sealblk snapshot list --output json | jq -r '.Snapshots[] | select(.State == \"pending\") | .SnapshotId'")]
    List(ListArgs),
    /// Show everything known about a snapshot
    #[command(after_help = "\
Examples:
  sealblk snapshot describe snap-0123456789abcdef0
  sealblk snapshot describe snap-0123456789abcdef0 --output json | jq -r .KmsKeyId")]
    Describe(OneArgs),
    /// Delete a snapshot and free what no other snapshot needs; others stay whole, those made upon it too
    #[command(after_help = "\
Examples:
  sealblk snapshot delete snap-0123456789abcdef0

One that a restore or another snapshot in progress needs is closed at once, and gone when that is over.")]
    Delete(OneArgs),
    /// Let other accounts make volumes and copies of a snapshot; an encrypted one needs their use of its key as well
    #[command(after_help = "\
Examples:
  sealblk snapshot share snap-0123456789abcdef0 --account-id 222222222222
  sealblk snapshot share snap-0123456789abcdef0 --public

An encrypted snapshot is never public, and one under the managed key alias/aws/ebs is not shared at all: share a copy under a key
of your own, whose policy lets the other account use it.")]
    Share(ShareArgs),
    /// Take that back; what others have made of the snapshot stays theirs
    #[command(after_help = "\
Examples:
  sealblk snapshot unshare snap-0123456789abcdef0 --account-id 222222222222
  sealblk snapshot unshare snap-0123456789abcdef0 --public")]
    Unshare(ShareArgs),
    /// See that snapshots are as they were made; exits with 1 and names what is missing or damaged if they are not
    #[command(after_help = "\
Examples:
  sealblk snapshot verify snap-0123456789abcdef0 --deep
  sealblk snapshot verify --all
  sealblk snapshot verify --all --remove-unreferenced")]
    Verify(VerifyArgs),
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// The volume's id
    #[arg(value_name = "VOL")]
    pub(crate) volume: String,
    /// What is to be known of it
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub(crate) description: String,
    /// Go on with this snapshot of the volume, which was interrupted
    #[arg(long, value_name = "SNAP", conflicts_with = "description")]
    pub(crate) resume: Option<String>,
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only those of this volume
    #[arg(long, value_name = "VOL")]
    pub(crate) volume: Option<String>,
    /// Those of other accounts that this one may use, instead of its own
    #[arg(long)]
    pub(crate) shared_with_me: bool,
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
}

#[derive(Args)]
pub(crate) struct OneArgs {
    /// The snapshot's id
    #[arg(value_name = "SNAP")]
    pub(crate) snapshot: String,
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// The snapshot's id
    #[arg(value_name = "SNAP", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) snapshot: Option<String>,
    /// All snapshots, and whether anything is stored that none needs
    #[arg(long)]
    pub(crate) all: bool,
    /// Read every block and check its hash; otherwise only that it is there, in its size
    #[arg(long)]
    pub(crate) deep: bool,
    /// Remove what no snapshot needs: what processes left that were killed at a bad moment
    #[arg(long, requires = "all")]
    pub(crate) remove_unreferenced: bool,
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
}
