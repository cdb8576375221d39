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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use rustls::ClientConnection;
    use tokio::io::{AsyncReadExt as _, DuplexStream};

    use super::*;
    use crate::tls::stream::tests::configs;

    /// Something that is done to what a client sends.
    #[derive(Clone, Debug)]
    enum Change {
        /// A byte becomes another.
        Set(u8),
        /// So many bytes are left out.
        Drop(usize),
        /// These bytes come between.
        Insert(Vec<u8>),
        /// The bytes up to here come again.
        Again,
        /// Nothing comes from here on.
        End,
    }

    fn change() -> impl Strategy<Value = (usize, Change)> {
        let record = (20..25_u8, any::<u16>(), prop::collection::vec(any::<u8>(), 0..60));
        let record = record.prop_map(|(kind, length, body)| {
            let length = if length % 4 == 0 { length } else { body.len() as u16 };
            [&[kind, 3, 3][..], &length.to_be_bytes(), &body].concat()
        });
        let change = prop_oneof![
            4 => any::<u8>().prop_map(Change::Set),
            1 => (1..40_usize).prop_map(Change::Drop),
            2 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Change::Insert),
            3 => record.prop_map(Change::Insert),
            1 => Just(Change::Again),
            1 => Just(Change::End),
        ];
        (0..700_usize, change)
    }

    /// Makes the changes that fall into the next `bytes` of what a client sends; whether that was the end.
    fn changed(bytes: &[u8], sent: &mut usize, changes: &[(usize, Change)]) -> (Vec<u8>, bool) {
        let mut out = Vec::new();
        let mut skip = 0_usize;
        for &byte in bytes {
            let mut byte = Some(byte).filter(|_| skip == 0);
            skip = skip.saturating_sub(1);
            for (_, change) in changes.iter().filter(|(at, _)| at == sent) {
                match change {
                    Change::Set(other) => byte = Some(*other),
                    Change::Drop(count) => skip = *count,
                    Change::Insert(more) => out.extend(more),
                    Change::Again => out.extend(out.clone()),
                    Change::End => return (out, true),
                }
            }
            out.extend(byte);
            *sent += 1;
        }
        (out, false)
    }

    /// Plays a client up to its last flight, or to what makes it give up.
    async fn play(
        mut client: ClientConnection,
        mut stream: DuplexStream,
        changes: &[(usize, Change)],
    ) -> io::Result<()> {
        let (mut sent, mut answer) = (0, [0; 4096]);
        loop {
            while client.wants_write() {
                let mut bytes = Vec::new();
                client.write_tls(&mut bytes)?;
                let (bytes, is_end) = changed(&bytes, &mut sent, changes);
                stream.write_all(&bytes).await?;
                if is_end {
                    return Ok(());
                }
            }
            if !client.is_handshaking() {
                return Ok(());
            }
            let count = stream.read(&mut answer).await?;
            if count == 0 {
                return Ok(());
            }
            let mut rest = &answer[..count];
            while !rest.is_empty() {
                client.read_tls(&mut rest)?;
                client.process_new_packets().map_err(io::Error::other)?;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn a46_whatever_comes_in_place_of_a_handshake_it_ends(
            changes in prop::collection::vec(change(), 0..4),
            old in any::<bool>(),
            piece_bytes in 32..4096_usize,
        ) {
            let version = if old { &rustls::version::TLS12 } else { &rustls::version::TLS13 };
            let (server, mut client) = configs(version);
            client.max_fragment_size = Some(piece_bytes);
            let client = ClientConnection::new(Arc::new(client), "localhost".try_into().expect("a name"));
            let client = client.expect("a client");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
            let outcome = runtime.block_on(async {
                let (mut ours, theirs) = tokio::io::duplex(1 << 16);
                let mut received = Received::new();
                let server = async {
                    let outcome = shake_hands(&mut ours, &mut received, Arc::new(server)).await;
                    drop(ours);
                    outcome
                };
                // A length that was changed has both wait for the other, and time is what ends that.
                let patience = Duration::from_millis(if changes.is_empty() { 20_000 } else { 30 });
                let both = async { tokio::join!(server, play(client, theirs, &changes)).0 };
                tokio::time::timeout(patience, both).await
            });
            if changes.is_empty() {
                let outcome = outcome.map(|outcome| outcome.map(drop));
                prop_assert!(matches!(outcome, Ok(Ok(()))), "nothing was changed, and {outcome:?}");
            }
        }
    }
}
