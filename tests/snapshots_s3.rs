//! Snapshots in a real S3 server, through the binary: made, incremental, deleted; ciphertext only; and a server that is
//! lost in the middle.

#[path = "../crates/snapshot/tests/rig/seaweed.rs"]
mod seaweed;
mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use seaweed::Seaweed;
use serde_json::Value;
use support::snapshots::{BLOCK, bytes_in};
use support::{Attachment, MIB, Pool, exit, found, noise, run, wait_within};

const REPOSITORY: &str = "s3://snapshots/host/1";

/// A pool whose snapshots are in the server.
struct Site {
    pool: Pool,
    server: Seaweed,
}

impl Site {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = self.pool.command(args);
        command.envs(self.server.environment()).env("SEALBLK_REPOSITORY", REPOSITORY);
        command
    }

    #[track_caller]
    fn ok(&self, args: &[&str]) -> String {
        run(&mut self.command(args)).ok().trim().to_owned()
    }

    #[track_caller]
    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.ok(&[&["--output", "json"], args].concat())).expect("one document")
    }

    /// The snapshot holds what the volume's data file holds.
    #[track_caller]
    fn assert_holds(&self, snapshot: &str, volume: &str) {
        let location = self.server.location("host/1");
        let data = std::fs::read(self.pool.data(volume)).expect("the data");
        assert!(bytes_in(&location, &self.server.options(), snapshot) == data, "{snapshot}");
    }

    /// Writes `blocks` blocks from the volume's start.
    fn write(&self, attachment: &Attachment, seed: u64, blocks: usize) {
        let mut client = attachment.client();
        for (number, piece) in (0_u64..).zip(noise(seed, blocks * BLOCK).chunks(MIB as usize)) {
            client.write(number * MIB, piece).expect("written");
        }
        client.flush().expect("flushed");
    }
}

/// A way to the server that takes so many bytes and then no more, until the server is lost.
struct Gate {
    endpoint: String,
    full: Receiver<()>,
}

impl Gate {
    fn to(server: &Seaweed, most_bytes: usize) -> Self {
        let [(_, endpoint), ..] = server.environment();
        let server = endpoint.strip_prefix("http://").expect("plain HTTP").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("bound"));
        let (tell, full) = channel();
        let passed = Arc::new(AtomicUsize::new(0));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // Without a server the client finds its connection closed.
                let Ok(server) = TcpStream::connect(&server) else { continue };
                let (from, to) = (client.try_clone().expect("a clone"), server.try_clone().expect("a clone"));
                let (passed, tell) = (Arc::clone(&passed), tell.clone());
                std::thread::spawn(move || {
                    forward(from, to, |bytes| {
                        let all = passed.fetch_add(bytes, Ordering::SeqCst) + bytes;
                        // Who waits for it may have what it wanted.
                        all <= most_bytes || tell.send(()).is_err()
                    })
                });
                std::thread::spawn(move || {
                    forward(server, client.try_clone().expect("a clone"), |_| true);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Self { endpoint, full }
    }
}

/// Passes bytes on until the end, or as long as `more` says.
fn forward(mut from: TcpStream, mut to: TcpStream, more: impl Fn(usize) -> bool) {
    let mut bytes = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        // From then on nothing is read: the sockets stay open, in the other thread's hands.
        if !more(count) || to.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// One server for all: starting it takes seconds.
#[test]
fn r8_snapshots_are_kept_in_an_s3_store() {
    let mut site = Site { pool: Pool::new(), server: Seaweed::start() };
    snapshots_are_made_verified_and_deleted(&site);
    a_store_that_is_lost_is_an_error_that_says_how_to_go_on(&mut site);
}

fn snapshots_are_made_verified_and_deleted(site: &Site) {
    let volume = site.pool.create(&["--size", "64MiB", "--encrypted"]);
    let attachment = site.pool.attach(&volume, &[]);
    site.write(&attachment, 1, 8);
    let first = site.ok(&["snapshot", "create", &volume]);
    site.write(&attachment, 2, 2);
    let second = site.ok(&["snapshot", "create", &volume]);
    attachment.terminate();
    site.assert_holds(&second, &volume);
    let report = site.json(&["snapshot", "verify", "--all", "--deep"]);
    assert_eq!((&report["Blocks"], &report["Flaws"]), (&10.into(), &Value::Array(vec![])));
    let deleted = site.json(&["snapshot", "delete", &first]);
    assert_eq!(deleted["FreedBlocks"], 2);
    site.assert_holds(&second, &volume);
    assert_eq!(site.json(&["snapshot", "list"])["Snapshots"].as_array().map(Vec::len), Some(1));
    assert!(site.pool.json(&["snapshot", "list"])["Snapshots"].as_array().is_some_and(Vec::is_empty));
    // The client wrote the one, the store has the other.
    let plain = noise(1, 8 * BLOCK)[3 * BLOCK..3 * BLOCK + 64].to_vec();
    let stored =
        std::fs::read(site.pool.data(&volume)).expect("the data")[3 * BLOCK..3 * BLOCK + 64].to_vec();
    let mut seen = false;
    for entry in std::fs::read_dir(site.server.directory().join("data")).expect("the store's files") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            let hits = found(&std::fs::read(path).expect("a file"), &[plain.clone(), stored.clone()]);
            assert!(!hits.contains(&0), "plaintext reached the store");
            seen |= hits.contains(&1);
        }
    }
    assert!(seen, "the search would have found it");
}

fn a_store_that_is_lost_is_an_error_that_says_how_to_go_on(site: &mut Site) {
    let volume = site.pool.create(&["--size", "128MiB", "--no-encrypted"]);
    let attachment = site.pool.attach(&volume, &[]);
    site.write(&attachment, 3, 200);
    let args = ["snapshot", "create", &volume, "--repository-option", "retry_seconds=2"];
    // A tenth of it gets there.
    let gate = Gate::to(&site.server, 10 * MIB as usize);
    let mut child = site
        .command(&args)
        .env("AWS_ENDPOINT_URL", &gate.endpoint)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut errors = BufReader::new(child.stderr.take().expect("piped"));
    let mut said = String::new();
    errors.read_line(&mut said).expect("a note");
    assert!(said.contains("begun"), "{said}");
    gate.full.recv_timeout(Duration::from_secs(120)).expect("it saves blocks");
    site.server.kill();
    let status = wait_within(&mut child, Duration::from_secs(120)).expect("it gives up");
    errors.read_to_string(&mut said).expect("text");
    site.server.restart();
    let listed = site.json(&["snapshot", "list", "--volume", &volume]);
    let id = listed["Snapshots"][0]["SnapshotId"].as_str().expect("its record is there").to_owned();
    assert_eq!(status.code(), Some(exit::UNREACHABLE), "{said}");
    assert!(said.contains(&format!("snapshot create {volume} --resume {id}")), "{said}");
    assert_eq!(listed["Snapshots"][0]["State"], "pending");
    assert_eq!(site.ok(&["snapshot", "create", &volume, "--resume", &id]), id);
    attachment.terminate();
    site.assert_holds(&id, &volume);
    let report = site.json(&["snapshot", "verify", "--all", "--deep"]);
    assert_eq!((&report["Flaws"], &report["Unreferenced"]), (&Value::Array(vec![]), &Value::Array(vec![])));
}
