//! `sealblk settings …`: the account's defaults, and what can be typed after it.

use std::collections::BTreeMap;
use std::sync::Arc;

use clap::Subcommand;
use sealblk_control::{Pool, PoolDirectory, RepositoryPlace, Settings};
use serde_json::json;

use crate::exit::Failure;
use crate::kms;
use crate::output::Output;
use crate::place::Place;
use crate::repository_args::NamedRepository;

#[derive(Subcommand)]
pub(crate) enum SettingsCommand {
    /// Whether new volumes and copies of snapshots are encrypted even if nobody asks
    #[command(subcommand)]
    EncryptionByDefault(ByDefaultCommand),
    /// The key that wraps data keys where no other is named
    #[command(subcommand)]
    DefaultKmsKey(DefaultKeyCommand),
    /// Where snapshots are kept: in the pool, in another directory, or in an S3-compatible store
    #[command(subcommand)]
    Repository(RepositoryCommand),
}

#[derive(Subcommand)]
pub(crate) enum ByDefaultCommand {
    /// Say whether it is on
    #[command(after_help = "\
Examples:
  sealblk settings encryption-by-default get")]
    Get,
    /// Encrypt every new volume and copy; nothing that exists changes
    #[command(after_help = "\
Examples:
  sealblk settings encryption-by-default enable")]
    Enable,
    /// Encrypt only where it is asked for, or the source is encrypted
    #[command(after_help = "\
Examples:
  sealblk settings encryption-by-default disable")]
    Disable,
}

#[derive(Subcommand)]
pub(crate) enum DefaultKeyCommand {
    /// Name it: alias/aws/ebs, or the ARN of the key chosen instead
    #[command(after_help = "\
Examples:
  sealblk settings default-kms-key get")]
    Get,
    /// Choose another; volumes that exist keep theirs
    #[command(after_help = "\
Examples:
  sealblk settings default-kms-key modify alias/customers")]
    Modify {
        /// Id, ARN, alias or URI of a symmetric key that is usable now
        key: String,
    },
    /// Go back to the managed key, alias/aws/ebs
    #[command(after_help = "\
Examples:
  sealblk settings default-kms-key reset")]
    Reset,
}

#[derive(Subcommand)]
pub(crate) enum RepositoryCommand {
    /// Say where snapshots are kept where no other place is named
    #[command(after_help = "\
Examples:
  sealblk settings repository get
  sealblk settings repository get --output json | jq -r .Location")]
    Get,
    /// Keep snapshots there from now on; those elsewhere stay where they are
    #[command(after_help = "\
Examples:
  sealblk settings repository set /srv/snapshots
  sealblk settings repository set s3://backups/host1 --repository-option endpoint=https://s3.example.com

Credentials are not stored: they come from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, …) of each command.")]
    Set(NamedRepository),
    /// Keep snapshots in the pool from now on
    #[command(after_help = "\
Examples:
  sealblk settings repository reset")]
    Reset,
}

/// Does what `sealblk settings` was asked for.
pub(crate) fn run(command: SettingsCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    let directory = place.open_pool()?;
    match command {
        SettingsCommand::EncryptionByDefault(command) => {
            let settings = match command {
                ByDefaultCommand::Get => directory.settings()?,
                ByDefaultCommand::Enable => directory.set_encryption_by_default(true)?,
                ByDefaultCommand::Disable => directory.set_encryption_by_default(false)?,
            };
            by_default(&settings, output)
        }
        SettingsCommand::DefaultKmsKey(command) => {
            let settings = match command {
                DefaultKeyCommand::Get => directory.settings()?,
                DefaultKeyCommand::Modify { key } => {
                    let kms = kms::for_volumes(&directory, place)?;
                    Pool::new(directory, Arc::new(kms)).modify_default_kms_key(&key)?
                }
                DefaultKeyCommand::Reset => directory.reset_default_kms_key()?,
            };
            default_key(&settings, output)
        }
        SettingsCommand::Repository(command) => {
            let settings = match command {
                RepositoryCommand::Get => directory.of_region().settings()?,
                RepositoryCommand::Set(named) => directory.set_snapshot_repository(&named.place()?)?,
                RepositoryCommand::Reset => directory.reset_snapshot_repository()?,
            };
            repository(&directory, &settings, output)
        }
    }
}

fn repository(directory: &PoolDirectory, settings: &Settings, output: &Output) -> Result<(), Failure> {
    let place = RepositoryPlace::own(directory).location().to_string();
    let (location, options) = match settings.snapshot_repository() {
        Some(name) => (name.location.clone(), name.options.clone()),
        None => (place, BTreeMap::new()),
    };
    let document = json!({ "Location": location, "Options": options });
    Ok(output.result(&document, || {
        let options = options.iter().map(|(name, value)| format!(" {name}={value}"));
        format!("{location}{}", options.collect::<String>())
    })?)
}

fn by_default(settings: &Settings, output: &Output) -> Result<(), Failure> {
    let on = settings.ebs_encryption_by_default;
    let text = if on { "enabled" } else { "disabled" };
    Ok(output.result(&json!({ "EbsEncryptionByDefault": on }), || text.to_owned())?)
}

fn default_key(settings: &Settings, output: &Output) -> Result<(), Failure> {
    let key = settings.default_kms_key();
    Ok(output.result(&json!({ "KmsKeyId": key }), || key.to_owned())?)
}
