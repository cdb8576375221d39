//! From a provider's configuration to a client: credentials and settings come from AWS's standard chain, which reads
//! this process's environment; what the pool configures goes before.

use std::path::Path;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use sealblk_kms::helper::ProviderConfig;
use sealblk_kms::{Kms, KmsError, Unlock};

use crate::error::misconfigured;
use crate::provider::AwsKms;

/// Attempts at one call, with the SDK's exponential backoff and jitter between them. The parent bounds them all in time.
const ATTEMPTS: u32 = 3;

/// Opens a provider in this process: AWS KMS here, any other by the crate that has it, because a data key may be
/// carried from one to the other.
pub fn open(config: &ProviderConfig, unlock: &Unlock) -> Result<Box<dyn Kms>, KmsError> {
    let ProviderConfig::AwsKms { region, endpoint_url, profile, ca_file, attempt_ms } = config else {
        return config.open(unlock);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| misconfigured("no runtime for the AWS SDK", Some(error)))?;
    let tls = trust(ca_file.as_deref())?;
    let client = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::Ring))
        .tls_context(tls)
        .build_https();
    let timeouts =
        TimeoutConfig::builder().operation_attempt_timeout(Duration::from_millis(*attempt_ms)).build();
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .http_client(client)
        .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
        .timeout_config(timeouts);
    if let Some(region) = region {
        loader = loader.region(Region::new(region.clone()));
    }
    if let Some(url) = endpoint_url {
        loader = loader.endpoint_url(url);
    }
    if let Some(profile) = profile {
        loader = loader.profile_name(profile);
    }
    let settings = runtime.block_on(loader.load());
    if settings.region().is_none() {
        return Err(misconfigured(
            "no region: name it in the key's URI (?region=…), in the pool's kms.json or in AWS_REGION",
            None,
        ));
    }
    Ok(Box::new(AwsKms::new(runtime, &settings)))
}

/// The certificate authorities to believe: those of `file` alone, or the system's.
fn trust(file: Option<&Path>) -> Result<TlsContext, KmsError> {
    let store = match file {
        None => TrustStore::default(),
        Some(path) => {
            let pem = std::fs::read(path);
            let pem = pem.map_err(|error| {
                misconfigured(format!("the CA file {} cannot be read", path.display()), Some(error))
            })?;
            TrustStore::empty().with_pem_certificate(pem)
        }
    };
    let context = TlsContext::builder().with_trust_store(store).build();
    context.map_err(|error| misconfigured("TLS cannot be set up", Some(std::io::Error::other(error))))
}
