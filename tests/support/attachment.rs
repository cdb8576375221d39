//! A running `sealblk volume attach`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::client::Client;
use super::pool::Pool;
use super::process::wait_within;

/// From start to the ready line.
const READY: Duration = Duration::from_secs(60);
/// From SIGTERM to the end: in-flight requests, a flush, a wipe.
const END: Duration = Duration::from_secs(60);

/// One attached volume; ends with SIGTERM when dropped.
pub struct Attachment {
    child: Option<Child>,
    volume: String,
    uris: Vec<String>,
    socket: PathBuf,
    log: PathBuf,
    lines: Receiver<String>,
}

impl Attachment {
    /// Starts the process and waits for its ready line.
    #[track_caller]
    pub fn start(pool: &Pool, volume: &str, args: &[&str]) -> Self {
        let socket = pool.root().join(format!("{}.sock", &volume[volume.len() - 8..]));
        let log = pool.root().join(format!("{volume}.log"));
        let errors = File::options().create(true).append(true).open(&log).expect("a log file");
        let path = socket.to_str().expect("temporary paths are text");
        let mut child = pool
            .command(&[&["volume", "attach", volume, "--socket", path], args].concat())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .expect("the binary starts");
        let output = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let ready = lines.recv_timeout(READY);
        let mut this =
            Self { child: Some(child), volume: volume.to_owned(), uris: Vec::new(), socket, log, lines };
        let Ok(ready) = ready else { panic!("attach {volume} {args:?} did not get ready: {}", this.log()) };
        let mut words = ready.split(' ');
        assert_eq!((words.next(), words.next()), (Some("ready"), Some(volume)), "the ready line: {ready}");
        this.uris = words.map(str::to_owned).collect();
        this
    }

    /// The volume's id, which is the export's name.
    pub fn volume(&self) -> &str {
        &self.volume
    }

    /// The NBD URI of the Unix socket.
    #[track_caller]
    pub fn uri(&self) -> &str {
        self.uri_of("nbd+unix:")
    }

    /// The NBD URI of the TCP listener.
    #[track_caller]
    pub fn tcp_uri(&self) -> &str {
        self.uri_of("nbd:")
    }

    #[track_caller]
    fn uri_of(&self, scheme: &str) -> &str {
        let found = self.uris.iter().find(|uri| uri.starts_with(scheme));
        found.unwrap_or_else(|| panic!("no {scheme} in the ready line: {:?}", self.uris))
    }

    /// The port of the TCP listener.
    #[track_caller]
    pub fn port(&self) -> u16 {
        Self::port_in(self.tcp_uri())
    }

    /// The port of the TCP listener that requires TLS.
    #[track_caller]
    pub fn tls_port(&self) -> u16 {
        Self::port_in(self.uri_of("nbds:"))
    }

    #[track_caller]
    fn port_in(uri: &str) -> u16 {
        let host = uri.split("://").nth(1).and_then(|rest| rest.split('/').next()).expect("an address");
        host.rsplit(':')
            .next()
            .and_then(|port| port.parse().ok())
            .unwrap_or_else(|| panic!("no port in {uri}"))
    }

    /// The Unix socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// A connection of the client that is not ours.
    #[track_caller]
    pub fn client(&self) -> Client<UnixStream> {
        Client::connect(&self.socket, &self.volume)
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("it runs").id()
    }

    /// What it has written to standard error.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().expect("it runs")), signal)
            .expect("it can be signalled");
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let status = wait_within(self.child.as_mut().expect("it runs"), END);
        self.child = None;
        status.unwrap_or_else(|| panic!("attach {} did not end within {END:?}: {}", self.volume, self.log()))
    }

    /// SIGTERM, and the clean end that must follow: exit 0, nothing more on standard output, no socket left.
    #[track_caller]
    pub fn terminate(mut self) {
        self.signal(Signal::TERM);
        let status = self.wait();
        self.must_have_ended_well(status);
    }

    /// What a clean end looks like.
    #[track_caller]
    pub fn must_have_ended_well(&self, status: ExitStatus) {
        assert!(status.success(), "attach ended with {status}: {}", self.log());
        let more: Vec<String> = self.lines.iter().collect();
        assert!(more.is_empty(), "attach prints one line on standard output, not also {more:?}");
        assert!(!self.socket.exists(), "the socket is left behind");
    }

    /// SIGKILL: as a crash of the process, or of what supervises it.
    #[track_caller]
    pub fn kill(mut self) {
        self.signal(Signal::KILL);
        self.wait();
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A test that failed must not leave a server behind; how it ends is then of no interest.
            let _ = kill_process(Pid::from_child(child), Signal::TERM);
            let _ = wait_within(child, END);
        }
    }
}
