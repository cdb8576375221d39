//! From a directory of certificates, named as libnbd and qemu name them, to a TLS client. Only the given
//! authority is believed; there is no way to leave the check out.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use crate::error::UpstreamError;
use crate::uri::ExportUri;

/// What a connection needs to begin TLS.
#[derive(Clone)]
pub(crate) struct TlsClient {
    pub(crate) connector: TlsConnector,
    pub(crate) server: ServerName<'static>,
}

impl TlsClient {
    /// As `uri` asks; `None` if it asks for no TLS. Reads the files.
    pub(crate) fn of(uri: &ExportUri) -> Result<Option<Self>, UpstreamError> {
        let Some(tls) = uri.tls() else { return Ok(None) };
        let server = ServerName::try_from(uri.server_name().to_owned())
            .map_err(|_| UpstreamError::Unfit("the host is not a name that a certificate can carry"))?;
        let config = client_config(&tls.certificates)?;
        Ok(Some(Self { connector: TlsConnector::from(Arc::new(config)), server }))
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn client_config(directory: &Path) -> Result<ClientConfig, UpstreamError> {
    let authority = directory.join("ca-cert.pem");
    let bad = |path: &PathBuf, what, source: Cause| UpstreamError::Certificates {
        path: path.clone(),
        what,
        source,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&authority)? {
        roots
            .add(certificate)
            .map_err(|error| bad(&authority, "not an authority's certificate", error.into()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| UpstreamError::Tls(io::Error::other(error)))?
        .with_root_certificates(roots);
    let (own, key) = (directory.join("client-cert.pem"), directory.join("client-key.pem"));
    if !own.exists() && !key.exists() {
        return Ok(builder.with_no_client_auth());
    }
    let chain = certificates(&own)?;
    let secret = PrivateKeyDer::from_pem_file(&key)
        .map_err(|error| bad(&key, "cannot be read as a PEM file with a private key", error.into()))?;
    builder
        .with_client_auth_cert(chain, secret)
        .map_err(|error| bad(&own, "does not go with client-key.pem", error.into()))
}

/// At least one certificate.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, UpstreamError> {
    let bad = |source: Cause| UpstreamError::Certificates {
        path: path.to_owned(),
        what: "cannot be read as a PEM file with a certificate",
        source,
    };
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = found.map_err(|error| bad(error.into()))?;
    if found.is_empty() { Err(bad("no certificate in it".into())) } else { Ok(found) }
}
