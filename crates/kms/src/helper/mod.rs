//! Key calls in a short-lived child process (design §4.8).
//!
//! The process that serves I/O never talks to a KMS and never holds a key outside locked memory. It asks through
//! [`HelperKms`], which for each call starts a helper (the same binary, a hidden subcommand that calls
//! [`serve_helper`]), gives it one request, and takes one reply. The helper's own copies of a key go with its address
//! space. `wire` documents the bytes, `exchange` runs the process, `reply` takes what it writes, `child` is its side.

mod child;
mod exchange;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod provider;
mod reply;
mod wire;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use sealblk_keymem::DataKey;

pub use self::child::{HelperError, serve_helper};
pub(crate) use self::exchange::{Exchange, Fault, Start};
pub use self::provider::ProviderConfig;
use self::wire::{Answer, Call, Request};
use crate::context::EncryptionContext;
use crate::error::{KmsError, KmsErrorKind};
use crate::passphrase::{Passphrase, PassphraseError, Unlock};
use crate::service::{
    DecryptRequest, Grant, GrantId, GrantRequest, KeyMetadata, Kms, ReEncryptRequest, WrappedKey,
};

/// A program that answers one call: this binary, or `sealblk-kms-aws`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HelperProgram {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments: the hidden subcommand. Never anything secret.
    pub args: Vec<OsString>,
    /// Its whole environment, but for what a provider's configuration adds. Usually empty.
    pub environment: Vec<(OsString, OsString)>,
}

/// A `Kms` that makes every call in a helper process of its own.
///
/// A helper that hangs is killed after `timeout` and is `Unreachable`; one that dies, or whose reply is not exactly
/// one, is `Misconfigured`. Both name the program. Errors of the provider arrive as it raised them, their cause folded
/// into the message. May be used from several threads at once; holds nothing between calls.
#[derive(Clone, Debug)]
pub struct HelperKms {
    /// The helper program.
    pub program: HelperProgram,
    /// What the helper opens.
    pub provider: ProviderConfig,
    /// What `re_encrypt` wraps for, if that is another provider: both are opened in one helper, so that the data key
    /// is nowhere else in between. `None`: `provider` itself.
    pub destination: Option<ProviderConfig>,
    /// What opens the embedded store's root key. A passphrase is asked for before a helper starts, for calls that may
    /// need it, and goes to the helper through its standard input, from locked memory to locked memory.
    pub unlock: Unlock,
    /// How long one call may take, from the start of the process to its end.
    pub timeout: Duration,
}

impl Kms for HelperKms {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.ask(Call::DescribeKey { key: key.to_owned() }, |answer| match answer {
            Answer::Key(metadata) => Some(*metadata),
            _ => None,
        })
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let call = Call::GenerateDataKeyWithoutPlaintext { key: key.to_owned(), context: context.clone() };
        self.ask(call, wrapped_key)
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        self.converse(decrypt_call(request, false), |exchange, answer| reply::data_key(exchange, answer))
    }

    fn check_decrypt(&self, request: &DecryptRequest<'_>) -> Result<(), KmsError> {
        self.ask(decrypt_call(request, true), |answer| matches!(answer, Answer::Decryptable).then_some(()))
    }

    fn encrypt(
        &self,
        key: &str,
        _data_key: &DataKey,
        _context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        // The process that calls a helper has no data key to give: `re_encrypt` moves one from wrap to wrap.
        let fault = Fault::NoPlaintext;
        Err(self.describe("Encrypt", key.to_owned(), &fault))
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        let call = Call::ReEncrypt {
            wrapped: request.wrapped.clone(),
            from_key: request.from_key.to_owned(),
            from_context: request.from_context.clone(),
            to_key: request.to_key.to_owned(),
            to_context: request.to_context.clone(),
        };
        self.ask(call, wrapped_key)
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        self.ask(Call::CreateGrant(request.clone()), |answer| match answer {
            Answer::Grant(grant) => Some(grant),
            _ => None,
        })
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        let call = Call::RetireGrant { key: key.to_owned(), grant: grant.clone() };
        self.ask(call, |answer| matches!(answer, Answer::Retired).then_some(()))
    }
}

impl HelperKms {
    /// A call whose answer is all in the document.
    fn ask<T>(&self, call: Call, pick: impl FnOnce(Answer) -> Option<T>) -> Result<T, KmsError> {
        self.converse(call, |_, answer| pick(answer).ok_or(Fault::OtherAnswer))
    }

    /// One helper, one call. `take` gets the answer and may read what follows the document; the result counts only
    /// once the helper has ended well.
    fn converse<T>(
        &self,
        call: Call,
        take: impl FnOnce(&mut Exchange<'_>, Answer) -> Result<T, Fault>,
    ) -> Result<T, KmsError> {
        let (operation, key) = call.subject();
        let key = key.to_owned();
        let passphrase = match &self.unlock.passphrase {
            Some(source) if call.may_need_the_root_key() => source.get(),
            _ => Ok(None),
        };
        let passphrase = passphrase.map_err(|error| no_passphrase(operation, key.clone(), &error))?;
        let outcome = self.try_converse(call, passphrase.as_deref(), take);
        outcome.unwrap_or_else(|fault| Err(self.describe(operation, key, &fault)))
    }

    /// The outer error is the helper's, the inner one the provider's.
    fn try_converse<T>(
        &self,
        call: Call,
        passphrase: Option<&Passphrase>,
        take: impl FnOnce(&mut Exchange<'_>, Answer) -> Result<T, Fault>,
    ) -> Result<Result<T, KmsError>, Fault> {
        let mut request = Request::new(self.provider.clone(), self.destination.clone(), call);
        request.credentials.clone_from(&self.unlock.credentials);
        request.passphrase_follows = passphrase.is_some();
        let document = wire::encode(&request)?;
        let mut environment = self.program.environment.clone();
        for provider in [Some(&self.provider), self.destination.as_ref()].into_iter().flatten() {
            let settings = provider.environment().iter();
            environment.extend(settings.map(|(name, value)| (name.into(), value.into())));
        }
        let mut exchange = Exchange::start(&Start {
            program: &self.program.path,
            args: &self.program.args,
            environment: &environment,
            request: &document,
            timeout: self.timeout,
        })?;
        if let Some(passphrase) = passphrase {
            passphrase.expose_slot(|slot| exchange.send_with(slot))?;
        }
        reply::take(&mut exchange, take)
    }

    fn describe(&self, operation: &'static str, key: String, fault: &Fault) -> KmsError {
        let kind = match fault {
            Fault::TimedOut(_) => KmsErrorKind::Unreachable,
            _ => KmsErrorKind::Misconfigured,
        };
        KmsError {
            kind,
            operation,
            key,
            message: format!("the key helper {} {fault}", self.program.path.display()),
            request_id: "none".to_owned(),
            source: std::error::Error::source(fault).map(|cause| std::io::Error::other(cause.to_string())),
        }
    }
}

fn decrypt_call(request: &DecryptRequest<'_>, discard: bool) -> Call {
    Call::Decrypt {
        wrapped: request.wrapped.clone(),
        key: request.key.to_owned(),
        context: request.context.clone(),
        grant: request.grant.map(|(id, grantee)| (id.clone(), grantee.clone())),
        discard,
    }
}

fn no_passphrase(operation: &'static str, key: String, error: &PassphraseError) -> KmsError {
    KmsError {
        kind: KmsErrorKind::Denied,
        operation,
        key,
        message: error.to_string(),
        request_id: "none".to_owned(),
        source: std::error::Error::source(error).map(|cause| std::io::Error::other(cause.to_string())),
    }
}

fn wrapped_key(answer: Answer) -> Option<WrappedKey> {
    match answer {
        Answer::WrappedKey(wrapped) => Some(wrapped),
        _ => None,
    }
}
