//! What can be typed after `sealblk key` (docs/CLI.md).

use std::path::PathBuf;

use clap::{Args, Subcommand};
use sealblk_kms::local::{KeySpec, KeyUsage};
use sealblk_kms::{GrantOperation, Principal};

use crate::args::RootProtectionArgs;

#[derive(Subcommand)]
pub(crate) enum KeyCommand {
    /// Show what protects the key store's root key, or protect it in another way, without touching keys or volumes
    #[command(after_help = "\
Examples:
  sealblk key root-protection
  sealblk key root-protection passphrase
  sealblk key root-protection passphrase --passphrase-fd 0 --new-passphrase-fd 0 <old-and-new
  sealblk key root-protection file")]
    RootProtection(RootProtectionArgs),
    /// Create a key and print its ARN
    #[command(after_help = "\
Examples:
  KEY=$(sealblk key create --description 'backup volumes' --alias alias/backup)
  sealblk volume create --size 1TiB --encrypted --kms-key-id $KEY")]
    Create(CreateKeyArgs),
    /// List the keys
    #[command(after_help = "\
Examples:
  sealblk key list")]
    List,
    /// Show all about a key but its policy and grants; `alias/aws/ebs` is the default key
    #[command(after_help = "\
Examples:
  sealblk key describe alias/aws/ebs
  sealblk key describe 1234abcd-12ab-34cd-56ef-1234567890ab --output json")]
    Describe {
        /// Id, ARN, alias name or alias ARN
        key: String,
    },
    /// Give a key another description
    #[command(after_help = "\
Examples:
  sealblk key update-description 1234abcd-12ab-34cd-56ef-1234567890ab 'old databases'")]
    UpdateDescription {
        /// Id or ARN
        key: String,
        /// Free text to know it by
        description: String,
    },
    /// Make a disabled key usable again
    #[command(after_help = "\
Examples:
  sealblk key enable 1234abcd-12ab-34cd-56ef-1234567890ab")]
    Enable {
        /// Id or ARN
        key: String,
    },
    /// Make a key unusable: volumes under it can no longer be attached; those that are attached go on
    #[command(after_help = "\
Examples:
  sealblk key disable 1234abcd-12ab-34cd-56ef-1234567890ab
  sealblk key disable 1234abcd-12ab-34cd-56ef-1234567890ab --force")]
    Disable {
        /// Id or ARN
        key: String,
        /// Although volumes depend on it (see: sealblk key users)
        #[arg(long)]
        force: bool,
    },
    /// List what depends on a key, attached or not; also for a key that is gone, and for keys of other services
    #[command(after_help = "\
Examples:
  sealblk key users alias/backup
  sealblk key users transit:https://vault.example:8200/transit/keys/ebs --output json | jq -r '.Volumes[].VolumeId'")]
    Users {
        /// Id, ARN, alias, or the URI of a key of another service
        key: String,
    },
    /// Give a key new material for new data keys, now; what is there stays readable and as it is
    #[command(after_help = "\
Examples:
  sealblk key rotate 1234abcd-12ab-34cd-56ef-1234567890ab")]
    Rotate {
        /// Id or ARN
        key: String,
    },
    /// Rotate a key by a schedule from now on
    #[command(after_help = "\
Examples:
  sealblk key enable-rotation 1234abcd-12ab-34cd-56ef-1234567890ab
  sealblk key enable-rotation 1234abcd-12ab-34cd-56ef-1234567890ab --rotation-period-in-days 90")]
    EnableRotation {
        /// Id or ARN
        key: String,
        /// How often, 90 to 2560 days [default: what it was, else 365]
        #[arg(long, value_name = "DAYS")]
        rotation_period_in_days: Option<u32>,
    },
    /// No longer rotate a key by a schedule
    #[command(after_help = "\
Examples:
  sealblk key disable-rotation 1234abcd-12ab-34cd-56ef-1234567890ab")]
    DisableRotation {
        /// Id or ARN
        key: String,
    },
    /// Show whether a key is rotated by a schedule, and when next
    #[command(after_help = "\
Examples:
  sealblk key rotation-status 1234abcd-12ab-34cd-56ef-1234567890ab")]
    RotationStatus {
        /// Id or ARN
        key: String,
    },
    /// List a key's materials: the first, and one for each rotation
    #[command(after_help = "\
Examples:
  sealblk key list-rotations 1234abcd-12ab-34cd-56ef-1234567890ab")]
    ListRotations {
        /// Id or ARN
        key: String,
    },
    /// Destroy a key, and with it all data under it, after a waiting period; until then it cannot be used
    #[command(after_help = "\
Examples:
  sealblk key schedule-deletion 1234abcd-12ab-34cd-56ef-1234567890ab
  sealblk key schedule-deletion 1234abcd-12ab-34cd-56ef-1234567890ab --pending-window-in-days 7")]
    ScheduleDeletion {
        /// Id or ARN
        key: String,
        /// The waiting period, 7 to 30 days
        #[arg(long, value_name = "DAYS", default_value = "30")]
        pending_window_in_days: u32,
        /// Although volumes depend on it (see: sealblk key users)
        #[arg(long)]
        force: bool,
    },
    /// Keep a key that is waiting for its deletion; it is disabled then
    #[command(after_help = "\
Examples:
  sealblk key cancel-deletion 1234abcd-12ab-34cd-56ef-1234567890ab
  sealblk key enable 1234abcd-12ab-34cd-56ef-1234567890ab")]
    CancelDeletion {
        /// Id or ARN
        key: String,
    },
    /// Create, move, delete and list aliases
    #[command(subcommand)]
    Alias(AliasCommand),
    /// Create, list, retire and revoke grants
    #[command(subcommand)]
    Grants(GrantsCommand),
    /// Read and change the policies of keys and of principals
    #[command(subcommand)]
    Policy(PolicyCommand),
}

#[derive(Args)]
pub(crate) struct CreateKeyArgs {
    /// Free text to know it by
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) description: String,
    /// The kind of key; only SYMMETRIC_DEFAULT can be used for volumes
    #[arg(long, value_name = "SPEC", default_value = "SYMMETRIC_DEFAULT", value_parser = parse_spec)]
    pub(crate) key_spec: KeySpec,
    /// What it is for, where the kind leaves a choice: ENCRYPT_DECRYPT, SIGN_VERIFY, KEY_AGREEMENT
    #[arg(long, value_name = "USAGE", value_parser = parse_usage)]
    pub(crate) key_usage: Option<KeyUsage>,
    /// The key policy, a JSON file [default: the pool's owner may do everything, others what their policies allow]
    #[arg(long, value_name = "FILE")]
    pub(crate) policy: Option<PathBuf>,
    /// A name for it: alias/NAME
    #[arg(long, value_name = "ALIAS")]
    pub(crate) alias: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum AliasCommand {
    /// Give a key a name
    #[command(after_help = "\
Examples:
  sealblk key alias create alias/backup 1234abcd-12ab-34cd-56ef-1234567890ab")]
    Create {
        /// alias/NAME; alias/aws/ is reserved
        alias: String,
        /// Id or ARN
        key: String,
    },
    /// Make a name mean another key; volumes keep the key that they were made under
    #[command(after_help = "\
Examples:
  sealblk key alias update alias/backup 1234abcd-12ab-34cd-56ef-1234567890ab")]
    Update {
        /// alias/NAME
        alias: String,
        /// Id or ARN
        key: String,
    },
    /// Forget a name; the key stays
    #[command(after_help = "\
Examples:
  sealblk key alias delete alias/backup")]
    Delete {
        /// alias/NAME
        alias: String,
    },
    /// List all names, or those of one key
    #[command(after_help = "\
Examples:
  sealblk key alias list")]
    List {
        /// Id or ARN
        key: Option<String>,
    },
}

#[derive(Subcommand)]
pub(crate) enum GrantsCommand {
    /// Let a principal use a key, and print the grant's id
    #[command(after_help = "\
Examples:
  sealblk key grants create $KEY --grantee-principal uid:1000 --operations Decrypt,DescribeKey
  sealblk key grants create $KEY --grantee-principal host:a --operations Decrypt \\
    --encryption-context-equals aws:ebs:id=vol-0123456789abcdef0")]
    Create(CreateGrantArgs),
    /// List a key's grants
    #[command(after_help = "\
Examples:
  sealblk key grants list 1234abcd-12ab-34cd-56ef-1234567890ab")]
    List {
        /// Id or ARN
        key: String,
        /// Only those of this principal
        #[arg(long, value_name = "PRINCIPAL")]
        grantee_principal: Option<String>,
        /// Only this one
        #[arg(long, value_name = "ID")]
        grant_id: Option<String>,
    },
    /// List the grants, of all keys, that a principal may retire
    #[command(after_help = "\
Examples:
  sealblk key grants list-retirable uid:1000")]
    ListRetirable {
        /// uid:N, host:NAME or account:DIGITS
        #[arg(value_parser = parse_principal)]
        principal: Principal,
    },
    /// End a grant that is no longer needed
    #[command(after_help = "\
Examples:
  sealblk key grants retire $KEY $GRANT
  sealblk key grants retire --grant-token $TOKEN")]
    Retire {
        /// Id or ARN
        #[arg(required_unless_present = "grant_token", requires = "grant")]
        key: Option<String>,
        /// The grant's id
        grant: Option<String>,
        /// The grant, by a token that its creation gave
        #[arg(long, value_name = "TOKEN", conflicts_with_all = ["key", "grant"])]
        grant_token: Option<String>,
    },
    /// Take a grant away; an attachment that has its data key goes on
    #[command(after_help = "\
Examples:
  sealblk key grants revoke $KEY $GRANT")]
    Revoke {
        /// Id or ARN
        key: String,
        /// The grant's id
        grant: String,
    },
}

#[derive(Args)]
pub(crate) struct CreateGrantArgs {
    /// Id or ARN
    pub(crate) key: String,
    /// Who is allowed: uid:N, host:NAME or account:DIGITS
    #[arg(long, value_name = "PRINCIPAL", value_parser = parse_principal)]
    pub(crate) grantee_principal: Principal,
    /// What is allowed, separated by commas: Decrypt, GenerateDataKeyWithoutPlaintext, ReEncryptFrom, CreateGrant, …
    #[arg(long, value_name = "OPERATIONS", required = true, value_delimiter = ',', value_parser = parse_operation)]
    pub(crate) operations: Vec<GrantOperation>,
    /// Who may retire it, besides the grantee that may and the owner
    #[arg(long, value_name = "PRINCIPAL", value_parser = parse_principal)]
    pub(crate) retiring_principal: Option<Principal>,
    /// Only calls whose encryption context has this pair; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair, conflicts_with = "encryption_context_equals")]
    pub(crate) encryption_context_subset: Vec<(String, String)>,
    /// Only calls whose encryption context is this pair and no other; may be repeated for more pairs
    #[arg(long, value_name = "KEY=VALUE", value_parser = parse_pair)]
    pub(crate) encryption_context_equals: Vec<(String, String)>,
    /// Asking again under the same name gives the same grant
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
}

#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show a key's policy
    #[command(after_help = "\
Examples:
  sealblk key policy get 1234abcd-12ab-34cd-56ef-1234567890ab")]
    Get {
        /// Id or ARN
        key: String,
    },
    /// Give a key another policy
    #[command(after_help = "\
Examples:
  sealblk key policy put 1234abcd-12ab-34cd-56ef-1234567890ab policy.json")]
    Put {
        /// Id or ARN
        key: String,
        /// A policy in AWS's JSON form
        file: PathBuf,
    },
    /// Give a principal a policy, or replace the one of that name
    #[command(after_help = "\
Examples:
  sealblk key policy put-identity uid:1000 volumes policy.json")]
    PutIdentity {
        /// uid:N, host:NAME or account:DIGITS
        #[arg(value_parser = parse_principal)]
        principal: Principal,
        /// The policy's name
        name: String,
        /// A policy in AWS's JSON form, without Principal
        file: PathBuf,
    },
    /// Show a principal's policies
    #[command(after_help = "\
Examples:
  sealblk key policy get-identity uid:1000")]
    GetIdentity {
        /// uid:N, host:NAME or account:DIGITS
        #[arg(value_parser = parse_principal)]
        principal: Principal,
    },
    /// Take a policy from a principal
    #[command(after_help = "\
Examples:
  sealblk key policy delete-identity uid:1000 volumes")]
    DeleteIdentity {
        /// uid:N, host:NAME or account:DIGITS
        #[arg(value_parser = parse_principal)]
        principal: Principal,
        /// The policy's name
        name: String,
    },
    /// List the principals that have policies
    #[command(after_help = "\
Examples:
  sealblk key policy list-identities")]
    ListIdentities,
}

fn parse_spec(text: &str) -> Result<KeySpec, String> {
    one_of(&KeySpec::ALL, KeySpec::name, text)
}

fn parse_usage(text: &str) -> Result<KeyUsage, String> {
    one_of(&KeyUsage::ALL, KeyUsage::name, text)
}

fn one_of<T: Copy>(all: &[T], name: fn(T) -> String, text: &str) -> Result<T, String> {
    let found = all.iter().copied().find(|one| name(*one) == text);
    found.ok_or_else(|| all.iter().map(|one| name(*one)).collect::<Vec<_>>().join(", "))
}

fn parse_operation(text: &str) -> Result<GrantOperation, String> {
    serde_json::from_value(text.into()).map_err(|error| error.to_string())
}

fn parse_principal(text: &str) -> Result<Principal, String> {
    let principal = Principal(text.to_owned());
    let known = principal.is_well_formed();
    if known { Ok(principal) } else { Err("uid:1000, host:NAME or account:123456789012".to_owned()) }
}

fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned())).ok_or_else(|| "KEY=VALUE".to_owned())
}
