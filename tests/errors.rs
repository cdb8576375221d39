//! EC2's error codes (ebs.md A.8), each provoked through the binary: what a later EC2 endpoint will put on the wire, and the
//! exit code that scripts see.

mod support;

use serde_json::Value;
use support::{Pool, exit};

/// What is there to be named in a command.
struct World {
    pool: Pool,
    plain: String,
    attached: String,
    plain_snapshot: String,
    encrypted_snapshot: String,
    pending_snapshot: String,
    shared_snapshot: String,
    disabled_key: String,
    asymmetric_key: String,
}

const OTHER: &str = "222222222222";

fn text(document: &Value, name: &str) -> String {
    document[name].as_str().unwrap_or_else(|| panic!("no {name} in {document}")).to_owned()
}

impl World {
    fn new() -> Self {
        let pool = Pool::new();
        let plain = pool.create(&["--size", "4MiB"]);
        let attached = pool.create(&["--size", "4MiB", "--encrypted"]);
        let snapshot =
            |args: &[&str]| text(&pool.json(&[&["snapshot", "create"], args].concat()), "SnapshotId");
        let (plain_snapshot, encrypted_snapshot) = (snapshot(&[&plain]), snapshot(&[&attached]));
        let pending_snapshot = support::Snapshots::of(&pool).begin(&plain);
        let theirs =
            text(&pool.json(&["--account", OTHER, "volume", "create", "--size", "1MiB"]), "VolumeId");
        let shared_snapshot = snapshot(&[&theirs, "--account", OTHER]);
        let share = ["--account", OTHER, "snapshot", "share", &shared_snapshot, "--public"];
        pool.run(&share).ok();
        let key = |args: &[&str]| text(&pool.json(&[&["key", "create"], args].concat()), "Arn");
        let (disabled_key, asymmetric_key) =
            (key(&[]), key(&["--key-spec", "RSA_2048", "--key-usage", "ENCRYPT_DECRYPT"]));
        pool.run(&["key", "disable", &disabled_key]).ok();
        Self {
            pool,
            plain,
            attached,
            plain_snapshot,
            encrypted_snapshot,
            pending_snapshot,
            shared_snapshot,
            disabled_key,
            asymmetric_key,
        }
    }

    /// A command with the names of the table filled in.
    fn arguments(&self, command: &str) -> Vec<String> {
        let names = [
            ("PLAIN_SNAP", &self.plain_snapshot),
            ("SECRET_SNAP", &self.encrypted_snapshot),
            ("PENDING_SNAP", &self.pending_snapshot),
            ("THEIR_SNAP", &self.shared_snapshot),
            ("DISABLED_KEY", &self.disabled_key),
            ("RSA_KEY", &self.asymmetric_key),
            ("ATTACHED", &self.attached),
            ("PLAIN", &self.plain),
        ];
        let filled = names.iter().fold(command.to_owned(), |text, (name, value)| text.replace(name, value));
        ["--output", "json"].into_iter().chain(filled.split(' ')).map(str::to_owned).collect()
    }
}

#[rustfmt::skip]
const TABLE: &[(&str, &str, i32)] = &[
    ("volume describe vol-00000000000000000",                              "InvalidVolume.NotFound",      exit::NOT_FOUND),
    ("volume describe vol-1",                                              "InvalidVolumeID.Malformed",   exit::USAGE),
    ("volume describe PLAIN_SNAP",                                         "InvalidVolumeID.Malformed",   exit::USAGE),
    ("snapshot create vol-00000000000000000",                              "InvalidVolume.NotFound",      exit::NOT_FOUND),
    ("snapshot describe snap-00000000000000000",                           "InvalidSnapshot.NotFound",    exit::NOT_FOUND),
    ("snapshot describe snap-1",                                           "InvalidSnapshotID.Malformed", exit::USAGE),
    ("snapshot delete snap-00000000000000000",                             "InvalidSnapshot.NotFound",    exit::NOT_FOUND),
    ("snapshot copy snap-00000000000000000",                               "InvalidSnapshot.NotFound",    exit::NOT_FOUND),
    ("volume create --snapshot-id snap-00000000000000000",                 "InvalidSnapshot.NotFound",    exit::NOT_FOUND),
    ("volume create --snapshot-id snap-1",                                 "InvalidSnapshotID.Malformed", exit::USAGE),
    ("volume create --encrypted",                                          "MissingParameter",            exit::USAGE),
    ("volume create --size 4MiB --kms-key-id alias/aws/ebs",               "InvalidParameterDependency",  exit::USAGE),
    ("snapshot copy PLAIN_SNAP --kms-key-id alias/aws/ebs",                "InvalidParameterDependency",  exit::USAGE),
    ("volume create --size 4MiB --no-encrypted --kms-key-id alias/aws/ebs","InvalidParameterCombination", exit::USAGE),
    ("volume create --snapshot-id SECRET_SNAP --no-encrypted",             "InvalidParameterCombination", exit::USAGE),
    ("volume create --snapshot-id PLAIN_SNAP --size 2MiB",                 "InvalidParameterValue",       exit::USAGE),
    ("volume create --size 4097",                                          "InvalidParameterValue",       exit::USAGE),
    ("volume create --snapshot-id PENDING_SNAP",                           "IncorrectState",              exit::WRONG_STATE),
    ("snapshot copy PENDING_SNAP",                                         "IncorrectState",              exit::WRONG_STATE),
    ("volume detach PLAIN",                                                "IncorrectState",              exit::WRONG_STATE),
    ("volume rewrap PLAIN",                                                "IncorrectState",              exit::WRONG_STATE),
    ("volume delete ATTACHED",                                             "VolumeInUse",                 exit::WRONG_STATE),
    ("volume attach ATTACHED",                                             "VolumeInUse",                 exit::WRONG_STATE),
    ("snapshot share SECRET_SNAP --public",                                "OperationNotPermitted",       exit::DENIED),
    ("snapshot share SECRET_SNAP --account-id 222222222222",               "OperationNotPermitted",       exit::DENIED),
    ("snapshot delete THEIR_SNAP",                                         "AuthFailure",                 exit::DENIED),
    ("snapshot share THEIR_SNAP --public",                                 "AuthFailure",                 exit::DENIED),
    ("snapshot share PLAIN_SNAP --account-id 1",                           "InvalidUserID.Malformed",     exit::USAGE),
    ("snapshot share PLAIN_SNAP",                                          "InvalidParameter",            exit::USAGE),
    ("--account 1 volume list",                                            "InvalidUserID.Malformed",     exit::USAGE),
    ("volume create --size 4MiB --encrypted --kms-key-id DISABLED_KEY",    "DisabledException",           exit::DENIED),
    ("volume create --snapshot-id PLAIN_SNAP --encrypted --kms-key-id DISABLED_KEY", "DisabledException", exit::DENIED),
    ("snapshot copy PLAIN_SNAP --encrypted --kms-key-id DISABLED_KEY",     "InvalidParameterValue",           exit::DENIED),
    ("settings default-kms-key modify DISABLED_KEY",                       "DisabledException",           exit::DENIED),
    // Requirement 33.
    ("volume create --size 4MiB --encrypted --kms-key-id RSA_KEY",         "InvalidKeyUsageException",    exit::DENIED),
    ("snapshot copy PLAIN_SNAP --encrypted --kms-key-id RSA_KEY",          "InvalidParameterValue",    exit::DENIED),
    ("settings default-kms-key modify RSA_KEY",                            "InvalidKeyUsageException",    exit::DENIED),
    ("settings default-kms-key modify alias/nobody",                       "NotFoundException",           exit::NOT_FOUND),
    ("volume create --size 4MiB --encrypted --kms-key-id alias/nobody",    "NotFoundException",           exit::NOT_FOUND),
    ("snapshot copy PLAIN_SNAP --encrypted --kms-key-id alias/nobody",     "InvalidParameterValue",           exit::NOT_FOUND),
];

#[test]
fn every_refusal_has_the_code_of_ec2_and_leaves_everything_as_it_was() {
    let world = World::new();
    let attachment = world.pool.attach(&world.attached, &[]);
    let seen = || {
        let mut volumes = world.pool.json(&["volume", "list"]);
        // What a volume's file takes may change by itself.
        volumes["Volumes"].as_array_mut().expect("a list").iter_mut().for_each(|volume| {
            volume.as_object_mut().expect("an object").remove("AllocatedBytes");
        });
        (volumes, world.pool.json(&["snapshot", "list"]))
    };
    let before = seen();
    let mut wrong = Vec::new();
    for (command, code, exit) in TABLE {
        let finished = world.pool.run(&world.arguments(command));
        let last = finished.stderr.lines().last().unwrap_or_default();
        let document: Value = serde_json::from_str(last).unwrap_or_default();
        let found = &document["Error"]["Code"];
        let told = document["Error"]["Message"].as_str().is_some_and(|message| !message.is_empty());
        if finished.status.code() != Some(*exit) || !finished.stdout.is_empty() || found != *code || !told {
            wrong.push(format!("{command}: not {code} ({exit}) but {}", finished));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(seen(), before, "what is refused changes nothing");
    attachment.terminate();
}
