//! What can be typed after `sealblk snapshot`.

use clap::Subcommand;

use super::copy::CopyArgs;

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Copy a snapshot: to encrypt it, to put it under another key, or to have it in another pool
    #[command(after_help = "\
Examples:
  sealblk snapshot copy snap-0123456789abcdef0 --encrypted
  sealblk snapshot copy snap-0123456789abcdef0 --encrypted --kms-key-id alias/archive
  sealblk --pool /srv/berlin snapshot copy snap-0123456789abcdef0 --source-pool /srv/paris
  sealblk snapshot copy --resume snap-0fedcba9876543210

Interrupted, the copy is pending: --resume goes on with it, `sealblk snapshot delete` gives it up.")]
    Copy(CopyArgs),
}
