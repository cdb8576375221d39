//! The helper's side: one request, one call of a provider, one reply. Run by the binary's hidden subcommand.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;

use sealblk_keymem::DataKey;

use super::ProviderConfig;
use super::wire::{self, Answer, Call, Failure, Reply, Request};
use crate::error::KmsError;
use crate::passphrase::{Passphrase, PassphraseError, PassphraseSource, Unlock};
use crate::service::{DecryptRequest, Kms, ReEncryptRequest};

/// Why the helper could not do its work at all. A call that the provider refuses is not among these: that is a reply.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The request did not come whole, or is not one.
    #[error("the request cannot be read")]
    Request(#[source] io::Error),
    /// A passphrase was announced and did not come.
    #[error("the passphrase cannot be taken")]
    Passphrase(#[source] PassphraseError),
    /// Nobody takes the reply.
    #[error("the reply cannot be written")]
    Reply(#[source] io::Error),
}

/// Reads one request from `stdin`, makes the call, and writes the reply to `stdout`.
///
/// `open` opens the providers that this program links: [`ProviderConfig::open`], or that and more.
///
/// The caller has hardened the process (`keymem::harden_process`) and exits when this returns. A data key goes from
/// locked memory straight into the descriptor, which is why `stdout` is a descriptor and not a `Write`: the standard
/// library's would buffer it. A passphrase comes the other way, for which `stdin` should not buffer either.
pub fn serve_helper(
    stdin: impl Read,
    stdout: impl AsFd,
    open: impl Fn(&ProviderConfig, &Unlock) -> Result<Box<dyn Kms>, KmsError>,
) -> Result<(), HelperError> {
    // A helper that hangs in a provider's library does not outlive who asked. Where the kernel has no such signal, it
    // ends with the provider's own time limit.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    answer(stdin, stdout, open)
}

/// The same, whoever the parent of this process is.
pub(super) fn answer(
    mut stdin: impl Read,
    stdout: impl AsFd,
    open: impl Fn(&ProviderConfig, &Unlock) -> Result<Box<dyn Kms>, KmsError>,
) -> Result<(), HelperError> {
    let request: Request = wire::read(&mut stdin).map_err(HelperError::Request)?;
    let unlock = take_unlock(&request, stdin).map_err(HelperError::Passphrase)?;
    let Request { provider, destination, call, .. } = request;
    let outcome = open(&provider, &unlock).and_then(|kms| match (destination, call) {
        (Some(destination), Call::ReEncrypt { wrapped, from_key, from_context, to_key, to_context }) => {
            let request = ReEncryptRequest {
                wrapped: &wrapped,
                from_key: &from_key,
                from_context: &from_context,
                to_key: &to_key,
                to_context: &to_context,
            };
            re_encrypt_across(&*kms, &*open(&destination, &unlock)?, &request)
        }
        (_, call) => perform(&*kms, call),
    });
    let (reply, data_key) = match outcome {
        Ok((answer, data_key)) => (Reply::Ok(answer), data_key),
        Err(error) => (Reply::Error(Failure::from(error)), None),
    };
    let document = wire::encode(&reply).map_err(HelperError::Reply)?;
    write_all(&stdout, &document).map_err(HelperError::Reply)?;
    data_key.map_or(Ok(()), |key| key.expose(|bytes| write_all(&stdout, bytes))).map_err(HelperError::Reply)
}

/// What the parent gave to open a root key with.
fn take_unlock(request: &Request, mut stdin: impl Read) -> Result<Unlock, PassphraseError> {
    let mut unlock = Unlock { passphrase: None, credentials: request.credentials.clone() };
    if request.passphrase_follows {
        let passphrase = Passphrase::from_slot(|slot| stdin.read_exact(slot))?;
        unlock.passphrase = Some(Arc::new(PassphraseSource::holding(passphrase)));
    }
    Ok(unlock)
}

fn perform(kms: &dyn Kms, call: Call) -> Result<(Answer, Option<DataKey>), KmsError> {
    let answer = match call {
        Call::DescribeKey { key } => Answer::Key(Box::new(kms.describe_key(&key)?)),
        Call::GenerateDataKeyWithoutPlaintext { key, context } => {
            Answer::WrappedKey(kms.generate_data_key_without_plaintext(&key, &context)?)
        }
        Call::Decrypt { wrapped, key, context, grant, discard } => {
            let grant = grant.as_ref().map(|(id, grantee)| (id, grantee));
            let request = DecryptRequest { wrapped: &wrapped, key: &key, context: &context, grant };
            let data_key = kms.decrypt(&request)?;
            return Ok(if discard { (Answer::Decryptable, None) } else { (Answer::DataKey, Some(data_key)) });
        }
        Call::ReEncrypt { wrapped, from_key, from_context, to_key, to_context } => {
            Answer::WrappedKey(kms.re_encrypt(&ReEncryptRequest {
                wrapped: &wrapped,
                from_key: &from_key,
                from_context: &from_context,
                to_key: &to_key,
                to_context: &to_context,
            })?)
        }
        Call::CreateGrant(request) => Answer::Grant(kms.create_grant(&request)?),
        Call::RetireGrant { key, grant } => {
            kms.retire_grant(&key, &grant)?;
            Answer::Retired
        }
    };
    Ok((answer, None))
}

/// Between two providers: the data key is in this process's locked memory in between, and nowhere else.
fn re_encrypt_across(
    from: &dyn Kms,
    to: &dyn Kms,
    request: &ReEncryptRequest<'_>,
) -> Result<(Answer, Option<DataKey>), KmsError> {
    let (wrapped, key, context) = (request.wrapped, request.from_key, request.from_context);
    let data_key = from.decrypt(&DecryptRequest { wrapped, key, context, grant: None })?;
    Ok((Answer::WrappedKey(to.encrypt(request.to_key, &data_key, request.to_context)?), None))
}

fn write_all(fd: &impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
