//! TLS of a listener: whose certificate is shown, and which clients are let in.
//!
//! The certificates are PEM files in one directory, named as QEMU, libnbd and nbdkit name them. TLS 1.3 and 1.2,
//! on rustls with ring; no session is resumed, so that every connection is checked whole. [`crate::connection`]
//! upgrades a connection after STARTTLS; there is no TLS without STARTTLS, and none is optional: a listener that
//! has a [`TlsServer`] serves nobody without it.
//!
//! The private key stays in rustls's own memory, which is ordinary memory: it opens connections, no data at rest.
//! There is no pre-shared-key mode, because rustls has none.

mod handshake;
mod names;
mod protection;
mod received;
mod stream;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::crypto::{CryptoProvider, ring};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};

use names::NamedClients;
pub(crate) use stream::TlsStream;

/// The server's certificate, and those between it and its authority.
const CERTIFICATE: &str = "server-cert.pem";
/// The server's private key.
const KEY: &str = "server-key.pem";
/// The authorities that clients' certificates come from.
const AUTHORITIES: &str = "ca-cert.pem";
/// Certificates that were taken back; need not be there.
const REVOCATIONS: &str = "ca-crl.pem";

/// Which clients may go on after the TLS handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TlsClients {
    /// Any: TLS shows the client who the server is, not the other way round.
    Any,
    /// Those with a certificate from one of the authorities.
    Certified,
    /// Those whose certificate from one of the authorities has one of these names, exactly, as its
    /// subject's common name or as a DNS name among its alternative names. An empty list lets nobody in.
    Named(Vec<String>),
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or is not PEM.
    #[error("cannot read {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file holds nothing of the kind that belongs there.
    #[error("{} holds no {wanted}", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
        /// What belongs there.
        wanted: &'static str,
    },
    /// The certificate and the key do not fit each other, or are of no kind that is known.
    #[error("the certificate or key in {} cannot be used", directory.display())]
    Unusable {
        /// Where they are.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: rustls::Error,
    },
    /// Clients cannot be checked against these authorities or revocations.
    #[error("clients cannot be checked with what is in {}", directory.display())]
    Verifier {
        /// Where they are.
        directory: PathBuf,
        /// The cause.
        #[source]
        source: VerifierBuilderError,
    },
}

/// The TLS that a listener requires.
///
/// The files are read again when they have changed, so that a renewed certificate, or a new revocation, holds from
/// the next connection on. If they cannot be used then, no client is let in until they can.
#[derive(Debug)]
pub struct TlsServer {
    directory: PathBuf,
    clients: TlsClients,
    loaded: Mutex<Loaded>,
}

/// What the files said when they were read last.
#[derive(Clone, Debug)]
struct Loaded {
    config: Arc<ServerConfig>,
    stamps: Stamps,
}

/// When each file was last changed; `None` for one that is not there.
type Stamps = [Option<(SystemTime, u64)>; 4];

impl TlsServer {
    /// Reads `server-cert.pem`, `server-key.pem` and, if clients are to be checked, `ca-cert.pem` and, if it is
    /// there, `ca-crl.pem` in `directory`.
    pub fn from_directory(directory: &Path, clients: TlsClients) -> Result<Self, TlsError> {
        let loaded = Mutex::new(load(directory, &clients)?);
        Ok(Self { directory: directory.to_owned(), clients, loaded })
    }

    /// Which clients are let in.
    pub fn clients(&self) -> &TlsClients {
        &self.clients
    }

    /// What the files say now.
    pub(crate) fn current(&self) -> Result<Arc<ServerConfig>, TlsError> {
        // Every value that was ever stored is whole.
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.stamps != stamps(&self.directory) {
            *loaded = load(&self.directory, &self.clients)?;
        }
        Ok(Arc::clone(&loaded.config))
    }
}

fn stamps(directory: &Path) -> Stamps {
    [CERTIFICATE, KEY, AUTHORITIES, REVOCATIONS].map(|name| {
        let metadata = std::fs::metadata(directory.join(name)).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    })
}

fn load(directory: &Path, clients: &TlsClients) -> Result<Loaded, TlsError> {
    // Before the files are read: a change in between is then seen the next time.
    let stamps = stamps(directory);
    let unusable = |source| TlsError::Unusable { directory: directory.to_owned(), source };
    let chain: Vec<CertificateDer<'static>> = all(&directory.join(CERTIFICATE), "certificate")?;
    let key = private_key(&directory.join(KEY))?;
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?;
    let builder = match clients {
        TlsClients::Any => builder.with_no_client_auth(),
        TlsClients::Certified => builder.with_client_cert_verifier(certified(directory, provider)?),
        TlsClients::Named(names) => {
            let named = NamedClients::new(certified(directory, provider)?, names);
            builder.with_client_cert_verifier(Arc::new(named))
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(unusable)?;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    // For `protection`, which goes on where the handshake ends.
    config.enable_secret_extraction = true;
    Ok(Loaded { config: Arc::new(config), stamps })
}

/// Checks clients' certificates against the authorities.
fn certified(
    directory: &Path,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let failed = |source| TlsError::Verifier { directory: directory.to_owned(), source };
    let mut roots = RootCertStore::empty();
    for authority in all::<CertificateDer<'static>>(&directory.join(AUTHORITIES), "certificate")? {
        roots
            .add(authority)
            .map_err(|source| TlsError::Unusable { directory: directory.to_owned(), source })?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    let revocations = directory.join(REVOCATIONS);
    let builder = if revocations.exists() {
        let lists: Vec<CertificateRevocationListDer<'static>> = all(&revocations, "revocation list")?;
        // A list says which of its own authority's certificates are void; it need not come with one of
        // every authority.
        builder.with_crls(lists).allow_unknown_revocation_status()
    } else {
        builder
    };
    builder.build().map_err(failed)
}

/// Everything of one kind that a PEM file holds, and at least one.
fn all<T: PemObject>(path: &Path, wanted: &'static str) -> Result<Vec<T>, TlsError> {
    let items = T::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<T>, _>>);
    let items = items.map_err(|error| unreadable(path, wanted, error))?;
    if items.is_empty() {
        return Err(TlsError::Empty { path: path.to_owned(), wanted });
    }
    Ok(items)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| unreadable(path, "private key", error))
}

/// Says of a PEM file what is wrong with it, and nothing of what is in it.
fn unreadable(path: &Path, wanted: &'static str, error: pem::Error) -> TlsError {
    let path = path.to_owned();
    match error {
        pem::Error::Io(source) => TlsError::File { path, source },
        pem::Error::NoItemsFound => TlsError::Empty { path, wanted },
        _ => TlsError::File { path, source: io::Error::new(io::ErrorKind::InvalidData, "it is not PEM") },
    }
}
