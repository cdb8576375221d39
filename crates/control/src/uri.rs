//! NBD URIs (the NBD project's uri.md): how clients are told where a volume is.

use std::fmt::Write;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use sealblk_volume::VolumeId;

/// `nbd+unix:///VOL?socket=PATH`.
pub(crate) fn unix_uri(id: VolumeId, socket: &Path) -> String {
    let mut uri = format!("nbd+unix:///{id}?socket=");
    for &byte in socket.as_os_str().as_bytes() {
        // RFC 3986: unreserved characters, and the slash, which a query may hold.
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            write!(uri, "%{byte:02X}").expect("a String takes everything");
        }
    }
    uri
}

/// `nbd://ADDRESS:PORT/VOL`; with TLS `nbds://…`.
pub(crate) fn tcp_uri(id: VolumeId, address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "nbds" } else { "nbd" };
    format!("{scheme}://{address}/{id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_as_a_query() {
        let id: VolumeId = "vol-0123456789abcdef0".parse().expect("an id");
        let uri = unix_uri(id, Path::new("/run/a b/ü&?.sock"));
        assert_eq!(uri, "nbd+unix:///vol-0123456789abcdef0?socket=/run/a%20b/%C3%BC%26%3F.sock");
        let address = "[::1]:7".parse().expect("an address");
        assert_eq!(tcp_uri(id, address, false), "nbd://[::1]:7/vol-0123456789abcdef0");
        assert_eq!(tcp_uri(id, address, true), "nbds://[::1]:7/vol-0123456789abcdef0");
    }
}
