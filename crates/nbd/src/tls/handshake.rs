//! The handshake, which is rustls's; it leaves what protects the records that follow.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;

use rustls::server::{ServerConnectionData, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData};
use rustls::{Error, PeerMisbehaved, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::protection::Protection;
use super::received::Received;

/// Does the handshake. What `received` holds afterwards came behind it. If it fails, the client has been told why.
pub(super) async fn shake_hands<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    received: &mut Received,
    config: Arc<ServerConfig>,
) -> io::Result<Protection> {
    let mut connection = UnbufferedServerConnection::new(config).map_err(invalid)?;
    let mut replies = Vec::new();
    // rustls is shown whole records, one more whenever it has no use for those there are; so what comes behind the
    // handshake it does not see.
    let mut shown_bytes = 0;
    loop {
        let start = received.sealed().start;
        let status = connection.process_tls_records(received.bytes(start..start + shown_bytes));
        let discard = status.discard;
        let mut is_blocked = false;
        match status.state {
            Ok(ConnectionState::EncodeTlsData(data)) => append(&mut replies, data),
            Ok(ConnectionState::TransmitTlsData(sent)) => {
                stream.write_all(&replies).await?;
                stream.flush().await?;
                replies.clear();
                sent.done();
            }
            Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => is_blocked = true,
            // A goodbye. There was no early data to offer, and no other can come yet.
            Ok(_) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) => {
                let rest = received.bytes(start + discard..start + shown_bytes);
                tell_why(stream, connection, rest).await;
                return Err(invalid(error));
            }
        }
        received.discard(discard);
        shown_bytes -= discard;
        if is_blocked && !connection.is_handshaking() {
            break;
        }
        if is_blocked {
            shown_bytes = with_one_more(stream, received, shown_bytes).await?;
        }
    }
    if shown_bytes > 0 {
        return Err(invalid(PeerMisbehaved::KeyEpochWithPendingFragment.into()));
    }
    let (secrets, keys) = connection.dangerous_into_kernel_connection().map_err(invalid)?;
    Protection::new(secrets, keys).map_err(invalid)
}

/// Receives the record behind the first `shown_bytes`; how far it reaches.
async fn with_one_more<S: AsyncRead + Unpin>(
    stream: &mut S,
    received: &mut Received,
    shown_bytes: usize,
) -> io::Result<usize> {
    loop {
        let sealed = received.sealed();
        match received.record_at(sealed.start + shown_bytes) {
            Ok(Some(record)) => return Ok(record.body.end - sealed.start),
            // No TLS. rustls knows what is to be said to that.
            Err(_) => return Ok(sealed.len()),
            Ok(None) => {}
        }
        if poll_fn(|context| received.poll_fill(stream, context)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Adds what rustls has to say.
fn append(replies: &mut Vec<u8>, mut data: EncodeTlsData<'_, ServerConnectionData>) {
    if let Err(EncodeError::InsufficientSize(lack)) = data.encode(&mut []) {
        let start = replies.len();
        replies.resize(start + lack.required_size, 0);
        data.encode(&mut replies[start..]).expect("there is as much room as it asked for");
    }
}

/// Sends the alert that an error left behind, if the client takes it.
async fn tell_why<S: AsyncWrite + Unpin>(
    stream: &mut S,
    mut connection: UnbufferedServerConnection,
    records: &mut [u8],
) {
    let mut alert = Vec::new();
    // What is to be said comes before the records, but they must be there. Asked again, rustls would look at what was
    // wrong once more.
    if let Ok(ConnectionState::EncodeTlsData(data)) = connection.process_tls_records(records).state {
        append(&mut alert, data);
    }
    // The error that is told is the first.
    let _ = stream.write_all(&alert).await;
    let _ = stream.flush().await;
}

pub(super) fn invalid(error: Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
