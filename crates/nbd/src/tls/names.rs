//! The allow-list: which of the clients that an authority vouches for may come in.
//!
//! A name is compared whole and byte by byte. Nothing is a pattern, neither in the list nor in the certificate:
//! prefix rules have let the wrong clients in before (CVE-2013-6410).

use std::sync::Arc;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::EndEntityCert;

/// Lets in clients that another verifier lets in and that have one of these names.
#[derive(Debug)]
pub(super) struct NamedClients {
    certified: Arc<dyn ClientCertVerifier>,
    names: Vec<String>,
}

impl NamedClients {
    pub(super) fn new(certified: Arc<dyn ClientCertVerifier>, names: &[String]) -> Self {
        Self { certified, names: names.to_vec() }
    }

    fn is_allowed(&self, certificate: &CertificateDer<'_>) -> Result<bool, Error> {
        let certificate = EndEntityCert::try_from(certificate)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let listed = |name: &str| self.names.iter().any(|allowed| allowed == name);
        Ok(certificate.valid_dns_names().any(listed) || common_names(certificate.subject()).any(listed))
    }
}

impl ClientCertVerifier for NamedClients {
    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.certified.verify_client_cert(end_entity, intermediates, now)?;
        if self.is_allowed(end_entity)? {
            return Ok(verified);
        }
        Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.certified.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.certified.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.certified.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.certified.supported_verify_schemes()
    }
}

/// DER (X.690): SEQUENCE, SET, OBJECT IDENTIFIER, and the kinds of string that hold text as ASCII or UTF-8.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT: u8 = 0x06;
const TEXTS: [u8; 3] = [0x0c, 0x13, 0x16];
/// 2.5.4.3, id-at-commonName (RFC 5280, A.1).
const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];

/// The common names in a subject, given without its outer SEQUENCE: a list of SETs of pairs. What is no text is
/// no name.
fn common_names(subject: &[u8]) -> impl Iterator<Item = &str> {
    elements(subject)
        .filter(|(tag, _)| *tag == SET)
        .flat_map(|(_, set)| elements(set))
        .filter(|(tag, _)| *tag == SEQUENCE)
        .filter_map(|(_, pair)| {
            let mut pair = elements(pair);
            let (OBJECT, COMMON_NAME) = pair.next()? else { return None };
            let (tag, text) = pair.next()?;
            TEXTS.contains(&tag).then_some(text).and_then(|text| std::str::from_utf8(text).ok())
        })
}

/// The elements of a run of DER, up to the first that is malformed or too long for a name: tag and content.
fn elements(mut der: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&tag, rest) = der.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81 => rest.split_first().map(|(&length, rest)| (usize::from(length), rest))?,
            0x82 => {
                let (length, rest) = rest.split_first_chunk::<2>()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        der = rest;
        Some((tag, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One pair of type and value, in its SET.
    fn pair(object: &[u8], tag: u8, text: &str) -> Vec<u8> {
        let element = |tag: u8, content: &[u8]| {
            let length = u8::try_from(content.len()).expect("short");
            let long = if length > 0x7f { vec![tag, 0x81, length] } else { vec![tag, length] };
            [&long, content].concat()
        };
        let value = [element(OBJECT, object), element(tag, text.as_bytes())].concat();
        element(SET, &element(SEQUENCE, &value))
    }

    #[test]
    fn common_names_are_found_among_other_parts_of_a_subject() {
        let long = "x".repeat(140);
        let subject = [
            pair(&[0x55, 0x04, 0x0a], 0x0c, "an organisation"),
            pair(COMMON_NAME, 0x0c, "host-1"),
            pair(COMMON_NAME, 0x13, &long),
        ]
        .concat();
        assert_eq!(common_names(&subject).collect::<Vec<_>>(), ["host-1", &long]);
    }

    #[test]
    fn malformed_subjects_have_no_names_and_do_no_harm() {
        let subject = pair(COMMON_NAME, 0x0c, "host-1");
        for cut in 0..subject.len() {
            assert_eq!(common_names(&subject[..cut]).count(), 0);
        }
        for (tag, text) in [(0x1e, "host-1"), (0x04, "host-1")] {
            assert_eq!(common_names(&pair(COMMON_NAME, tag, text)).count(), 0);
        }
        assert_eq!(common_names(&[SET, 0x84, 0xff, 0xff, 0xff, 0xff]).count(), 0);
    }
}
