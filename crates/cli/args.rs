//! The command line: what can be typed, and what `--help` says about it (docs/CLI.md). Nothing is done here.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sealblk_control::MetricsAddress;
use sealblk_volume::{InvalidName, VolumeName};

use crate::endpoint_args::{EndpointArgs, LimitArgs};
use crate::image::{ExportArgs, ImportArgs};
use crate::key::KeyCommand;
use crate::providers::KmsCommand;
use crate::repository_args::RepositoryArgs;
use crate::settings::SettingsCommand;
use crate::size::parse_size;
use crate::snapshot::SnapshotCommand;
use crate::stats::parse_interval;

/// Encrypted block volumes, the way Amazon EBS encrypts them.
///
/// A volume's data key is stored beside its data, wrapped by a key management service; it is unwrapped
/// when the volume is attached, lives in locked memory while it is, and is wiped when it is detached.
/// Guests and tools reach an attached volume over NBD.
#[derive(Parser)]
#[command(
    name = "sealblk",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  VOL=$(sealblk volume create --size 10GiB --encrypted)
  sealblk volume attach $VOL &
  nbdinfo \"nbd+unix:///$VOL?socket=/run/sealblk/$VOL.sock\"
  sealblk volume detach $VOL

Exit codes:
  0 done  1 failed  2 usage  3 not found  4 wrong state or in use  5 denied or key unusable
  6 key service or store unreachable"
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Heading of the options that every command has, so that they do not stand among its own.
const EVERYWHERE: &str = "Options of every command";

/// Options of every command.
#[derive(Args)]
pub(crate) struct Global {
    /// The pool's directory [default: $SEALBLK_POOL, else /var/lib/sealblk for root, else ~/.local/share/sealblk]
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub(crate) pool: Option<PathBuf>,
    /// On whose behalf: the account that owns what is made, and whose keys and defaults are meant [default: the pool's]
    #[arg(long, global = true, value_name = "ID", help_heading = EVERYWHERE)]
    pub(crate) account: Option<String>,
    /// Where sockets are made [default: /run/sealblk for root, else $XDG_RUNTIME_DIR/sealblk, else POOL/run]
    #[arg(long, global = true, value_name = "DIR", help_heading = EVERYWHERE)]
    pub(crate) runtime_dir: Option<PathBuf>,
    /// How results and errors are written
    #[arg(
        long,
        global = true,
        value_enum,
        default_value_t = OutputMode::Text,
        value_name = "FORMAT",
        help_heading = EVERYWHERE
    )]
    pub(crate) output: OutputMode,
    /// Read the key store's passphrase from this descriptor, one line of it, instead of asking at the terminal
    #[arg(long, global = true, value_name = "N", help_heading = EVERYWHERE, conflicts_with = "passphrase_file")]
    pub(crate) passphrase_fd: Option<u32>,
    /// Read the key store's passphrase from the first line of this file, which only its owner may read
    #[arg(long, global = true, value_name = "PATH", help_heading = EVERYWHERE)]
    pub(crate) passphrase_file: Option<PathBuf>,
    /// Only results and errors: no notes, no progress
    #[arg(long, short, global = true, help_heading = EVERYWHERE)]
    pub(crate) quiet: bool,
}

/// How results and errors are written.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputMode {
    /// For people: aligned columns, one value a line
    Text,
    /// For programs: one document on stdout, errors as a document on stderr, names as EC2 and KMS spell them
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a pool, and choose how its key store is protected; without it the first use makes one with a key file
    #[command(after_help = "\
Examples:
  sealblk init
  sealblk init --region eu-central-1 --account 111122223333
  sealblk init --root-key passphrase
  head -c 32 /dev/urandom | systemd-creds encrypt --name=sealblk - /etc/credstore.encrypted/sealblk
  systemd-run --pipe -p LoadCredentialEncrypted=sealblk sealblk init --root-key credential --credential sealblk")]
    Init(InitArgs),
    /// Create, attach, detach, list and delete volumes
    #[command(subcommand)]
    Volume(VolumeCommand),
    /// Save volumes as they are at a moment; copy, list, verify and delete what was saved
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Create and look after the keys that wrap the volumes' data keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Say which key services the pool may use besides its own key store: OpenBao, Vault, PKCS#11, programs, AWS KMS
    #[command(subcommand)]
    Kms(KmsCommand),
    /// The defaults of this pool: encryption by default, and the key where no other is named
    #[command(subcommand)]
    Settings(SettingsCommand),
    /// Look through the log of all calls on keys, and see that nobody has tampered with it
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Measure this machine: its cipher kernels, and what encryption costs of a volume's speed
    #[command(after_help = "\
Examples:
  sealblk bench
  sealblk bench --seconds 10 --output json | jq '.Tax[] | {Work, Ratio}'
  sealblk bench --directory /srv/disks --direct

Two volumes, one encrypted and one not, are made in a temporary pool, served, compared, and removed.")]
    Bench(BenchArgs),
    /// Write a shell's completion script to stdout
    #[command(after_help = "\
Examples:
  sealblk completions bash > /usr/share/bash-completion/completions/sealblk
  sealblk completions fish > ~/.config/fish/completions/sealblk.fish")]
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each command, into a directory; without one: sealblk(1) to stdout
    #[command(after_help = "\
Examples:
  sealblk man | man -l -
  sealblk man /usr/local/share/man/man1")]
    Man {
        /// Where to
        dir: Option<PathBuf>,
    },
    /// Answers one call of a key service, for a parent process; not for people
    #[command(hide = true, name = crate::kms::HELPER_COMMAND)]
    KmsHelper,
    /// Reads a snapshot for the process that serves a volume; not for people
    #[command(hide = true, name = crate::restore::HELPER_COMMAND)]
    RestoreHelper,
}

#[derive(Subcommand)]
pub(crate) enum VolumeCommand {
    /// Create a volume, empty or from a snapshot, and print its id
    #[command(after_help = "\
Examples:
  VOL=$(sealblk volume create --size 10GiB --encrypted)
  sealblk volume create --size 1TiB --encrypted --kms-key-id alias/backup
  sealblk volume create --size 500MB --backing /srv/disks/a.img
  sealblk volume create --size 100GiB --encrypted --backing /dev/nvme1n1 --erase
  sealblk volume create --size 100GiB --encrypted --backing 'nbd+unix:///?socket=/run/rbd.sock'
  sealblk volume create --snapshot-id snap-0123456789abcdef0")]
    Create(CreateArgs),
    /// Make a volume larger, or give it another name, attached or not; its key cannot change
    #[command(after_help = "\
Examples:
  sealblk volume modify vol-0123456789abcdef0 --size 20GiB
  sealblk volume modify vol-0123456789abcdef0 --name db-1

New connections see the new size at once; those that are open keep theirs (docs/NBD.md says how
nbd-client and QEMU pick it up). A new name of an attached volume becomes an export name with the next attachment.")]
    Modify(ModifyArgs),
    /// Serve a volume over NBD until it is detached; runs in the foreground and prints one line when ready
    #[command(after_help = "\
Examples:
  sealblk volume attach vol-0123456789abcdef0 &
  sealblk volume attach vol-0123456789abcdef0 --listen 127.0.0.1:10809
  sealblk volume attach vol-0123456789abcdef0 --read-only --socket /run/backup/nbd.sock
  sealblk volume attach vol-0123456789abcdef0 --metrics 127.0.0.1:9100
  sealblk volume attach vol-0123456789abcdef0 --listen 0.0.0.0:10809 --tls-certificates /etc/pki/sealblk --tls-verify-peer
  nbdinfo -- [ sealblk volume attach vol-0123456789abcdef0 --stdio ]

On SIGTERM, SIGINT or SIGHUP, as on `sealblk volume detach`, it finishes what is in flight,
flushes, wipes the key and exits with 0. systemd: Type=notify,
and sockets from a .socket unit are served.")]
    Attach(AttachArgs),
    /// Stop serving a volume, and wait until it has been flushed and its key wiped
    #[command(after_help = "\
Examples:
  sealblk volume detach vol-0123456789abcdef0
  sealblk volume detach vol-0123456789abcdef0 --timeout 300")]
    Detach {
        /// The volume's id
        #[arg(value_name = "VOL")]
        volume: String,
        /// How long to wait for what is in flight, in seconds
        #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_seconds)]
        timeout: Duration,
    },
    /// List the pool's volumes
    #[command(after_help = "\
Examples:
  sealblk volume list
  sealblk volume list --output json | jq -r '.Volumes[] | select(.State == \"in-use\") | .VolumeId'")]
    List,
    /// Show everything known about a volume; with --output json also its wrapped key, for a backup
    #[command(after_help = "\
Examples:
  sealblk volume describe vol-0123456789abcdef0
  sealblk volume describe vol-0123456789abcdef0 --output json | jq -r .WrappedKey")]
    Describe {
        /// The volume's id
        #[arg(value_name = "VOL")]
        volume: String,
    },
    /// Show what an attached volume does: requests, bytes, latencies, connections, and what the cipher costs
    #[command(after_help = "\
Examples:
  sealblk volume stats vol-0123456789abcdef0
  sealblk volume stats vol-0123456789abcdef0 --watch --interval 5
  sealblk volume stats vol-0123456789abcdef0 --output json | jq '{ReadOps, ReadLatency, CipherShare}'")]
    Stats(StatsArgs),
    /// Wrap a volume's data key anew, under another key or newer material: at once, no data is touched, attached or not
    #[command(after_help = "\
Examples:
  sealblk volume rewrap vol-0123456789abcdef0
  sealblk volume rewrap vol-0123456789abcdef0 --kms-key-id alias/2027
  sealblk volume rewrap --all --kms-key-id alias/2027

The data key stays the same: whoever has it, or a wrapped copy and the old key, can still read the data.")]
    Rewrap(RewrapArgs),
    /// Delete a volume and its data for ever; a file, device or export given with --backing is left as it is
    #[command(after_help = "\
Examples:
  sealblk volume delete vol-0123456789abcdef0")]
    Delete {
        /// The volume's id
        #[arg(value_name = "VOL")]
        volume: String,
    },
    /// Bring all that is still missing of a detached volume that was made from a snapshot
    #[command(after_help = "\
Examples:
  sealblk volume restore vol-0123456789abcdef0

An attached volume brings it by itself. Stopped with Ctrl-C or killed, it can be called again.")]
    Restore {
        /// The volume's id
        #[arg(value_name = "VOL")]
        volume: String,
    },
    /// Make a volume with the content of a disk image, encrypted on the way, and print its id
    #[command(after_help = "\
Examples:
  VOL=$(sealblk volume import disk.qcow2 --encrypted)
  sealblk volume import disk.img --encrypted --kms-key-id alias/backup --size 100GiB
  sealblk volume import guest.disk --format raw --encrypted

Formats other than raw are read by qemu-img (package qemu-utils).")]
    Import(ImportArgs),
    /// Write a disk image of a detached volume: in plaintext, also if the volume is encrypted
    #[command(after_help = "\
Examples:
  sealblk volume export vol-0123456789abcdef0 disk.img
  sealblk volume export vol-0123456789abcdef0 disk.qcow2 --format qcow2
  sealblk volume export vol-0123456789abcdef0 - | zstd > disk.img.zst")]
    Export(ExportArgs),
    /// Write encrypted zeros into every hole of a detached volume's data, so that dm-crypt can open it
    #[command(after_help = "\
Examples:
  sealblk volume materialize vol-0123456789abcdef0

The data then takes its whole size on disk. docs/FORMAT.md says how to open it with cryptsetup.")]
    Materialize {
        /// The volume's id
        #[arg(value_name = "VOL")]
        volume: String,
    },
}

#[derive(Args)]
pub(crate) struct CreateArgs {
    /// Size with a unit (10GiB, 500MB, 1TiB), or in bytes, a multiple of 512; 1 MiB to 64 TiB [default: the snapshot's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Make it from this snapshot; usable at once, the data comes as it is needed, and in the background
    #[arg(long, value_name = "SNAP")]
    pub(crate) snapshot_id: Option<String>,
    /// Wait until all of the snapshot's data is in the volume
    #[arg(long, requires = "snapshot_id")]
    pub(crate) no_lazy: bool,
    #[command(flatten)]
    pub(crate) repository: RepositoryArgs,
    /// Encrypt it, under the default key unless --kms-key-id names another
    #[arg(long, conflicts_with = "no_encrypted")]
    pub(crate) encrypted: bool,
    /// Do not encrypt it
    #[arg(long)]
    pub(crate) no_encrypted: bool,
    /// The key that wraps the volume's data key: id, ARN or alias; needs --encrypted
    #[arg(long, value_name = "KEY")]
    pub(crate) kms_key_id: Option<String>,
    /// A further key to wrap the data key under, used when the ones before cannot be; may be given several times
    #[arg(long, value_name = "KEY")]
    pub(crate) recovery_kms_key_id: Vec<String>,
    /// Keep the data in this file, block device or NBD export (nbd://…, nbds://…, nbd+unix://…), not in the
    /// pool; a new file is created sparse
    #[arg(long, value_name = "PATH|URI")]
    pub(crate) backing: Option<PathBuf>,
    /// What people call it, and a further name of its export; need not be unique. Commands take the id
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<VolumeName>,
    /// Ignore TRIM and write encrypted zeros for WRITE_ZEROES, so that the store cannot tell what is in use
    #[arg(long)]
    pub(crate) no_discard: bool,
    /// Overwrite with zeros what --backing holds, if it is not blank
    #[arg(long, requires = "backing")]
    pub(crate) erase: bool,
    /// Only say whether the volume would be encrypted, under which key and why; create nothing
    #[arg(long)]
    pub(crate) explain: bool,
}

impl CreateArgs {
    /// `Encrypted` as EC2 knows it: true, false or not given.
    pub(crate) fn encrypted(&self) -> Option<bool> {
        match (self.encrypted, self.no_encrypted) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }
}

#[derive(Args)]
pub(crate) struct ModifyArgs {
    /// The volume's id
    #[arg(value_name = "VOL")]
    pub(crate) volume: String,
    /// Its new size, as for create; not smaller than it is
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) size: Option<u64>,
    /// Its new name; an empty one takes the name away
    #[arg(long, value_name = "NAME", value_parser = parse_new_name)]
    pub(crate) name: Option<NewName>,
}

/// A name, or none any more.
#[derive(Clone)]
pub(crate) struct NewName(pub(crate) Option<VolumeName>);

fn parse_new_name(text: &str) -> Result<NewName, InvalidName> {
    if text.is_empty() { Ok(NewName(None)) } else { text.parse().map(|name| NewName(Some(name))) }
}

#[derive(Args)]
pub(crate) struct AttachArgs {
    /// The volume's id
    #[arg(value_name = "VOL")]
    pub(crate) volume: String,
    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Bypass the page cache [default for block devices]
    #[arg(long, conflicts_with = "buffered")]
    pub(crate) direct: bool,
    /// Use the page cache [default for files]
    #[arg(long)]
    pub(crate) buffered: bool,
    /// Serve metrics for Prometheus: ADDR:PORT of the loopback interface, or unix:PATH
    #[arg(long, value_name = "ADDR")]
    pub(crate) metrics: Option<MetricsAddress>,
    #[command(flatten)]
    pub(crate) key_loss: KeyLossArgs,
    #[command(flatten)]
    pub(crate) endpoints: EndpointArgs,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
}

/// What happens while the volume is attached and its key can no longer be used.
#[derive(Args)]
pub(crate) struct KeyLossArgs {
    /// When the key is disabled, denied or gone while the volume is attached
    #[arg(long, value_enum, default_value_t = KeyLoss::Ignore, value_name = "WHAT")]
    pub(crate) on_key_loss: KeyLoss,
    /// How often to ask the key service, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = parse_check_interval)]
    pub(crate) key_check_interval: Duration,
}

/// What an attachment does without its key.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyLoss {
    /// Go on, as EBS does: the key is in memory, and the next attach will fail
    Ignore,
    /// Wipe the key and hold all requests until it can be used again
    Freeze,
    /// Wipe the key and fail all requests until the volume is detached
    Fail,
}

#[derive(Args)]
pub(crate) struct RewrapArgs {
    /// The volume's id
    #[arg(value_name = "VOL", required_unless_present = "all", conflicts_with = "all")]
    pub(crate) volume: Option<String>,
    /// Every encrypted volume; one that fails does not keep the others from it
    #[arg(long)]
    pub(crate) all: bool,
    /// The key to move to: id, ARN or alias [default: the keys that the volume has, with their newest material]
    #[arg(long, value_name = "KEY")]
    pub(crate) kms_key_id: Option<String>,
}

#[derive(Args)]
pub(crate) struct StatsArgs {
    /// The volume's id
    #[arg(value_name = "VOL")]
    pub(crate) volume: String,
    /// Write a line for each interval, until the volume is detached
    #[arg(long)]
    pub(crate) watch: bool,
    /// Time between two lines, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_interval, requires = "watch")]
    pub(crate) interval: Duration,
    /// End after so many lines
    #[arg(long, value_name = "N", requires = "watch")]
    pub(crate) count: Option<u32>,
}

#[derive(Subcommand)]
pub(crate) enum AuditCommand {
    /// Read the whole log and say which records are missing, altered, out of order or forged, if any are
    #[command(after_help = "\
Examples:
  sealblk audit verify
  sealblk audit verify --output json | jq '{Intact, LastSequence, LastHash}'

Note the last number and hash elsewhere: a key store that is put back whole to an earlier moment shows only there.")]
    Verify {
        /// The record that the log begins with, if older files have been moved away
        #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u64).range(1..))]
        first: u64,
        /// Do not check the seal: it needs the root key, and so a passphrase if there is one
        #[arg(long)]
        without_seal: bool,
    },
    /// List calls, oldest first
    #[command(after_help = "\
Examples:
  sealblk audit list --last 20
  sealblk audit list --volume vol-0123456789abcdef0 --event Decrypt
  sealblk audit list --errors --output json | jq '.Events[] | {eventTime, eventName, errorCode}'")]
    List {
        #[command(flatten)]
        filter: AuditFilter,
        /// Only the last so many; 0: all
        #[arg(long, value_name = "N", default_value = "0")]
        last: usize,
    },
    /// Show one record whole
    #[command(after_help = "\
Examples:
  sealblk audit show 17
  sealblk audit show 8d4ad580-01a0-45ca-a7b9-cec6e3635149")]
    Show {
        /// Its number, the request id that an error told, or the event id
        record: String,
    },
}

/// Which calls are listed.
#[derive(Args)]
pub(crate) struct AuditFilter {
    /// Calls about this key: id or ARN
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// Calls for this volume or snapshot
    #[arg(long, value_name = "VOL")]
    pub(crate) volume: Option<String>,
    /// Calls of this operation, `Decrypt` for example
    #[arg(long, value_name = "NAME")]
    pub(crate) event: Option<String>,
    /// Calls that failed
    #[arg(long)]
    pub(crate) errors: bool,
}

/// What protects the key store's root key.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protection {
    /// A file that only its owner can read: for a host that starts by itself
    File,
    /// A passphrase, asked for whenever a key is used
    Passphrase,
    /// A credential of the service manager
    Credential,
}

#[derive(Args)]
pub(crate) struct InitArgs {
    /// The region that the pool plays: stands in the ARNs of its keys. The account is --account's
    #[arg(long, value_name = "NAME")]
    pub(crate) region: Option<String>,
    #[command(flatten)]
    pub(crate) choice: ProtectionChoice,
}

/// How a root key is to be protected.
#[derive(Args)]
pub(crate) struct ProtectionChoice {
    /// What protects the key store's root key
    #[arg(long, value_enum, default_value_t = Protection::File, value_name = "HOW")]
    pub(crate) root_key: Protection,
    /// The credential's name in $CREDENTIALS_DIRECTORY
    #[arg(long, value_name = "NAME")]
    pub(crate) credential: Option<String>,
}

#[derive(Args)]
pub(crate) struct RootProtectionArgs {
    /// What protects it from now on; without it nothing changes
    #[arg(value_enum, value_name = "HOW")]
    pub(crate) protection: Option<Protection>,
    /// The credential's name in $CREDENTIALS_DIRECTORY
    #[arg(long, value_name = "NAME", requires = "protection")]
    pub(crate) credential: Option<String>,
    /// Read the new passphrase from this descriptor, one line of it
    #[arg(long, value_name = "N", requires = "protection", conflicts_with = "new_passphrase_file")]
    pub(crate) new_passphrase_fd: Option<u32>,
    /// Read the new passphrase from the first line of this file
    #[arg(long, value_name = "PATH", requires = "protection")]
    pub(crate) new_passphrase_file: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct BenchArgs {
    /// How long to measure, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600), default_value = "60")]
    pub(crate) seconds: u32,
    /// Where to make the temporary pool [default: in memory, /dev/shm, so that no disk hides the cost]
    #[arg(long, value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
    /// Size of each of the two volumes, a multiple of 1 MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_bench_size, default_value = "256MiB")]
    pub(crate) size: u64,
    /// Bypass the page cache: the disk's figures
    #[arg(long, requires = "directory")]
    pub(crate) direct: bool,
}

/// Reads the size of a measurement's volumes: the load asks for whole blocks.
fn parse_bench_size(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    let whole = bytes.is_multiple_of(1 << 20) && (1 << 20..=64 << 40).contains(&bytes);
    if whole { Ok(bytes) } else { Err("a multiple of 1 MiB, up to 64 TiB".to_owned()) }
}

fn parse_check_interval(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| "a whole number of seconds, 1 to 86400".to_owned())
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    text.parse().map(Duration::from_secs).map_err(|_| "a whole number of seconds".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        fn visit(command: &clap::Command) {
            if !command.has_subcommands() && !command.is_hide_set() {
                let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:\n  "), "{} has no example", command.get_name());
            }
            command.get_subcommands().for_each(visit);
        }
        visit(&Cli::command());
    }
}
