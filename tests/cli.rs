//! The command line's contract (docs/CLI.md), through the real binary: exit codes, what goes where, JSON shapes,
//! messages. What clients see of an attached volume is tested elsewhere.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;

/// A fresh pool, and the binary on it.
struct Cli {
    dir: tempfile::TempDir,
}

/// How a command ended.
struct Ended {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Cli {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sealblk"));
        command.env_clear().env("SEALBLK_POOL", self.path("pool"));
        command.arg("--runtime-dir").arg(self.path("run")).args(arguments);
        command
    }

    fn run(&self, arguments: &[&str]) -> Ended {
        Ended::of(self.command(arguments).output().expect("the binary runs"))
    }

    /// Runs a command that must succeed; its stdout without the line's end.
    fn ok(&self, arguments: &[&str]) -> String {
        let ended = self.run(arguments);
        assert_eq!(ended.code, 0, "{arguments:?}: {}", ended.stderr);
        ended.stdout.trim_end().to_owned()
    }

    /// Runs a command that must succeed, and reads the document it prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let arguments = [arguments, &["--output", "json"]].concat();
        serde_json::from_str(&self.ok(&arguments)).expect("one document")
    }

    /// Runs a command that must fail; its exit code and the error's code and message.
    fn error(&self, arguments: &[&str]) -> (i32, String, String) {
        let ended = self.run(&[arguments, &["--output", "json"]].concat());
        assert_eq!(ended.stdout, "", "{arguments:?}");
        let document: Value = serde_json::from_str(&ended.stderr).expect("one document on stderr");
        let text = |name: &str| document["Error"][name].as_str().expect(name).to_owned();
        (ended.code, text("Code"), text("Message"))
    }

    fn create(&self) -> String {
        self.ok(&["volume", "create", "--size", "1MiB", "--encrypted"])
    }

    fn attach(&self, arguments: &[&str]) -> Attached {
        let arguments = [&["volume", "attach"], arguments].concat();
        let mut child =
            self.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let mut ready = String::new();
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        stdout.read_line(&mut ready).expect("a line");
        Attached { child, ready, stdout }
    }
}

impl Ended {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        let code = output.status.code().expect("it was not killed");
        Self { code, stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

/// A serving process; killed if a test fails.
struct Attached {
    child: Child,
    ready: String,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Attached {
    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("it lives");
    }

    /// Waits for its end: the exit code, and what else it had to say on stdout.
    fn wait(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        std::io::Read::read_to_string(&mut self.stdout, &mut rest).expect("UTF-8");
        (self.child.wait().expect("it ends").code(), rest)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        // Ended already, in a test that passes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn object(value: &Value) -> Vec<&str> {
    value.as_object().expect("an object").keys().map(String::as_str).collect()
}

#[test]
fn r1_a_fresh_machine_needs_no_configuration() {
    let cli = Cli::new();
    let volume = cli.create();
    assert!(volume.starts_with("vol-") && volume.len() == 21, "{volume}");
    let key = cli.json(&["key", "describe", "alias/aws/ebs"]);
    assert_eq!(key["KeyManager"], "AWS");
    assert_eq!(cli.json(&["volume", "describe", &volume])["KmsKeyId"], key["Arn"]);
}

#[test]
fn create_prints_the_id_alone_on_stdout_and_the_rest_on_stderr() {
    let cli = Cli::new();
    let ended = cli.run(&["volume", "create", "--size", "10MiB"]);
    assert_eq!((ended.code, ended.stdout.lines().count()), (0, 1));
    assert!(ended.stderr.contains("10 MiB") && ended.stderr.contains("not encrypted"), "{}", ended.stderr);
    let ended = cli.run(&["volume", "create", "--size", "10MiB", "--quiet"]);
    assert_eq!(ended.stderr, "");
}

#[test]
fn a_volumes_document_has_the_names_of_ec2() {
    let cli = Cli::new();
    let created = cli.json(&["volume", "create", "--size", "1500MiB", "--encrypted", "--no-discard"]);
    let id = created["VolumeId"].as_str().expect("an id");
    assert_eq!(cli.json(&["volume", "describe", id]), created);
    assert_eq!(cli.json(&["volume", "list"]), serde_json::json!({ "Volumes": [created] }));
    let mut names = object(&created);
    names.sort_unstable();
    let expected = [
        "AllocatedBytes",
        "Attachments",
        "Backing",
        "BackingIsOwn",
        "CreateTime",
        "Discard",
        "Encrypted",
        "KeyMaterialId",
        "KmsKeyId",
        "OwnerId",
        "Size",
        "SizeBytes",
        "SnapshotId",
        "State",
        "VolumeId",
        "WrappedKey",
    ];
    assert_eq!(names, expected);
    assert_eq!(created["Size"], 2, "GiB, rounded up");
    assert_eq!(created["SizeBytes"], 1500 << 20);
    assert_eq!((&created["State"], &created["Discard"]), (&Value::from("available"), &Value::from(false)));
    assert!(created["WrappedKey"].as_str().is_some_and(|key| key.len() > 64), "{created}");
}

#[test]
fn r42_a_volume_is_modified_in_size_and_name_and_its_key_cannot_be() {
    let cli = Cli::new();
    let created = cli.json(&["volume", "create", "--size", "1MiB", "--encrypted", "--name", "db-1"]);
    let id = created["VolumeId"].as_str().expect("an id");
    assert_eq!(created["Name"], "db-1");
    let attached = cli.attach(&[id]);
    let grown = cli.json(&["volume", "modify", id, "--size", "2GiB", "--name", "db-2"]);
    assert_eq!((&grown["Size"], &grown["Name"]), (&2.into(), &"db-2".into()));
    assert_eq!(grown["KmsKeyId"], created["KmsKeyId"]);
    assert_eq!(cli.json(&["volume", "describe", id]), grown);
    assert!(cli.ok(&["volume", "list"]).contains("db-2"));
    let (code, name, message) = cli.error(&["volume", "modify", id, "--size", "1GiB"]);
    assert_eq!((code, name.as_str()), (2, "InvalidParameterValue"));
    assert_eq!(message, "New size cannot be smaller than existing size");
    let (code, ..) = cli.error(&["volume", "modify", id, "--kms-key-id", "alias/x"]);
    assert_eq!(code, 2);
    let (code, ..) = cli.error(&["volume", "describe", "db-2"]);
    assert_eq!(code, 2, "commands take ids");
    attached.signal(rustix::process::Signal::TERM);
    assert_eq!(attached.wait(), (Some(0), String::new()));
    assert!(cli.json(&["volume", "modify", id, "--name", ""])["Name"].is_null());
}

#[test]
fn keys_are_created_listed_disabled_and_enabled() {
    let cli = Cli::new();
    let arn = cli.ok(&["key", "create", "--description", "backup"]);
    assert!(arn.starts_with("arn:aws:kms:local:000000000000:key/"), "{arn}");
    let listed = cli.json(&["key", "list"]);
    assert_eq!(listed["Keys"][0]["Arn"], arn.as_str());
    assert_eq!(cli.json(&["key", "disable", &arn])["KeyState"], "Disabled");
    let (code, name, message) =
        cli.error(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", &arn]);
    assert_eq!((code, name.as_str()), (5, "DisabledException"));
    assert!(message.contains(&arn), "{message}");
    assert_eq!(cli.json(&["key", "enable", &arn])["KeyState"], "Enabled");
    cli.ok(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", &arn]);
    let (code, name, _) = cli.error(&["key", "describe", "alias/nobody"]);
    assert_eq!((code, name.as_str()), (3, "NotFoundException"));
}

#[test]
fn r68_the_defaults_are_read_and_changed_and_last() {
    let cli = Cli::new();
    let by_default =
        |verb: &str| cli.json(&["settings", "encryption-by-default", verb])["EbsEncryptionByDefault"] == true;
    assert!(!by_default("get"));
    for verb in ["enable", "enable", "get"] {
        assert!(by_default(verb), "{verb}");
    }
    assert_eq!(cli.ok(&["settings", "encryption-by-default", "get"]), "enabled");
    let explained = cli.json(&["volume", "create", "--size", "1MiB", "--no-encrypted", "--explain"]);
    assert_eq!((&explained["Row"], &explained["Encrypted"]), (&11.into(), &true.into()));
    assert_eq!(cli.json(&["volume", "list"])["Volumes"], serde_json::json!([]), "nothing was created");
    assert!(!by_default("disable"));

    let key = cli.ok(&["key", "create"]);
    let default = |arguments: &[&str]| {
        let arguments = [&["settings", "default-kms-key"], arguments].concat();
        cli.json(&arguments)["KmsKeyId"].as_str().expect("a key").to_owned()
    };
    assert_eq!(default(&["get"]), "alias/aws/ebs");
    assert_eq!(default(&["modify", &key]), key);
    assert_eq!(default(&["get"]), key);
    let volume = cli.json(&["volume", "create", "--size", "1MiB", "--encrypted"]);
    assert_eq!(volume["KmsKeyId"], key.as_str());
    assert_eq!(default(&["reset"]), "alias/aws/ebs");
    let (code, ..) = cli.error(&["settings", "default-kms-key", "modify", "alias/nobody"]);
    assert_eq!(code, 3);
}

#[test]
fn what_makes_no_sense_is_exit_code_2_with_a_reason() {
    let cli = Cli::new();
    let create = ["volume", "create", "--size"];
    for (arguments, code, part) in [
        (&["frobnicate"][..], "InvalidParameter", "frobnicate"),
        (&["volume", "create"], "MissingParameter", "size/snapshot"),
        (&[&create[..], &["1.5GiB"]].concat(), "InvalidParameter", "10GiB"),
        (&[&create[..], &["1MiB", "--erase"]].concat(), "InvalidParameter", "--backing"),
        (
            &[&create[..], &["1MiB", "--encrypted", "--no-encrypted"]].concat(),
            "InvalidParameter",
            "--no-encrypted",
        ),
        (&[&create[..], &["1KiB"]].concat(), "InvalidParameterValue", "1 MiB"),
        (&[&create[..], &["1048577"]].concat(), "InvalidParameterValue", "512"),
        (&[&create[..], &["65TiB"]].concat(), "InvalidParameterValue", "64 TiB"),
        (
            &[&create[..], &["1MiB", "--kms-key-id", "alias/x"]].concat(),
            "InvalidParameterDependency",
            "--encrypted",
        ),
        (&["volume", "describe", "vol-1"], "InvalidVolumeID.Malformed", "vol-1"),
        (&["volume", "modify", "vol-0123456789abcdef0"], "InvalidParameterValue", "at least one of size"),
        (
            &["volume", "modify", "vol-0123456789abcdef0", "--kms-key-id", "alias/x"],
            "InvalidParameter",
            "--kms-key-id",
        ),
        (
            &[&create[..], &["1MiB", "--name", "vol-0123456789abcdef0"]].concat(),
            "InvalidParameter",
            "is no id",
        ),
        (
            &["volume", "attach", "vol-0123456789abcdef0", "--direct", "--buffered"],
            "InvalidParameter",
            "--buffered",
        ),
        (
            &["volume", "attach", "vol-0123456789abcdef0", "--listen", "0.0.0.0:1"],
            "InvalidParameterValue",
            "loopback",
        ),
    ] {
        let (exit, name, message) = cli.error(arguments);
        assert_eq!((exit, name.as_str()), (2, code), "{arguments:?}: {message}");
        assert!(message.contains(part), "{arguments:?}: {message}");
    }
    assert_eq!(cli.json(&["volume", "list"]), serde_json::json!({ "Volumes": [] }));
}

#[test]
fn errors_for_people_are_one_line_on_stderr_with_their_causes() {
    let cli = Cli::new();
    let ended = cli.run(&["volume", "describe", "vol-0123456789abcdef0"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (3, ""));
    assert_eq!(ended.stderr, "error: the volume vol-0123456789abcdef0 does not exist\n");
    let file = cli.path("file");
    fs::write(&file, "").expect("a file");
    let ended = cli.run(&["--pool", file.join("pool").to_str().expect("UTF-8"), "volume", "list"]);
    assert_eq!(ended.code, 1);
    let (start, cause) = ended.stderr.split_once("/pool: ").expect("a cause");
    assert!(
        start.starts_with("error: cannot use the pool at ") && cause.contains("ot a directory"),
        "{cause}"
    );
}

#[test]
fn r17_attach_prints_one_line_when_ready_and_sigterm_ends_it_with_0() {
    let cli = Cli::new();
    let volume = cli.create();
    let attached = cli.attach(&[&volume, "--listen", "127.0.0.1:0"]);
    let socket = cli.path("run").join(format!("{volume}.sock"));
    let unix = format!("ready {volume} nbd+unix:///{volume}?socket={} nbd://127.0.0.1:", socket.display());
    let rest = attached.ready.strip_prefix(&unix).unwrap_or_else(|| panic!("{}", attached.ready));
    assert!(rest.ends_with(&format!("/{volume}\n")), "{rest}");
    let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&socket), mode(&cli.path("run"))), (0o600, 0o700));
    let described = cli.json(&["volume", "describe", &volume]);
    assert_eq!(described["State"], "in-use");
    let attachment = &described["Attachments"][0];
    assert_eq!((&attachment["State"], &attachment["Pid"]), (&"attached".into(), &attached.child.id().into()));
    assert_eq!(attachment["GrantId"].as_str().map(str::len), Some(64));
    let uris = attachment["Uris"].as_array().expect("a list").iter().map(|uri| uri.as_str().expect("text"));
    assert_eq!(format!("ready {volume} {}\n", uris.collect::<Vec<_>>().join(" ")), attached.ready);
    attached.signal(rustix::process::Signal::TERM);
    assert_eq!(attached.wait(), (Some(0), String::new()));
    assert_eq!(cli.json(&["volume", "describe", &volume])["State"], "available");
    assert!(!socket.exists());
}

#[test]
fn what_is_in_use_is_exit_code_4_and_names_the_process() {
    let cli = Cli::new();
    let volume = cli.create();
    let attached = cli.attach(&[&volume]);
    let process = format!("process {}", attached.child.id());
    for command in ["attach", "delete", "materialize"] {
        let (code, name, message) = cli.error(&["volume", command, &volume]);
        assert_eq!((code, name.as_str()), (4, "VolumeInUse"), "{command}");
        assert!(message.contains(&process), "{command}: {message}");
    }
    assert_eq!(cli.ok(&["volume", "detach", &volume]), format!("{volume} detached"));
    assert_eq!(attached.wait().0, Some(0));
    let (code, name, _) = cli.error(&["volume", "detach", &volume]);
    assert_eq!((code, name.as_str()), (4, "IncorrectState"));
    assert_eq!(cli.ok(&["volume", "delete", &volume]), format!("{volume} deleted"));
    assert_eq!(cli.error(&["volume", "delete", &volume]).0, 3);
}

#[test]
fn a_detach_by_another_runtime_directory_finds_the_server_all_the_same() {
    let cli = Cli::new();
    let volume = cli.create();
    let attached = cli.attach(&[&volume, "--socket", cli.path("elsewhere.sock").to_str().expect("UTF-8")]);
    assert!(attached.ready.contains("elsewhere.sock"), "{}", attached.ready);
    let mut detach = Command::new(env!("CARGO_BIN_EXE_sealblk"));
    detach.env_clear().arg("--pool").arg(cli.path("pool")).arg("--runtime-dir").arg(cli.path("other"));
    let ended = Ended::of(detach.args(["volume", "detach", &volume]).output().expect("it runs"));
    assert_eq!((ended.code, attached.wait().0), (0, Some(0)), "{}", ended.stderr);
}

#[test]
fn a_killed_server_is_in_nobodys_way() {
    let cli = Cli::new();
    let volume = cli.create();
    let attached = cli.attach(&[&volume]);
    attached.signal(rustix::process::Signal::KILL);
    assert_eq!(attached.wait().0, None);
    let socket = cli.path("run").join(format!("{volume}.sock"));
    assert!(fs::metadata(&socket).expect("left behind").file_type().is_socket());
    assert_eq!(cli.json(&["volume", "describe", &volume])["State"], "available");
    let attached = cli.attach(&[&volume]);
    assert!(attached.ready.starts_with("ready "), "{}", attached.ready);
    attached.signal(rustix::process::Signal::KILL);
    attached.wait();
    assert_eq!(cli.error(&["volume", "detach", &volume]).0, 4);
    assert!(!socket.exists(), "detach cleans up");
}

#[test]
fn keys_are_scheduled_for_deletion_rotated_named_granted_and_given_policies() {
    let cli = Cli::new();
    let key = cli.ok(&["key", "create", "--alias", "alias/mine"]);
    let first = cli.json(&["key", "describe", "alias/mine"])["CurrentKeyMaterialId"].clone();
    assert_ne!(cli.json(&["key", "rotate", &key])["CurrentKeyMaterialId"], first);
    assert_eq!(cli.json(&["key", "list-rotations", &key])["Rotations"].as_array().map(Vec::len), Some(2));
    let status = cli.json(&["key", "enable-rotation", &key, "--rotation-period-in-days", "90"]);
    assert_eq!((&status["KeyRotationEnabled"], &status["RotationPeriodInDays"]), (&true.into(), &90.into()));
    assert_eq!(cli.json(&["key", "disable-rotation", &key])["KeyRotationEnabled"], false);
    assert_eq!(cli.json(&["key", "rotation-status", &key])["KeyRotationEnabled"], false);

    let aliases = cli.json(&["key", "alias", "list"]);
    assert_eq!(aliases["Aliases"][1]["AliasName"], "alias/mine", "{aliases}");
    let (code, name, _) = cli.error(&["key", "alias", "create", "alias/mine", &key]);
    assert_eq!((code, name.as_str()), (4, "AlreadyExistsException"));
    let (code, name, _) = cli.error(&["key", "alias", "delete", "alias/aws/ebs"]);
    assert_eq!((code, name.as_str()), (5, "AccessDeniedException"));

    let grant = ["key", "grants", "create", &key, "--grantee-principal", "uid:7", "--operations"];
    let granted = cli.json(&[&grant[..], &["Decrypt,DescribeKey"]].concat());
    let listed = cli.json(&["key", "grants", "list", &key]);
    assert_eq!(listed["Grants"][0]["GrantId"], granted["GrantId"], "{listed}");
    assert_eq!(listed["Grants"][0]["GranteePrincipal"], "uid:7");
    cli.ok(&["key", "grants", "retire", "--grant-token", granted["GrantToken"].as_str().expect("a token")]);
    assert_eq!(cli.json(&["key", "grants", "list", &key])["Grants"], serde_json::json!([]));

    let file = std::env::temp_dir().join(format!("sealblk-policy-{}.json", std::process::id()));
    let path = file.to_str().expect("text").to_owned();
    std::fs::write(&file, cli.ok(&["key", "policy", "get", &key])).expect("written");
    cli.ok(&["key", "policy", "put", &key, &path]);
    let (code, name, _) = cli.error(&["key", "policy", "put-identity", "uid:7", "all", &path]);
    assert_eq!((code, name.as_str()), (2, "MalformedPolicyDocumentException"), "it names a Principal");
    std::fs::remove_file(&file).expect("removed");

    let scheduled = cli.json(&["key", "schedule-deletion", &key, "--pending-window-in-days", "7"]);
    assert_eq!(
        (&scheduled["KeyState"], &scheduled["KeyId"]),
        (&"PendingDeletion".into(), &key.clone().into())
    );
    let (code, name, message) = cli.error(&["key", "enable", &key]);
    assert_eq!((code, name.as_str()), (5, "KMSInvalidStateException"));
    assert!(message.contains("is pending deletion until 20"), "{message}");
    assert_eq!(cli.json(&["key", "cancel-deletion", &key])["KeyState"], "Disabled");
    let (code, name, _) = cli.error(&["key", "cancel-deletion", &key]);
    assert_eq!((code, name.as_str()), (4, "KMSInvalidStateException"));
}

#[test]
fn r19_attach_with_a_disabled_key_names_operation_key_and_state() {
    let cli = Cli::new();
    let key = cli.ok(&["key", "create"]);
    let volume = cli.ok(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", &key]);
    cli.ok(&["key", "disable", &key, "--force"]);
    let (code, name, message) = cli.error(&["volume", "attach", &volume]);
    assert_eq!((code, name.as_str()), (5, "CustomerKeyHasBeenRevoked"));
    for part in [&volume, &key, "CreateGrant", "is disabled"] {
        assert!(message.contains(part), "{part} is not in: {message}");
    }
    assert_eq!(cli.json(&["volume", "describe", &volume])["State"], "available");
}

#[test]
fn a_socket_path_that_is_too_long_is_refused_with_its_length() {
    let cli = Cli::new();
    let volume = cli.create();
    let long = format!("/tmp/{}", "x".repeat(120));
    let (code, _, message) = cli.error(&["volume", "attach", &volume, "--socket", &long]);
    assert_eq!(code, 2);
    assert!(message.contains("125 bytes") && message.contains("107"), "{message}");
}

#[test]
fn a_backing_outside_the_pool_is_left_and_said_so() {
    let cli = Cli::new();
    let path = cli.path("disk.img");
    let backing = path.to_str().expect("UTF-8");
    let volume = cli.ok(&["volume", "create", "--size", "2MB", "--backing", backing]);
    assert_eq!(fs::metadata(&path).expect("the file").len(), 2_000_384);
    let deleted = cli.json(&["volume", "delete", &volume]);
    assert_eq!(deleted["BackingLeft"].as_str(), fs::canonicalize(&path).expect("it").to_str());
    fs::write(&path, vec![7; 2 << 20]).expect("data");
    let create = ["volume", "create", "--size", "1MiB", "--backing", backing];
    let (code, name, message) = cli.error(&create);
    assert_eq!((code, name.as_str()), (4, "IncorrectState"));
    assert!(message.contains("not blank") && message.contains("--erase"), "{message}");
    cli.ok(&[&create[..], &["--erase"]].concat());
}

#[test]
fn materialize_says_what_it_wrote() {
    let cli = Cli::new();
    let volume = cli.create();
    assert_eq!(cli.json(&["volume", "materialize", &volume])["WrittenBytes"], 1 << 20);
    assert_eq!(cli.json(&["volume", "materialize", &volume])["WrittenBytes"], 0);
}

#[test]
fn a_reader_that_goes_away_is_no_failure() {
    let cli = Cli::new();
    let mut child = cli.command(&["volume", "list"]).stdout(Stdio::piped()).spawn().expect("it runs");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
}

#[test]
fn completions_and_manual_pages_come_out() {
    let cli = Cli::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(cli.ok(&["completions", shell]).contains("materialize"), "{shell}");
    }
    assert!(cli.ok(&["man"]).contains(".TH sealblk 1"));
    let pages = cli.path("man1");
    cli.ok(&["man", pages.to_str().expect("UTF-8")]);
    let attach = fs::read_to_string(pages.join("sealblk-volume-attach.1")).expect("a page");
    assert!(attach.contains("Examples"), "{attach}");
    assert!(!pages.join("sealblk-kms-helper.1").exists());
}

#[test]
fn help_needs_no_pool_and_makes_none() {
    let cli = Cli::new();
    for arguments in [&["--help"][..], &["volume", "--help"], &["volume", "attach", "--help"], &["--version"]]
    {
        assert_eq!(cli.run(arguments).code, 0);
    }
    assert!(!cli.path("pool").exists());
}

#[test]
fn init_makes_a_pool_once() {
    let cli = Cli::new();
    let made = cli.json(&["init"]);
    assert_eq!(object(&made), ["Account", "Pool", "Region", "RootKeyProtection"]);
    assert_eq!(made["RootKeyProtection"]["Method"], "file");
    let root_key = cli.path("pool/kms/root.key");
    let before = fs::read(&root_key).expect("the root key is made");
    assert_eq!(before.len(), 32);
    let (code, name, message) = cli.error(&["init"]);
    assert_eq!((code, name.as_str()), (4, "IncorrectState"), "{message}");
    let (code, name, _) = cli.error(&["init", "--root-key", "credential"]);
    assert_eq!((code, name.as_str()), (2, "InvalidParameterValue"));
    assert_eq!(fs::read(&root_key).expect("read"), before, "nothing changed");
    cli.create();

    let implicit = Cli::new();
    assert_eq!(implicit.json(&["key", "root-protection"])["RootKeyProtection"], Value::Null);
    implicit.create();
    assert_eq!(implicit.json(&["key", "root-protection"])["RootKeyProtection"]["Method"], "file");
    assert_eq!(implicit.error(&["init"]).0, 4);
}

#[test]
fn the_audit_log_is_listed_shown_and_verified() {
    let cli = Cli::new();
    let volume = cli.create();
    cli.error(&["key", "describe", "alias/none"]);
    let events = |arguments: &[&str]| {
        let listed = cli.json(&[&["audit", "list"], arguments].concat());
        let events = listed["Events"].as_array().expect("a list").clone();
        events.iter().map(|event| event["eventName"].as_str().expect("a name").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(events(&[]), ["DescribeKey", "GenerateDataKeyWithoutPlaintext", "DescribeKey"]);
    assert_eq!(events(&["--volume", &volume]), ["GenerateDataKeyWithoutPlaintext"]);
    assert_eq!(events(&["--errors"]), ["DescribeKey"]);
    assert_eq!(events(&["--event", "DescribeKey", "--last", "1"]), ["DescribeKey"]);
    let key = cli.json(&["volume", "describe", &volume])["KmsKeyId"].as_str().expect("a key").to_owned();
    assert_eq!(events(&["--key", &key]).len(), 2);

    let second = cli.json(&["audit", "show", "2"]);
    let request = second["requestID"].as_str().expect("an id").to_owned();
    assert_eq!(cli.json(&["audit", "show", &request]), second);
    assert_eq!(cli.error(&["audit", "show", "99"]).0, 3);

    let report = cli.json(&["audit", "verify"]);
    assert_eq!(report["Intact"], true, "{report}");
    assert_eq!((report["LastSequence"].as_u64(), report["SealChecked"].as_bool()), (Some(3), Some(true)));
    let log = cli.path("pool/kms/audit.log");
    let text = fs::read_to_string(&log).expect("the log").replacen(&volume, "vol-00000000000000000", 1);
    fs::write(&log, text).expect("tampered with");
    let ended = cli.run(&["audit", "verify", "--output", "json"]);
    let report: Value = serde_json::from_str(&ended.stdout).expect("one document");
    assert_eq!((ended.code, report["Intact"].as_bool()), (1, Some(false)));
    assert_eq!(report["Findings"][0]["Finding"], "Altered");
    assert_eq!(report["Findings"][0]["Sequence"], 2);
    assert!(ended.stderr.contains("AuditLogNotIntact"), "{}", ended.stderr);
    let ended = cli.run(&["audit", "verify"]);
    assert!(ended.stdout.contains("record 2 has been altered"), "{}", ended.stdout);
}
