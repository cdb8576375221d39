//! `--metrics`: one page for Prometheus, over HTTP/1.1, at a loopback port or a Unix socket.
//!
//! As little of HTTP as a scraper needs: `GET /metrics`, answered whole, and the connection closed. One client at a
//! time, on one thread, with no more than 8 KiB read and two seconds spent on each: whatever arrives here,
//! the data path does not notice. It tells counters and nothing else; who may read is decided by the socket's mode
//! (0600), and at a port by nobody: every local user may.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::error::ControlError;
use crate::exposition::{CONTENT_TYPE, exposition};
use crate::runtime::{BoundSocket, Openness};
use crate::stats::StatisticsSource;

/// No request's head is longer.
const HEAD_BYTES: usize = 8 << 10;
/// From accepting a client to being done with it.
const CLIENT_TIME: Duration = Duration::from_secs(2);
/// Rest after an accept that failed for want of descriptors or memory, which would fail again at once.
const ACCEPT_REST: Duration = Duration::from_millis(100);

/// Where metrics are served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MetricsAddress {
    /// A TCP port; of a loopback address only.
    Tcp(SocketAddr),
    /// A Unix socket, mode 0600.
    Unix(PathBuf),
}

/// Not an address for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an address is HOST:PORT with a numeric host (127.0.0.1:9100, [::1]:9100), or unix:PATH")]
pub struct MalformedMetricsAddress;

impl FromStr for MetricsAddress {
    type Err = MalformedMetricsAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some("") => Err(MalformedMetricsAddress),
            Some(path) => Ok(Self::Unix(path.into())),
            None => text.parse().map(Self::Tcp).map_err(|_| MalformedMetricsAddress),
        }
    }
}

impl MetricsAddress {
    /// Refuses what others than this host could reach.
    pub(crate) fn require_local(&self) -> Result<(), ControlError> {
        match self {
            Self::Tcp(address) if !address.ip().is_loopback() => {
                Err(ControlError::MetricsNotLoopback { address: *address })
            }
            _ => Ok(()),
        }
    }
}

/// The listening side, from `bind` until it is dropped.
pub(crate) struct MetricsServer {
    listener: Arc<MetricsListener>,
    url: String,
    stopping: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Removes the socket's file in the end.
    _socket: Option<BoundSocket>,
}

enum MetricsListener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl MetricsServer {
    /// Listens. Clients are answered once [`Self::serve`] was called.
    pub(crate) fn bind(address: &MetricsAddress) -> Result<Self, ControlError> {
        address.require_local()?;
        let (listener, url, socket) = match address {
            MetricsAddress::Tcp(address) => {
                let failed = |source| ControlError::Listen { address: *address, source };
                let listener = TcpListener::bind(address).map_err(failed)?;
                let url = format!("http://{}/metrics", listener.local_addr().map_err(failed)?);
                (MetricsListener::Tcp(listener), url, None)
            }
            MetricsAddress::Unix(path) => {
                let (socket, listener) = BoundSocket::bind(path, Openness::Owner)?;
                (MetricsListener::Unix(listener), format!("unix:{}", path.display()), Some(socket))
            }
        };
        Ok(Self {
            listener: Arc::new(listener),
            url,
            stopping: Arc::default(),
            thread: None,
            _socket: socket,
        })
    }

    /// Where it is: a URL, or `unix:` and a path.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Answers clients, on a thread of its own.
    pub(crate) fn serve(&mut self, source: StatisticsSource) -> io::Result<()> {
        let (listener, stopping) = (Arc::clone(&self.listener), Arc::clone(&self.stopping));
        let serve = move || {
            while !stopping.load(Ordering::Acquire) {
                if listener.answer_next(&source).is_err() && !stopping.load(Ordering::Acquire) {
                    thread::sleep(ACCEPT_REST);
                }
            }
        };
        self.thread = Some(thread::Builder::new().name("metrics".to_owned()).spawn(serve)?);
        Ok(())
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Wakes the thread from `accept`, which from now on fails.
        let both = rustix::net::Shutdown::Both;
        let _ = match &*self.listener {
            MetricsListener::Tcp(listener) => rustix::net::shutdown(listener, both),
            MetricsListener::Unix(listener) => rustix::net::shutdown(listener, both),
        };
        if let Some(thread) = self.thread.take() {
            // It has nothing to say: a panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl MetricsListener {
    /// Accepts a client and answers it. An error is one of accepting; what a client does wrong is its own affair.
    fn answer_next(&self, source: &StatisticsSource) -> io::Result<()> {
        match self {
            Self::Tcp(listener) => answer(listener.accept()?.0, source),
            Self::Unix(listener) => answer(listener.accept()?.0, source),
        }
        Ok(())
    }
}

/// A socket of either family.
trait Client: Read + Write {
    fn set_patience(&self, patience: Duration) -> io::Result<()>;
    fn end_output(&self) -> io::Result<()>;
}

impl Client for TcpStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }

    fn end_output(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

impl Client for UnixStream {
    fn set_patience(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))?;
        self.set_write_timeout(Some(patience))
    }

    fn end_output(&self) -> io::Result<()> {
        self.shutdown(std::net::Shutdown::Write)
    }
}

/// What a request is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verdict {
    Page,
    Refused(&'static str),
}

const MALFORMED: Verdict = Verdict::Refused("400 Bad Request");
const TOO_LONG: Verdict = Verdict::Refused("431 Request Header Fields Too Large");

/// Reads a request and answers it, in bounded time. A client that fails has only itself to blame.
fn answer(mut client: impl Client, source: &StatisticsSource) {
    let deadline = Instant::now() + CLIENT_TIME;
    let Ok(verdict) = receive(&mut client, deadline) else { return };
    let answer = match verdict {
        Verdict::Page => response("200 OK", CONTENT_TYPE, &exposition(&source.read())),
        Verdict::Refused(status) => response(status, "text/plain", &format!("{status}\n")),
    };
    if send(&mut client, answer.as_bytes(), deadline).is_ok() && client.end_output().is_ok() {
        // Closing with unread bytes would reset the connection, and the reset may overtake the answer.
        let _ = drain(&mut client, deadline);
    }
}

fn response(status: &str, content_type: &str, body: &str) -> String {
    let allow = if status.starts_with("405") { "Allow: GET\r\n" } else { "" };
    let length = body.len();
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n{allow}Connection: close\r\n\r\n{body}"
    )
}

/// Reads up to the empty line that ends a request's head, and judges its first line.
fn receive(client: &mut impl Client, deadline: Instant) -> io::Result<Verdict> {
    let mut head = [0; HEAD_BYTES];
    let mut filled = 0;
    loop {
        let Some(room) = head.get_mut(filled..).filter(|room| !room.is_empty()) else { return Ok(TOO_LONG) };
        wait_at_most(client, deadline)?;
        match client.read(room)? {
            0 => return Ok(MALFORMED),
            count => filled += count,
        }
        let received = head.get(..filled).unwrap_or_default();
        if received.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(judge(received));
        }
    }
}

/// RFC 9112, section 3: `method SP target SP version CRLF`. The header fields say nothing that matters here.
fn judge(head: &[u8]) -> Verdict {
    let line = head.split(|&byte| byte == b'\r').next().and_then(|line| std::str::from_utf8(line).ok());
    let mut words = line.unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return MALFORMED;
    };
    match (method, target, version) {
        (_, _, version) if version != "HTTP/1.1" && version != "HTTP/1.0" => MALFORMED,
        ("GET", "/metrics", _) => Verdict::Page,
        (_, "/metrics", _) => Verdict::Refused("405 Method Not Allowed"),
        _ => Verdict::Refused("404 Not Found"),
    }
}

fn send(client: &mut impl Client, mut bytes: &[u8], deadline: Instant) -> io::Result<()> {
    while !bytes.is_empty() {
        wait_at_most(client, deadline)?;
        let count = client.write(bytes)?;
        if count == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(count..).unwrap_or_default();
    }
    Ok(())
}

/// Throws away what comes until the client closes its side.
fn drain(client: &mut impl Client, deadline: Instant) -> io::Result<()> {
    let mut scrap = [0; 4096];
    loop {
        wait_at_most(client, deadline)?;
        if client.read(&mut scrap)? == 0 {
            return Ok(());
        }
    }
}

/// The next read or write waits until `deadline` at the latest.
fn wait_at_most(client: &impl Client, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    client.set_patience(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_is_answered_with_the_page_and_no_other() {
        let status = |head: &str| match judge(head.as_bytes()) {
            Verdict::Page => "200",
            Verdict::Refused(status) => &status[..3],
        };
        assert_eq!(status("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"), "200");
        assert_eq!(status("GET /metrics HTTP/1.0\r\n\r\n"), "200");
        assert_eq!(status("GET / HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("GET /metrics/../metrics HTTP/1.1\r\n\r\n"), "404");
        assert_eq!(status("POST /metrics HTTP/1.1\r\n\r\n"), "405");
        for malformed in
            ["GET /metrics HTTP/2\r\n\r\n", "GET  /metrics HTTP/1.1\r\n\r\n", "\r\n\r\n", "GET\r\n\r\n"]
        {
            assert_eq!(status(malformed), "400", "{malformed:?}");
        }
        assert_eq!(judge(b"\xff\xfe\0\r\n\r\n"), MALFORMED);
    }

    #[test]
    fn addresses_are_a_port_or_a_path() {
        let parse = str::parse::<MetricsAddress>;
        assert_eq!(parse("[::1]:9100"), Ok(MetricsAddress::Tcp("[::1]:9100".parse().expect("an address"))));
        assert_eq!(parse("unix:/run/m.sock"), Ok(MetricsAddress::Unix("/run/m.sock".into())));
        for malformed in ["", "unix:", "localhost:9100", "/run/m.sock", "127.0.0.1"] {
            assert_eq!(parse(malformed), Err(MalformedMetricsAddress), "{malformed}");
        }
    }

    #[test]
    fn what_is_not_on_loopback_is_refused() {
        for address in ["0.0.0.0:0", "192.0.2.1:80", "[::]:0"] {
            let address: MetricsAddress = address.parse().expect("an address");
            assert!(matches!(address.require_local(), Err(ControlError::MetricsNotLoopback { .. })));
        }
    }
}
