//! What protects records after the handshake: rustls's own ciphers of records, under the keys the handshake came to.
//!
//! rustls's connection would move every byte that is received four times. Its cipher decrypts a record where it lies, and so
//! only two things of TLS remain to be done here: which message may come and what it means (RFC 8446, sections 4.6.3,
//! 5 and 6; RFC 5246, sections 6 and 7.2), and that keys are renewed in time.

use std::ops::Range;

use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, MessageEncrypter, OutboundChunks,
    OutboundPlainMessage,
};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    AlertDescription, ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, HandshakeType,
    InvalidMessage, PeerMisbehaved, ProtocolVersion, SupportedCipherSuite,
};

/// Key updates (RFC 8446, section 4.6.3), each of them all of its message: the sender's key is the next one from here
/// on, and the receiver's own is to follow or not.
const UPDATE_NOT_REQUESTED: [u8; 5] = [24, 0, 0, 1, 0];
const UPDATE_REQUESTED: [u8; 5] = [24, 0, 0, 1, 1];
/// Levels of alerts (RFC 8446, section 6).
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// How often a client may renew its key, or warn, without sending anything between.
const MOST_IN_A_ROW: u32 = 32;

/// Both directions of a connection after its handshake.
pub(super) struct Protection {
    suite: SupportedCipherSuite,
    keys: KernelConnection<ServerConnectionData>,
    sealing: Direction<dyn MessageEncrypter>,
    opening: Direction<dyn MessageDecrypter>,
    /// So many records may be sent under one key.
    pub(super) most_records: u64,
    /// The client has asked for another key.
    is_renewal_due: bool,
    /// The beginning of a message that goes on in the next record.
    message: Vec<u8>,
    in_a_row: u32,
}

struct Direction<C: ?Sized> {
    cipher: Box<C>,
    /// The number of the next record.
    number: u64,
}

/// What a record held.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Opened {
    /// Data: this range of the record's body.
    Data(Range<usize>),
    /// Something between the two sides of TLS.
    Nothing,
    /// The client's goodbye.
    Goodbye,
}

impl Protection {
    /// Goes on where a handshake ended.
    pub(super) fn new(
        secrets: ExtractedSecrets,
        keys: KernelConnection<ServerConnectionData>,
    ) -> Result<Self, Error> {
        let suite = keys.negotiated_cipher_suite();
        let (sent, secret) = secrets.tx;
        let sealing = Direction { cipher: encrypter(suite, secret)?, number: sent };
        let (received, secret) = secrets.rx;
        let opening = Direction { cipher: decrypter(suite, secret)?, number: received };
        let most_records = match suite {
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
        };
        let (message, in_a_row) = (Vec::new(), 0);
        Ok(Self { suite, keys, sealing, opening, most_records, is_renewal_due: false, message, in_a_row })
    }

    #[cfg(test)]
    pub(super) fn sent_under_this_key(&self) -> u64 {
        self.sealing.number
    }

    fn is_tls13(&self) -> bool {
        self.suite.tls13().is_some()
    }

    /// Makes a record of at most 16 KiB of data, and hands it to `send`; before it one that announces another key, if the
    /// time for that has come. TLS 1.2 has no such thing: an error is that its connection has to end.
    pub(super) fn seal_data(
        &mut self,
        data: OutboundChunks<'_>,
        mut send: impl FnMut(Vec<u8>),
    ) -> Result<(), Error> {
        if self.is_renewal_due || self.sealing.number >= self.most_records {
            if !self.is_tls13() {
                return Err(Error::EncryptError);
            }
            send(self.seal(ContentType::Handshake, (&UPDATE_NOT_REQUESTED[..]).into())?);
            let (number, secret) = self.keys.update_tx_secret()?;
            self.sealing = Direction { cipher: encrypter(self.suite, secret)?, number };
            self.is_renewal_due = false;
        }
        send(self.seal(ContentType::ApplicationData, data)?);
        Ok(())
    }

    /// Our goodbye.
    pub(super) fn seal_goodbye(&mut self) -> Result<Vec<u8>, Error> {
        let alert = [WARNING, AlertDescription::CloseNotify.into()];
        self.seal(ContentType::Alert, (&alert[..]).into())
    }

    /// Why the connection ends; `None` if the client has said so itself.
    pub(super) fn seal_failure(&mut self, error: &Error) -> Option<Vec<u8>> {
        let description = match error {
            Error::AlertReceived(_) => return None,
            Error::DecryptError => AlertDescription::BadRecordMac,
            Error::PeerSentOversizedRecord => AlertDescription::RecordOverflow,
            Error::InvalidMessage(_) => AlertDescription::DecodeError,
            _ => AlertDescription::UnexpectedMessage,
        };
        self.seal(ContentType::Alert, (&[FATAL, description.into()][..]).into()).ok()
    }

    fn seal(&mut self, kind: ContentType, plain: OutboundChunks<'_>) -> Result<Vec<u8>, Error> {
        let message = OutboundPlainMessage { typ: kind, version: ProtocolVersion::TLSv1_2, payload: plain };
        let next = self.sealing.number.checked_add(1).ok_or(Error::EncryptError)?;
        let sealed = self.sealing.cipher.encrypt(message, self.sealing.number)?;
        self.sealing.number = next;
        Ok(sealed.encode())
    }

    /// Decrypts a record's body in its place. `outer` is the kind that its header tells. After an error the body is
    /// lost, and no further record can be opened.
    pub(super) fn open(&mut self, outer: ContentType, body: &mut [u8]) -> Result<Opened, Error> {
        if self.is_tls13() && outer != ContentType::ApplicationData {
            return Err(unexpected(outer));
        }
        let next = self.opening.number.checked_add(1).ok_or(Error::DecryptError)?;
        let start = body.as_ptr().addr();
        let sealed = InboundOpaqueMessage::new(outer, ProtocolVersion::TLSv1_2, body);
        let plain = self.opening.cipher.decrypt(sealed, self.opening.number)?;
        self.opening.number = next;
        if !self.message.is_empty() && plain.typ != ContentType::Handshake {
            return Err(PeerMisbehaved::MessageInterleavedWithHandshakeMessage.into());
        }
        match plain.typ {
            ContentType::ApplicationData => {
                self.in_a_row = 0;
                let start = plain.payload.as_ptr().addr() - start;
                Ok(Opened::Data(start..start + plain.payload.len()))
            }
            ContentType::Alert => self.alert(plain.payload),
            ContentType::Handshake if self.is_tls13() => self.handshake(plain.payload),
            other => Err(unexpected(other)),
        }
    }

    fn alert(&mut self, alert: &[u8]) -> Result<Opened, Error> {
        let &[level, description] = alert else {
            return Err(InvalidMessage::UnexpectedMessage("an alert of two bytes").into());
        };
        match AlertDescription::from(description) {
            AlertDescription::CloseNotify => Ok(Opened::Goodbye),
            // It comes before the goodbye. In TLS 1.3 every other one is fatal, whatever its level.
            AlertDescription::UserCanceled => self.nothing(),
            _ if level == WARNING && !self.is_tls13() => self.nothing(),
            other => Err(Error::AlertReceived(other)),
        }
    }

    /// The one message that a client of TLS 1.3 may still send. It ends its record, for the next has another key.
    fn handshake(&mut self, piece: &[u8]) -> Result<Opened, Error> {
        if piece.is_empty() {
            return Err(InvalidMessage::InvalidEmptyPayload.into());
        }
        if self.message.len() + piece.len() > UPDATE_REQUESTED.len() {
            return Err(PeerMisbehaved::KeyEpochWithPendingFragment.into());
        }
        self.message.extend_from_slice(piece);
        let is_requested = self.message == UPDATE_REQUESTED;
        if is_requested || self.message == UPDATE_NOT_REQUESTED {
            self.message.clear();
            let (number, secret) = self.keys.update_rx_secret()?;
            self.opening = Direction { cipher: decrypter(self.suite, secret)?, number };
            // Ours follows before the next data. However often the client asks until then: once.
            self.is_renewal_due |= is_requested;
        } else if !UPDATE_REQUESTED[..4].starts_with(&self.message) {
            let got_type = HandshakeType::from(self.message[0]);
            return Err(match got_type {
                HandshakeType::KeyUpdate => InvalidMessage::InvalidKeyUpdate.into(),
                _ => Error::InappropriateHandshakeMessage {
                    expect_types: vec![HandshakeType::KeyUpdate],
                    got_type,
                },
            });
        }
        self.nothing()
    }

    /// A record without data; a client that sends nothing else costs time.
    fn nothing(&mut self) -> Result<Opened, Error> {
        self.in_a_row += 1;
        if self.in_a_row > MOST_IN_A_ROW {
            return Err(PeerMisbehaved::TooManyKeyUpdateRequests.into());
        }
        Ok(Opened::Nothing)
    }
}

fn unexpected(got_type: ContentType) -> Error {
    Error::InappropriateMessage { expect_types: vec![ContentType::ApplicationData], got_type }
}

fn encrypter(
    suite: SupportedCipherSuite,
    secret: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageEncrypter>, Error> {
    let (key, iv) = parts(secret)?;
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.encrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let (fixed, explicit) = iv.as_ref().split_at(suite.aead_alg.key_block_shape().fixed_iv_len);
            suite.aead_alg.encrypter(key, fixed, explicit)
        }
    })
}

fn decrypter(
    suite: SupportedCipherSuite,
    secret: ConnectionTrafficSecrets,
) -> Result<Box<dyn MessageDecrypter>, Error> {
    let (key, iv) = parts(secret)?;
    Ok(match suite {
        SupportedCipherSuite::Tls13(suite) => suite.aead_alg.decrypter(key, iv),
        SupportedCipherSuite::Tls12(suite) => {
            let fixed = suite.aead_alg.key_block_shape().fixed_iv_len;
            suite.aead_alg.decrypter(key, &iv.as_ref()[..fixed])
        }
    })
}

fn parts(secret: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secret {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General("a cipher that is not among those offered".to_owned())),
    }
}
