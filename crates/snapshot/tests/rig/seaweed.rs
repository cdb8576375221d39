//! A real S3 server on loopback: SeaweedFS, from `target/tools/s3` (scripts/python-tools s3), in a directory of its own. It
//! can be killed and started again on the same ports and data.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use sealblk_snapshot::{Location, StoreOptions};
use sealblk_testkit::free_port;

pub(crate) const BUCKET: &str = "snapshots";
const ACCESS: &str = "test-access";
const SECRET: &str = "test-secret-0123456789";
/// A busy machine needs long.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// The server; killed when dropped.
pub(crate) struct Seaweed {
    directory: tempfile::TempDir,
    /// Master, volume, filer, S3, each with its gRPC port.
    ports: [u16; 8],
    child: Child,
}

impl Seaweed {
    /// Starts one and makes the bucket.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(directory.path().join("data")).expect("a directory");
        let identity = format!(
            r#"{{"identities": [{{"name": "test", "credentials": [{{"accessKey": "{ACCESS}", "secretKey": "{SECRET}"}}],
                "actions": ["Read", "Write", "List"]}}]}}"#
        );
        std::fs::write(directory.path().join("s3.json"), identity).expect("written");
        let ports = [(); 8].map(|()| free_port());
        let child = run(directory.path(), &ports);
        let mut server = Self { directory, ports, child };
        server.wait_until_ready();
        let made = server.request(server.ports[4], &format!("POST /buckets/{BUCKET}/"));
        assert!(made.is_some_and(|status| status == 201), "the bucket is made");
        server
    }

    /// As SIGKILL does it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
    }

    /// Starts it again where it was.
    pub(crate) fn restart(&mut self) {
        self.child = run(self.directory.path(), &self.ports);
        self.wait_until_ready();
    }

    /// Where it keeps everything.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn location(&self, prefix: &str) -> Location {
        Location::S3 { bucket: BUCKET.to_owned(), prefix: prefix.to_owned() }
    }

    /// Endpoint and credentials as a command line finds them in its environment.
    pub(crate) fn environment(&self) -> [(String, String); 5] {
        let endpoint = format!("http://127.0.0.1:{}", self.ports[6]);
        let environment = [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", ACCESS),
            ("AWS_SECRET_ACCESS_KEY", SECRET),
        ];
        environment.map(|(name, value)| (name.to_owned(), value.to_owned()))
    }

    /// The same for a repository; a store that is gone is an error soon.
    pub(crate) fn options(&self) -> StoreOptions {
        let mut options = StoreOptions::default().with_environment(self.environment());
        options.retry_for = Some(Duration::from_secs(2));
        options
    }

    fn wait_until_ready(&mut self) {
        let started = Instant::now();
        // The bucket's directory answers once master, volume server and filer know each other.
        while self.request(self.ports[6], "GET /healthz") != Some(200)
            || self.request(self.ports[4], "GET /").is_none_or(|status| status >= 500)
            || self.request(self.ports[0], "GET /dir/assign") != Some(200)
        {
            let ended = self.child.try_wait().expect("a child");
            assert!(ended.is_none(), "weed ended: {}", self.log());
            assert!(started.elapsed() < READY_WITHIN, "weed is not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// The status of a request without a body.
    fn request(&self, port: u16, request: &str) -> Option<u16> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(
            stream,
            "{request} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut reply = String::new();
        stream.take(64 * 1024).read_to_string(&mut reply).ok()?;
        reply.split(' ').nth(1)?.parse().ok()
    }
}

impl Drop for Seaweed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn weed() -> PathBuf {
    // Of this crate, and of the workspace's own tests.
    let roots = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let found = roots.map(|root| root.join("target/tools/s3/bin/weed")).find(|weed| weed.exists());
    found.expect("target/tools/s3/bin/weed is missing: run scripts/python-tools s3")
}

fn run(directory: &Path, ports: &[u16; 8]) -> Child {
    let names = ["master.port", "volume.port", "filer.port", "s3.port"];
    let log = std::fs::OpenOptions::new().create(true).append(true).open(directory.join("log"));
    let log = log.expect("a log");
    let mut command = Command::new(weed());
    command.args(["server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-dir=data"]);
    command.args(["-s3.config=s3.json", "-volume.max=10", "-master.volumeSizeLimitMB=64"]);
    command.args(["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]);
    for (name, ports) in names.iter().zip(ports.chunks(2)) {
        command.arg(format!("-{name}={}", ports[0])).arg(format!("-{name}.grpc={}", ports[1]));
    }
    command.current_dir(directory).stdin(Stdio::null()).stdout(log.try_clone().expect("a log")).stderr(log);
    command.spawn().expect("weed starts")
}
