//! What `volume attach` can be told about its clients: where they come in, on what terms, what they may cost.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use sealblk_control::{ControlError, Endpoints, UnixEndpoint};
use sealblk_nbd::{Limits, TlsClients, TlsServer};

use crate::exit::Failure;
use crate::inherited;
use crate::size::parse_size;

/// Headings of the options here.
const SERVING: &str = "Where it is served";
const TLS: &str = "TLS";
const LIMITS: &str = "What clients may cost";

#[derive(Args)]
pub(crate) struct EndpointArgs {
    /// The Unix socket to serve at [default: RUNTIME-DIR/VOL.sock; none if sockets are inherited or with --stdio]
    #[arg(long, value_name = "PATH", help_heading = SERVING)]
    socket: Option<PathBuf>,
    /// Also serve TCP at this address; may be given several times. Off loopback it needs TLS
    #[arg(long, value_name = "ADDR:PORT", help_heading = SERVING)]
    listen: Vec<SocketAddr>,
    /// Serve the one client on standard input and output, and end with it; no ready line then
    #[arg(long, conflicts_with_all = ["socket", "listen", "tls_certificates"], help_heading = SERVING)]
    pub(crate) stdio: bool,
    /// Let this user's processes in by the Unix socket; may be given several times [default: the user that serves]
    #[arg(long = "allow-uid", value_name = "UID", help_heading = SERVING)]
    users: Vec<u32>,
    /// Serve TCP inside TLS only, with server-cert.pem and server-key.pem in this directory
    #[arg(long, value_name = "DIR", help_heading = TLS)]
    tls_certificates: Option<PathBuf>,
    /// Let in only TLS clients with a certificate from an authority in ca-cert.pem (less those in ca-crl.pem)
    #[arg(long, requires = "tls_certificates", help_heading = TLS)]
    tls_verify_peer: bool,
    /// Of those, only clients whose certificate has exactly this name; may be given several times
    #[arg(long = "tls-allow-name", value_name = "NAME", requires = "tls_certificates", help_heading = TLS)]
    tls_names: Vec<String>,
    /// Serve plain TCP off loopback too: everybody on the network can read and write the volume
    #[arg(long, conflicts_with = "tls_certificates", help_heading = TLS)]
    danger_plaintext_tcp: bool,
}

impl EndpointArgs {
    /// The endpoints, with what this process was started with.
    pub(crate) fn endpoints(&self) -> Result<Endpoints, Failure> {
        let failed = |source| ControlError::Start { what: "an inherited socket", source };
        let inherited = inherited::listening_sockets().map_err(failed)?;
        // libnbd's `[ COMMAND ]` passes a socket, and nothing on standard input: then the client is there.
        let at_stdio = self.stdio && inherited.is_empty();
        let client = if at_stdio { Some(inherited::client().map_err(failed)?) } else { None };
        let socket = match &self.socket {
            Some(path) => UnixEndpoint::At(std::path::absolute(path)?),
            None if at_stdio || !inherited.is_empty() => UnixEndpoint::Absent,
            None => UnixEndpoint::Standard,
        };
        Ok(Endpoints {
            socket,
            listen: self.listen.clone(),
            inherited,
            client,
            tls: self.tls()?.map(Arc::new),
            plaintext_tcp: self.danger_plaintext_tcp,
            users: self.users.clone(),
        })
    }

    /// Whether clients that nobody knows can come in from elsewhere.
    pub(crate) fn admits_anybody(&self) -> bool {
        let unverified = !self.tls_verify_peer && self.tls_names.is_empty();
        unverified && self.listen.iter().any(|address| !address.ip().is_loopback())
    }

    fn tls(&self) -> Result<Option<TlsServer>, Failure> {
        let Some(directory) = &self.tls_certificates else { return Ok(None) };
        let clients = if !self.tls_names.is_empty() {
            TlsClients::Named(self.tls_names.clone())
        } else if self.tls_verify_peer {
            TlsClients::Certified
        } else {
            TlsClients::Any
        };
        // Read again whenever they change; the working directory must not matter then.
        let directory = std::path::absolute(directory)?;
        Ok(Some(TlsServer::from_directory(&directory, clients).map_err(ControlError::from)?))
    }
}

#[derive(Args)]
pub(crate) struct LimitArgs {
    /// How many clients' connections are served at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), default_value = "64", help_heading = LIMITS)]
    max_connections: u32,
    /// How many of them may be one user's or one address's [default: all]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = LIMITS)]
    max_connections_per_peer: Option<u32>,
    /// How many requests of one connection wait for storage at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256), default_value = "32", help_heading = LIMITS)]
    max_in_flight: u32,
    /// Memory for the data of one connection's requests, 32 MiB to 1 GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_data_memory, default_value = "36MiB", help_heading = LIMITS)]
    max_in_flight_bytes: usize,
    /// From connecting to choosing the export, TLS included, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_limit, default_value = "10", help_heading = LIMITS)]
    handshake_timeout: Duration,
    /// A client that stops within a message, or takes none of its replies, is cut after so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_limit, default_value = "60", help_heading = LIMITS)]
    stall_timeout: Duration,
    /// A snapshot create that takes nothing for so many seconds loses what it is to save
    #[arg(long, value_name = "SECONDS", value_parser = parse_limit, default_value = "600", help_heading = LIMITS)]
    pub(crate) snapshot_stall_timeout: Duration,
    /// When ending: how long connections may take to finish what is in flight, in seconds
    #[arg(long, value_name = "SECONDS", value_parser = parse_limit, default_value = "10", help_heading = LIMITS)]
    drain_timeout: Duration,
}

impl LimitArgs {
    pub(crate) fn limits(&self) -> Limits {
        let count = |number: u32| usize::try_from(number).expect("a usize has 32 bits at least");
        Limits {
            max_connections: count(self.max_connections),
            max_connections_per_peer: self.max_connections_per_peer.map_or(usize::MAX, count),
            workers: count(self.max_in_flight),
            in_flight_bytes: self.max_in_flight_bytes,
            handshake: self.handshake_timeout,
            message_stall: self.stall_timeout,
            reply_stall: self.stall_timeout,
            drain: self.drain_timeout,
        }
    }
}

fn parse_data_memory(text: &str) -> Result<usize, String> {
    let bytes = parse_size(text)?;
    let bytes = usize::try_from(bytes).ok().filter(|bytes| (32 << 20..=1 << 30).contains(bytes));
    bytes.ok_or_else(|| "32 MiB, the largest request, up to 1 GiB".to_owned())
}

/// A limit in time: a day is more than any client needs.
fn parse_limit(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| "a whole number of seconds, 1 to 86400".to_owned())
}

/// Lets this process have as many files open as it may: a connection has about eight.
pub(crate) fn allow_many_files() -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?)
}
