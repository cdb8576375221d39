//! A key store under a passphrase, or under a credential, through the real binary: where a passphrase may come from,
//! that it is found nowhere, and what goes on without it.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use support::{Pool, exit, foreign, found, in_memory, readable_memory, run};

const PASSPHRASE: &str = "purple-monkey-dishwasher-31337";

/// A file with a passphrase, outside everything that is searched.
struct Secret {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Secret {
    fn new(text: &str) -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("passphrase");
        fs::write(&path, format!("{text}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("private");
        Self { _dir: dir, path }
    }

    fn path(&self) -> &str {
        self.path.to_str().expect("temporary paths are text")
    }
}

fn protected_pool() -> (Pool, Secret) {
    let (pool, secret) = (Pool::new(), Secret::new(PASSPHRASE));
    let made = pool.json(&["init", "--root-key", "passphrase", "--passphrase-file", secret.path()]);
    assert_eq!(made["RootKeyProtection"]["Method"], "passphrase", "{made}");
    (pool, secret)
}

/// Runs a command with `lines` on its standard input.
fn with_input(pool: &Pool, args: &[&str], lines: &str) -> support::Finished {
    let input = Secret::new(lines.trim_end_matches('\n'));
    let command = pool.command(args);
    let mut shell = foreign("sh");
    shell.args(["-c", "exec \"$0\" \"$@\" <\"$INPUT\""]).env("INPUT", input.path());
    shell.arg(command.get_program()).args(command.get_args());
    run(&mut shell)
}

/// What a passphrase and the key that is derived from it could look like somewhere.
fn needles(pool: &Pool) -> Vec<Vec<u8>> {
    let record = fs::read(pool.path().join("kms/root.key")).expect("the root key");
    let record: Value = serde_json::from_slice(&record).expect("a record");
    let number = |name: &str| {
        let number = record["Protection"][name].as_u64().expect("a number");
        u32::try_from(number).expect("a small number")
    };
    let params = Params::new(number("MemoryKiB"), number("Passes"), number("Lanes"), Some(32));
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params.expect("parameters"));
    let salt = STANDARD.decode(record["Salt"].as_str().expect("a salt")).expect("base64");
    let mut key = [0; 32];
    argon.hash_password_into(PASSPHRASE.as_bytes(), &salt, &mut key).expect("derived");
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into_bytes();
    let mut all = Vec::new();
    for secret in [PASSPHRASE.as_bytes(), &key, &key[..16], &key[16..]] {
        all.extend([secret.to_vec(), hex(secret), STANDARD.encode(secret).into_bytes()]);
    }
    // A part of the text is a leak as well.
    all.push(PASSPHRASE.as_bytes()[..12].to_vec());
    all.push(PASSPHRASE.as_bytes()[18..].to_vec());
    all
}

#[test]
fn r12_the_passphrase_and_its_key_are_in_no_memory_no_argument_no_variable_and_no_file_while_a_volume_is_served()
 {
    let (pool, secret) = protected_pool();
    let volume = pool.create(&["--encrypted", "--size", "4MiB", "--passphrase-file", secret.path()]);
    let attachment = pool.attach(&volume, &["--passphrase-file", secret.path()]);
    attachment.client().write(0, &[7; 5000]).expect("a write");
    let needles = needles(&pool);
    assert_eq!(in_memory(attachment.pid(), &needles), [], "memory");
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{file}", attachment.pid())).expect("a file of /proc");
        assert!(found(&bytes, &needles).is_empty(), "{file}");
    }
    for file in pool.files() {
        let bytes = fs::read(&file).expect("a file");
        assert!(found(&bytes, &needles).is_empty(), "{}", file.display());
    }
    // The control: the search finds what is there.
    assert!(!in_memory(attachment.pid(), &[volume.clone().into_bytes()]).is_empty(), "the volume's id");
    assert!(!readable_memory(attachment.pid()).is_empty());
    let holder = pool.root().join("control");
    fs::write(&holder, PASSPHRASE).expect("written");
    assert!(!found(&fs::read(&holder).expect("read"), &needles).is_empty(), "the passphrase itself");
    // Detaching retires the grant, for which nobody is asked.
    attachment.terminate();
}

#[test]
fn what_needs_no_key_needs_no_passphrase() {
    let (pool, secret) = protected_pool();
    let volume = pool.create(&["--encrypted", "--size", "1MiB", "--passphrase-file", secret.path()]);
    let attachment = pool.attach(&volume, &["--passphrase-file", secret.path()]);
    for args in [
        &["volume", "list"][..],
        &["volume", "describe", &volume],
        &["volume", "stats", &volume],
        &["key", "list"],
        &["key", "describe", "alias/aws/ebs"],
        &["audit", "list"],
        &["audit", "verify", "--without-seal"],
        &["volume", "create", "--size", "1MiB", "--no-encrypted"],
        &["volume", "detach", &volume],
    ] {
        let mut command = pool.command(args);
        run(command.stdin(Stdio::null())).ok();
    }
    drop(attachment);
    pool.run(&["volume", "delete", &volume]).ok();
}

#[test]
fn a_wrong_passphrase_is_refused_and_says_so() {
    let (pool, secret) = protected_pool();
    let volume = pool.create(&["--encrypted", "--size", "1MiB", "--passphrase-file", secret.path()]);
    let wrong = with_input(&pool, &["volume", "attach", &volume, "--passphrase-fd", "0"], "wrong\n");
    let message = wrong.refused(exit::DENIED);
    assert!(message.contains("the passphrase is wrong"), "{message}");
    let empty = with_input(&pool, &["volume", "attach", &volume, "--passphrase-fd", "0"], "");
    assert!(empty.refused(exit::DENIED).contains("the passphrase is empty"));
    pool.run(&["volume", "attach", &volume, "--passphrase-fd", "99"]).refused(exit::DENIED);
    pool.attach(&volume, &["--passphrase-file", secret.path()]).terminate();
}

#[test]
fn a_passphrase_file_that_others_may_read_is_refused() {
    let (pool, secret) = protected_pool();
    fs::set_permissions(&secret.path, fs::Permissions::from_mode(0o644)).expect("public");
    let create = ["volume", "create", "--encrypted", "--size", "1MiB", "--passphrase-file", secret.path()];
    let message = pool.run(&create).refused(exit::DENIED);
    assert!(message.contains("others may read it (mode 644)"), "{message}");
}

#[test]
fn protection_is_changed_without_touching_volumes() {
    let (pool, secret) = protected_pool();
    let volume = pool.create(&["--encrypted", "--size", "1MiB", "--passphrase-file", secret.path()]);
    let attachment = pool.attach(&volume, &["--passphrase-file", secret.path()]);
    attachment.client().write(100, b"kept").expect("a write");
    let change = ["key", "root-protection", "passphrase", "--passphrase-fd", "0", "--new-passphrase-fd", "0"];
    with_input(&pool, &change, "not this one\nnew\n").refused(exit::DENIED);
    with_input(&pool, &change, &format!("{PASSPHRASE}\nnew one\n")).ok();
    assert_eq!(attachment.client().read(100, 4).expect("it is served on"), b"kept");
    attachment.terminate();
    pool.run(&["volume", "attach", &volume, "--passphrase-file", secret.path()]).refused(exit::DENIED);

    with_input(&pool, &["key", "root-protection", "file", "--passphrase-fd", "0"], "new one\n").ok();
    assert_eq!(pool.json(&["key", "root-protection"])["RootKeyProtection"]["Method"], "file");
    let attachment = pool.attach(&volume, &[]);
    assert_eq!(attachment.client().read(100, 4).expect("a read"), b"kept");
    attachment.terminate();
    assert_eq!(pool.json(&["audit", "verify"])["Intact"], true);
}

#[test]
fn a_unit_attaches_with_a_credential_and_nobody_else_does() {
    let pool = Pool::new();
    let credentials = tempfile::tempdir().expect("a temporary directory");
    fs::write(credentials.path().join("sealblk"), [0xa5; 32]).expect("a credential");
    let init = ["init", "--root-key", "credential", "--credential", "sealblk"];
    pool.run(&init).refused(exit::DENIED);
    assert!(!pool.path().join("pool.json").exists(), "an init that fails leaves no pool");
    let in_unit = |args: &[&str]| {
        let mut command = pool.command(args);
        command.env("CREDENTIALS_DIRECTORY", credentials.path());
        command
    };
    run(&mut in_unit(&init)).ok();
    let volume = run(&mut in_unit(&["volume", "create", "--encrypted", "--size", "1MiB", "--quiet"])).ok();
    let message = pool.run(&["volume", "attach", volume.trim()]).refused(exit::DENIED);
    assert!(message.contains("credential sealblk"), "{message}");
    let mut served = in_unit(&["volume", "attach", volume.trim()]);
    let mut child = served.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it starts");
    must_get_ready(&mut child);
    pool.run(&["volume", "detach", volume.trim()]).ok();
    assert!(child.wait().expect("it ends").success());
}

fn must_get_ready(child: &mut Child) {
    let mut line = String::new();
    let output = child.stdout.take().expect("a pipe");
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("a line");
    assert!(line.starts_with("ready vol-"), "{line}");
}

/// Types `answers` at a terminal whenever `sealblk ARGS` asks there; what the terminal showed, and the exit code.
fn at_a_terminal(pool: &Pool, args: &[&str], answers: &[&str]) -> (String, i32) {
    let command = pool.command(args);
    let mut python = foreign("python3");
    python.arg("-c").arg(include_str!("passphrase/terminal.py")).arg(answers.join("\n"));
    python.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => python.env(name, value),
            None => python.env_remove(name),
        };
    }
    let finished = run(&mut python);
    let document: Value = serde_json::from_str(&finished.ok()).expect("a document");
    let code = document["code"].as_i64().expect("a code");
    let shown = document["shown"].as_str().expect("text").to_owned();
    (shown, i32::try_from(code).expect("an exit code"))
}

#[test]
fn a_terminal_is_asked_twice_for_a_new_passphrase_and_shows_none() {
    let pool = Pool::new();
    let init = ["init", "--root-key", "passphrase"];
    let (shown, code) = at_a_terminal(&pool, &init, &["one", "other"]);
    assert_eq!(code, exit::DENIED, "{shown}");
    assert!(shown.contains("the two passphrases differ"), "{shown}");
    let (shown, code) = at_a_terminal(&pool, &init, &[PASSPHRASE, PASSPHRASE]);
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("New passphrase") && shown.contains("The same again"), "{shown}");
    assert!(!shown.contains(PASSPHRASE), "{shown}");
    // A character too many, taken back by backspace, and a line begun anew by Ctrl-U.
    let typed = format!("nonsense\u{15}{PASSPHRASE}é\u{7f}");
    let create = ["volume", "create", "--encrypted", "--size", "1MiB"];
    let (shown, code) = at_a_terminal(&pool, &create, &[&typed]);
    assert_eq!(code, 0, "{shown}");
    assert!(shown.contains("Passphrase of the key store") && shown.contains("vol-"), "{shown}");
    let (shown, code) = at_a_terminal(&pool, &create, &["half\u{3}"]);
    assert_eq!(code, exit::DENIED, "{shown}");
    assert!(shown.contains("interrupted"), "{shown}");
}

#[test]
fn no_option_takes_a_passphrase_itself_and_no_variable_is_read() {
    let (pool, _secret) = protected_pool();
    let help = pool.run(&["volume", "attach", "--help"]).ok();
    assert!(help.contains("--passphrase-fd") && !help.contains("--passphrase <"), "{help}");
    let mut command = pool.command(&["volume", "create", "--encrypted", "--size", "1MiB"]);
    for name in ["SEALBLK_PASSPHRASE", "PASSPHRASE", "SEALBLK_PASSPHRASE_FILE"] {
        command.env(name, PASSPHRASE);
    }
    // In a session of its own there is no terminal to ask at.
    let program = command.get_program().to_owned();
    let mut detached = foreign("setsid");
    detached.arg("--wait").arg(program).args(command.get_args());
    for (name, value) in command.get_envs().filter_map(|(name, value)| Some((name, value?))) {
        detached.env(name, value);
    }
    let message =
        run(detached.stdin(File::open(Path::new("/dev/null")).expect("opened"))).refused(exit::DENIED);
    assert!(message.contains("no terminal"), "{message}");
}
