//! A `Kms` for the keys of every provider: it reads a key's name, looks up how the pool may use that provider, and makes
//! the call in a helper process. An attempt that does not reach the service is repeated, with growing random pauses, until the
//! pool's deadline.
//!
//! `kms.json` is read at each call and not before: what needs no key (detach, list, statistics) works while it is damaged.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use sealblk_keymem::DataKey;
use sealblk_record::{RecordError, RecordFile};

use crate::context::EncryptionContext;
use crate::error::{KmsError, KmsErrorKind};
use crate::helper::{HelperKms, HelperProgram, ProviderConfig};
use crate::key_uri::{AwsKeyUri, KeyUri};
use crate::local::Scope;
use crate::passphrase::Unlock;
use crate::providers::{Patience, Providers};
use crate::service::{
    DecryptRequest, Grant, GrantId, GrantRequest, KeyMetadata, Kms, Principal, ReEncryptRequest, WrappedKey,
};

/// The first pause between two attempts; each later one is up to twice as long, half of it random.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(3);
/// Retiring a grant comes last in an attachment's life and must not hold up its end: one attempt, this long at most. What
/// could not be retired is retired by the volume's next holder.
const RETIRE_TIME: Duration = Duration::from_secs(3);

/// The programs that make the calls.
#[derive(Clone, Debug)]
pub struct Helpers {
    /// For every provider but AWS KMS: the hidden subcommand of this binary.
    pub own: HelperProgram,
    /// For AWS KMS: `sealblk-kms-aws`.
    pub aws: HelperProgram,
}

/// The key service of a pool: each key's own provider, through helpers.
#[derive(Debug)]
pub struct RoutedKms {
    local: ProviderConfig,
    other_accounts: BTreeMap<String, PathBuf>,
    providers: RecordFile<Providers>,
    helpers: Helpers,
    unlock: Unlock,
}

/// A key found its provider: how to call it, and what it calls the key.
struct Route {
    provider: ProviderConfig,
    key: String,
    uri: KeyUri,
}

impl RoutedKms {
    /// `local` is what bare names mean; `providers` is the pool's `kms.json`, which need not exist.
    pub fn new(local: ProviderConfig, providers: &Path, helpers: Helpers) -> Self {
        Self {
            local,
            other_accounts: BTreeMap::new(),
            providers: RecordFile::new(providers),
            helpers,
            unlock: Unlock::default(),
        }
    }

    /// The same, with the embedded stores of other accounts: the ARN of a key says whose it is. There the caller is its
    /// account's root (`account:ID`), and the policies of those keys and their grants decide.
    pub fn with_other_accounts(self, stores: impl IntoIterator<Item = (String, PathBuf)>) -> Self {
        Self { other_accounts: stores.into_iter().collect(), ..self }
    }

    /// The same, with what opens the embedded store's root key where that is not simply in a file.
    pub fn unlocked_by(self, unlock: Unlock) -> Self {
        Self { unlock, ..self }
    }

    fn settings(&self, operation: &'static str, key: &str) -> Result<Providers, KmsError> {
        match self.providers.load() {
            Ok(providers) => Ok(providers),
            Err(RecordError::Missing { .. }) => Ok(Providers::default()),
            Err(error) => Err(KmsError {
                source: std::error::Error::source(&error).map(|e| std::io::Error::other(e.to_string())),
                ..failure(KmsErrorKind::Misconfigured, operation, key, error.to_string())
            }),
        }
    }

    fn route(&self, settings: &Providers, operation: &'static str, key: &str) -> Result<Route, KmsError> {
        let uri = KeyUri::parse(key).map_err(|error| {
            failure(KmsErrorKind::InvalidRequest, operation, &shown(key), error.to_string())
        })?;
        let (provider, key) = match &uri {
            KeyUri::Local(name) => (self.local_store(operation, name)?, name.clone()),
            KeyUri::AwsKms(aws) => (aws_provider(aws, settings), aws.key.clone()),
            listed => {
                let provider = settings
                    .provider_of(listed)
                    .map_err(|why| failure(KmsErrorKind::Misconfigured, operation, key, why.to_string()))?;
                (provider, uri.to_string())
            }
        };
        Ok(Route { provider, key, uri })
    }

    /// The embedded store that a key is in: the one that its ARN names; any other name is of the caller's own.
    fn local_store(&self, operation: &'static str, name: &str) -> Result<ProviderConfig, KmsError> {
        let ProviderConfig::Local { scope, .. } = &self.local else { return Ok(self.local.clone()) };
        let account = match name.split(':').collect::<Vec<_>>()[..] {
            ["arn", _, "kms", _, account, ..] if account != scope.account => account,
            _ => return Ok(self.local.clone()),
        };
        let Some(dir) = self.other_accounts.get(account) else {
            let message = format!("Key '{name}' does not exist: the account has no keys here");
            return Err(failure(KmsErrorKind::NotFound, operation, name, message));
        };
        Ok(ProviderConfig::Local {
            dir: dir.clone(),
            scope: Scope { account: account.to_owned(), ..scope.clone() },
            caller: Principal::of_account(&scope.account),
        })
    }

    fn helper(&self, route: &Route, destination: Option<&Route>, timeout: Duration) -> HelperKms {
        let aws = |route: &Route| matches!(route.provider, ProviderConfig::AwsKms { .. });
        let needs_aws = aws(route) || destination.is_some_and(aws);
        let local = |route: &Route| matches!(route.provider, ProviderConfig::Local { .. });
        let needs_unlock = local(route) || destination.is_some_and(local);
        let destination = destination.map(|route| route.provider.clone());
        HelperKms {
            program: if needs_aws { self.helpers.aws.clone() } else { self.helpers.own.clone() },
            provider: route.provider.clone(),
            destination: destination.filter(|destination| *destination != route.provider),
            unlock: if needs_unlock { self.unlock.clone() } else { Unlock::default() },
            timeout,
        }
    }

    /// Makes a call about one key.
    fn call<T>(
        &self,
        operation: &'static str,
        key: &str,
        call: impl Fn(&HelperKms, &Route) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        let settings = self.settings(operation, key)?;
        let route = self.route(&settings, operation, key)?;
        with_patience(settings.patience, |timeout| call(&self.helper(&route, None, timeout), &route))
    }
}

impl Kms for RoutedKms {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.call("DescribeKey", key, |kms, route| {
            let metadata = kms.describe_key(&route.key)?;
            // What is stored must find its provider again.
            let arn = match &route.uri {
                KeyUri::Local(_) => metadata.arn,
                KeyUri::AwsKms(uri) => uri.resolved(&metadata.arn).to_string(),
                uri => uri.to_string(),
            };
            Ok(KeyMetadata { arn, ..metadata })
        })
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.call("GenerateDataKeyWithoutPlaintext", key, |kms, route| {
            kms.generate_data_key_without_plaintext(&route.key, context)
        })
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        self.call("Decrypt", request.key, |kms, route| {
            kms.decrypt(&DecryptRequest { key: &route.key, ..request.clone() })
        })
    }

    fn check_decrypt(&self, request: &DecryptRequest<'_>) -> Result<(), KmsError> {
        self.call("Decrypt", request.key, |kms, route| {
            kms.check_decrypt(&DecryptRequest { key: &route.key, ..request.clone() })
        })
    }

    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.call("Encrypt", key, |kms, route| kms.encrypt(&route.key, data_key, context))
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        let settings = self.settings("ReEncrypt", request.to_key)?;
        let from = self.route(&settings, "ReEncrypt", request.from_key)?;
        let to = self.route(&settings, "ReEncrypt", request.to_key)?;
        with_patience(settings.patience, |timeout| {
            let kms = self.helper(&from, Some(&to), timeout);
            kms.re_encrypt(&ReEncryptRequest { from_key: &from.key, to_key: &to.key, ..*request })
        })
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        self.call("CreateGrant", &request.key, |kms, route| {
            kms.create_grant(&GrantRequest { key: route.key.clone(), ..request.clone() })
        })
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        let settings = self.settings("RetireGrant", key)?;
        let route = self.route(&settings, "RetireGrant", key)?;
        let timeout = settings.patience.timeout().min(RETIRE_TIME);
        self.helper(&route, None, timeout).retire_grant(&route.key, grant)
    }
}

fn aws_provider(uri: &AwsKeyUri, settings: &Providers) -> ProviderConfig {
    let configured = settings.aws_kms.clone().unwrap_or_default();
    ProviderConfig::AwsKms {
        region: uri.region().map(str::to_owned).or(configured.region),
        endpoint_url: uri.endpoint.clone().or(configured.endpoint),
        profile: configured.profile,
        ca_file: configured.ca_file,
        attempt_ms: settings.patience.timeout_ms,
    }
}

/// Repeats what does not reach the service; every other outcome is final. The last error is the one to tell.
fn with_patience<T>(
    patience: Patience,
    mut attempt: impl FnMut(Duration) -> Result<T, KmsError>,
) -> Result<T, KmsError> {
    let deadline = Instant::now() + patience.deadline();
    let mut pause = FIRST_PAUSE;
    let mut timeout = patience.timeout();
    loop {
        match attempt(timeout) {
            Err(error) if error.kind == KmsErrorKind::Unreachable => {
                let wait = jittered(pause);
                let left = deadline.saturating_duration_since(Instant::now()).saturating_sub(wait);
                if left.is_zero() {
                    return Err(error);
                }
                thread::sleep(wait);
                pause = (pause * 2).min(LONGEST_PAUSE);
                timeout = patience.timeout().min(left);
            }
            outcome => return outcome,
        }
    }
}

/// Between half of `pause` and all of it, so that hosts that lost the service together do not come back together.
fn jittered(pause: Duration) -> Duration {
    let random = getrandom::u32().unwrap_or(u32::MAX);
    pause.mul_f64(0.5 + f64::from(random) / f64::from(u32::MAX) / 2.0)
}

fn failure(kind: KmsErrorKind, operation: &'static str, key: &str, message: String) -> KmsError {
    KmsError { kind, operation, key: key.to_owned(), message, request_id: "none".to_owned(), source: None }
}

/// A key's name that could not be parsed, without the part that may hold what should not be in it.
fn shown(key: &str) -> String {
    key.split_once(':').map_or_else(|| key.to_owned(), |(provider, _)| format!("{provider}:…"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unreachable() -> KmsError {
        failure(KmsErrorKind::Unreachable, "Decrypt", "a key", "nobody answers".to_owned())
    }

    #[test]
    fn what_does_not_reach_the_service_is_repeated_until_it_does() {
        let mut attempts = 0;
        let outcome = with_patience(Patience::default(), |_| {
            attempts += 1;
            if attempts < 3 { Err(unreachable()) } else { Ok(attempts) }
        });
        assert_eq!(outcome.expect("the third reaches it"), 3);
    }

    #[test]
    fn the_deadline_ends_the_attempts() {
        let patience = Patience { timeout_ms: 10_000, deadline_ms: 250 };
        let (started, mut attempts) = (Instant::now(), 0);
        let outcome = with_patience(patience, |timeout| -> Result<(), _> {
            attempts += 1;
            assert!(timeout <= patience.timeout());
            assert!(attempts == 1 || timeout <= patience.deadline(), "the last attempt ends by the deadline");
            Err(unreachable())
        });
        assert_eq!(outcome.expect_err("nobody answers").kind, KmsErrorKind::Unreachable);
        assert!(attempts >= 2 && started.elapsed() < Duration::from_secs(1), "{attempts} attempts");
    }

    #[test]
    fn a_refusal_is_not_repeated() {
        let mut attempts = 0;
        let outcome = with_patience(Patience::default(), |_| -> Result<(), _> {
            attempts += 1;
            Err(failure(KmsErrorKind::Denied, "Decrypt", "a key", "no".to_owned()))
        });
        assert_eq!((outcome.expect_err("refused").kind, attempts), (KmsErrorKind::Denied, 1));
    }

    #[test]
    fn a_name_that_is_refused_is_not_repeated_in_the_error() {
        assert_eq!(shown("pkcs11:object=a?pin-value=1234"), "pkcs11:…");
        assert_eq!(shown("nonsense"), "nonsense");
    }
}
