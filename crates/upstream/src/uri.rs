//! NBD URIs (the NBD project's uri.md), read strictly: where an export is, and whether TLS leads there.
//!
//! What this client cannot do, or what would make the URI a secret, is refused by name; nothing in it is
//! passed over. [`ExportUri`]'s `Display` is the canonical form: equal places, written the same way, are
//! equal texts.

use std::ffi::OsString;
use std::fmt;
use std::net::Ipv6Addr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use sealblk_nbd::wire::MAX_STRING_BYTES;

/// The port that IANA gave to NBD.
const DEFAULT_PORT: u16 = 10809;
/// Whose name a server's certificate must carry where the URI names no host (libnbd's rule too).
const LOCAL_NAME: &str = "localhost";

/// Where an export is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExportUri {
    place: Place,
    tls: Option<Tls>,
    export: String,
}

/// What to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    /// A Unix socket, by its absolute path.
    Unix(PathBuf),
    /// A host, by name or address (IPv6 without brackets), and its port.
    Tcp { host: String, port: u16 },
}

/// How the server is told from an impostor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Tls {
    /// Holds `ca-cert.pem`, and if the server wants to know us `client-cert.pem` and `client-key.pem`.
    pub(crate) certificates: PathBuf,
    /// The name that the server's certificate must carry, if it is not the host's.
    hostname: Option<String>,
}

/// Why a text is not the URI of an export: the part, and what is wrong with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not the URI of an NBD export: {part} {wrong}")]
pub struct UriError {
    /// Which part.
    pub part: &'static str,
    /// What is wrong with it.
    pub wrong: &'static str,
}

const fn wrong(part: &'static str, wrong: &'static str) -> UriError {
    UriError { part, wrong }
}

impl ExportUri {
    /// Whether `text` begins with a scheme of NBD, so that it is no path.
    pub fn is_meant_by(text: &str) -> bool {
        text.split_once(':').is_some_and(|(scheme, _)| Scheme::named(scheme).is_some())
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// The export's name; empty: the server's default export.
    pub fn export(&self) -> &str {
        &self.export
    }

    /// The name that the server's certificate must carry.
    pub(crate) fn server_name(&self) -> &str {
        let told = self.tls.as_ref().and_then(|tls| tls.hostname.as_deref());
        told.unwrap_or(match &self.place {
            Place::Tcp { host, .. } => host,
            Place::Unix(_) => LOCAL_NAME,
        })
    }
}

/// The schemes that mean a socket and newstyle negotiation.
struct Scheme {
    unix: bool,
    tls: bool,
}

impl Scheme {
    fn named(name: &str) -> Option<Self> {
        let (unix, tls) = match name.to_ascii_lowercase().as_str() {
            "nbd" => (false, false),
            "nbds" => (false, true),
            "nbd+unix" => (true, false),
            "nbds+unix" => (true, true),
            _ => return None,
        };
        Some(Self { unix, tls })
    }
}

impl FromStr for ExportUri {
    type Err = UriError;

    fn from_str(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = text.split_once(':').ok_or(wrong("the scheme", "is missing"))?;
        let scheme =
            Scheme::named(scheme).ok_or(wrong("the scheme", "is none of nbd, nbds, nbd+unix, nbds+unix"))?;
        let rest = rest.strip_prefix("//").ok_or(wrong("the scheme", "is not followed by //"))?;
        if rest.contains('#') {
            return Err(wrong("the fragment", "has no meaning here"));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let query = Query::parse(query)?;
        if authority.contains('@') {
            return Err(wrong("the user", "has no meaning here: identity comes from client-cert.pem"));
        }
        let place = if scheme.unix {
            if !authority.is_empty() {
                return Err(wrong(
                    "the host",
                    "must be empty for a Unix socket (nbd+unix:///EXPORT?socket=PATH)",
                ));
            }
            Place::Unix(query.socket.ok_or(wrong("socket=PATH", "is missing"))?)
        } else {
            if query.socket.is_some() {
                return Err(wrong("socket=PATH", "belongs to nbd+unix and nbds+unix only"));
            }
            host_and_port(authority)?
        };
        let tls = match (scheme.tls, query.certificates, query.hostname) {
            (false, None, None) => None,
            (false, _, _) => return Err(wrong("a TLS parameter", "belongs to nbds and nbds+unix only")),
            (true, None, _) => return Err(wrong("tls-certificates=DIR", "is missing")),
            (true, Some(certificates), hostname) => Some(Tls { certificates, hostname }),
        };
        Ok(Self { place, tls, export: export_name(path)? })
    }
}

/// The parameters behind the question mark.
#[derive(Default)]
struct Query {
    socket: Option<PathBuf>,
    certificates: Option<PathBuf>,
    hostname: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Result<Self, UriError> {
        let mut query = Self::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').ok_or(wrong("a parameter", "has no value"))?;
            let repeated = match key {
                "socket" => query.socket.replace(path(value, "socket=PATH")?).is_some(),
                "tls-certificates" => {
                    query.certificates.replace(path(value, "tls-certificates=DIR")?).is_some()
                }
                "tls-hostname" => query.hostname.replace(hostname(value)?).is_some(),
                "tls-psk-file" => return Err(wrong("tls-psk-file", "is not supported: use certificates")),
                _ => return Err(wrong("a parameter", "is none of socket, tls-certificates, tls-hostname")),
            };
            if repeated {
                return Err(wrong("a parameter", "is given twice"));
            }
        }
        Ok(query)
    }
}

/// An absolute path: a relative one would depend on who reads the URI.
fn path(value: &str, part: &'static str) -> Result<PathBuf, UriError> {
    let bytes = percent_decoded(value).ok_or(wrong(part, "has a % without two hexadecimal digits"))?;
    let path = PathBuf::from(OsString::from_vec(bytes));
    if !path.is_absolute() {
        return Err(wrong(part, "is not an absolute path"));
    }
    if path.as_os_str().as_bytes().contains(&0) {
        return Err(wrong(part, "contains a NUL"));
    }
    Ok(path)
}

fn hostname(value: &str) -> Result<String, UriError> {
    const PART: &str = "tls-hostname=NAME";
    let bytes = percent_decoded(value).ok_or(wrong(PART, "has a % without two hexadecimal digits"))?;
    host_name(&bytes).ok_or(wrong(PART, "is not a host name or address"))
}

/// A name or address in lower case; of letters, digits and what addresses need.
fn host_name(bytes: &[u8]) -> Option<String> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._:".contains(byte);
    let name = std::str::from_utf8(bytes).ok()?;
    (!name.is_empty() && name.len() <= 253 && bytes.iter().all(fits)).then(|| name.to_ascii_lowercase())
}

fn host_and_port(authority: &str) -> Result<Place, UriError> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (address, port) = rest.split_once(']').ok_or(wrong("the host", "has a [ without a ]"))?;
        let address: Ipv6Addr =
            address.parse().map_err(|_| wrong("the host", "is not an IPv6 address in brackets"))?;
        (address.to_string(), port)
    } else {
        let end = authority.find(':').unwrap_or(authority.len());
        let (host, port) = authority.split_at(end);
        if host.is_empty() {
            return Err(wrong("the host", "is missing"));
        }
        (host_name(host.as_bytes()).ok_or(wrong("the host", "is not a host name or address"))?, port)
    };
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => DEFAULT_PORT,
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
            digits.parse().ok().filter(|port| *port != 0).ok_or(wrong("the port", "is not 1 to 65535"))?
        }
        _ => return Err(wrong("the port", "is not 1 to 65535")),
    };
    Ok(Place::Tcp { host, port })
}

/// The path without its first slash, decoded.
fn export_name(path: &str) -> Result<String, UriError> {
    const PART: &str = "the export name";
    let name = path.strip_prefix('/').unwrap_or(path);
    let bytes = percent_decoded(name).ok_or(wrong(PART, "has a % without two hexadecimal digits"))?;
    if bytes.len() > MAX_STRING_BYTES {
        return Err(wrong(PART, "has more than 4096 bytes"));
    }
    if bytes.contains(&0) {
        return Err(wrong(PART, "contains a NUL"));
    }
    String::from_utf8(bytes).map_err(|_| wrong(PART, "is not UTF-8"))
}

fn percent_decoded(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16).and_then(|value| u8::try_from(value).ok());
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
            decoded.push(high << 4 | low);
        } else {
            decoded.push(byte);
        }
    }
    Some(decoded)
}

/// Bytes as they may stand in a path or a query (RFC 3986): unreserved characters and the slash as they are.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &byte in self.0 {
            if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
                write!(f, "{}", char::from(byte))?;
            } else {
                write!(f, "%{byte:02X}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for ExportUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let escaped = |path: &Path| Escaped(path.as_os_str().as_bytes()).to_string();
        f.write_str(if self.tls.is_some() { "nbds" } else { "nbd" })?;
        let mut query = Vec::new();
        match &self.place {
            Place::Unix(socket) => {
                f.write_str("+unix://")?;
                query.push(format!("socket={}", escaped(socket)));
            }
            Place::Tcp { host, port } => {
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "://{open}{host}{close}")?;
                if *port != DEFAULT_PORT {
                    write!(f, ":{port}")?;
                }
            }
        }
        write!(f, "/{}", Escaped(self.export.as_bytes()))?;
        if let Some(tls) = &self.tls {
            query.push(format!("tls-certificates={}", escaped(&tls.certificates)));
            query.extend(tls.hostname.as_ref().map(|name| format!("tls-hostname={name}")));
        }
        if query.is_empty() { Ok(()) } else { write!(f, "?{}", query.join("&")) }
    }
}

#[cfg(test)]
mod tests;
