//! Emulators of AWS KMS on loopback, and boto3 to do to keys what Sealblk does not. Which of them enforces what:
//! moto knows contexts, grants and rotation, but decrypts under disabled keys; roto knows key states, but no grants.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sealblk_testkit::free_port;

pub(crate) const REGION: &str = "eu-west-1";

/// A running emulator; killed with the value.
pub(crate) struct Emulator {
    server: Child,
    pub(crate) url: String,
}

impl Emulator {
    pub(crate) fn moto() -> Self {
        Self::start("moto_server", |port| vec!["-H".into(), "127.0.0.1".into(), "-p".into(), port])
    }

    pub(crate) fn roto() -> Self {
        Self::start("roto-server", |port| {
            vec!["--host".into(), "127.0.0.1".into(), "--port".into(), port, "--ephemeral".into()]
        })
    }

    fn start(program: &str, arguments: impl Fn(String) -> Vec<String>) -> Self {
        let port = free_port();
        let server = Command::new(tool(program))
            .args(arguments(port.to_string()))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the emulator starts");
        let mut emulator = Self { server, url: format!("http://127.0.0.1:{port}") };
        emulator.wait_until_it_listens(port);
        emulator
    }

    fn wait_until_it_listens(&mut self, port: u16) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(self.server.try_wait().expect("a child").is_none(), "the emulator has ended");
            assert!(Instant::now() < deadline, "the emulator does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Runs Python with `kms`, boto3's client for this emulator, and `key`; what it prints.
    pub(crate) fn boto3(&self, key: &str, code: &str) -> String {
        let program = format!(
            "import boto3, sys\n\
             url, key = sys.argv[1:]\n\
             kms = boto3.client('kms', endpoint_url=url, region_name='{REGION}', aws_access_key_id='test', aws_secret_access_key='test')\n\
             {code}\n"
        );
        let output = Command::new(tool("python3"))
            .args(["-c", &program, &self.url, key])
            .output()
            .expect("python3 starts");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{code}: {error}");
        String::from_utf8(output.stdout).expect("text").trim().to_owned()
    }

    /// A new symmetric key's ARN.
    pub(crate) fn key(&self) -> String {
        self.boto3("", "print(kms.create_key(KeyUsage='ENCRYPT_DECRYPT')['KeyMetadata']['Arn'])")
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// A program of the Python environment; it is found from this package and from the whole repository's.
fn tool(name: &str) -> PathBuf {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let mut tools = above.map(|directory| directory.join("target/tools/aws/bin").join(name));
    tools
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{name} is missing: scripts/python-tools aws installs it"))
}
