//! The helper's side: one request, one call of a provider, one reply. Run by the binary's hidden subcommand.

use std::io::{self, Read};
use std::os::fd::AsFd;

use sealblk_keymem::DataKey;

use super::wire::{self, Answer, Call, Failure, Reply, Request};
use crate::error::KmsError;
use crate::service::{DecryptRequest, Kms};

/// Why the helper could not do its work at all. A call that the provider refuses is not among these: that is a reply.
#[derive(Debug, thiserror::Error)]
pub enum HelperError {
    /// The request did not come whole, or is not one.
    #[error("the request cannot be read")]
    Request(#[source] io::Error),
    /// Nobody takes the reply.
    #[error("the reply cannot be written")]
    Reply(#[source] io::Error),
}

/// Reads one request from `stdin`, makes the call, and writes the reply to `stdout`.
///
/// The caller has hardened the process (`keymem::harden_process`) and exits when this returns. A data key goes from
/// locked memory straight into the descriptor, which is why `stdout` is a descriptor and not a `Write`: the standard
/// library's would buffer it.
pub fn serve_helper(mut stdin: impl Read, stdout: impl AsFd) -> Result<(), HelperError> {
    let request: Request = wire::read(&mut stdin).map_err(HelperError::Request)?;
    let outcome = request.provider.open().and_then(|kms| perform(&*kms, request.call));
    let (reply, data_key) = match outcome {
        Ok((answer, data_key)) => (Reply::Ok(answer), data_key),
        Err(error) => (Reply::Error(Failure::from(error)), None),
    };
    let document = wire::encode(&reply).map_err(HelperError::Reply)?;
    write_all(&stdout, &document).map_err(HelperError::Reply)?;
    data_key.map_or(Ok(()), |key| key.expose(|bytes| write_all(&stdout, bytes))).map_err(HelperError::Reply)
}

fn perform(kms: &dyn Kms, call: Call) -> Result<(Answer, Option<DataKey>), KmsError> {
    let answer = match call {
        Call::DescribeKey { key } => Answer::Key(Box::new(kms.describe_key(&key)?)),
        Call::GenerateDataKeyWithoutPlaintext { key, context } => {
            Answer::WrappedKey(kms.generate_data_key_without_plaintext(&key, &context)?)
        }
        Call::Decrypt { wrapped, key, context, grant } => {
            let grant = grant.as_ref().map(|(id, grantee)| (id, grantee));
            let request = DecryptRequest { wrapped: &wrapped, key: &key, context: &context, grant };
            return Ok((Answer::DataKey, Some(kms.decrypt(&request)?)));
        }
        Call::ReEncrypt { wrapped, from_context, to_key, to_context } => {
            Answer::WrappedKey(kms.re_encrypt(&wrapped, &from_context, &to_key, &to_context)?)
        }
        Call::CreateGrant(request) => Answer::Grant(kms.create_grant(&request)?),
        Call::RetireGrant { key, grant } => {
            kms.retire_grant(&key, &grant)?;
            Answer::Retired
        }
    };
    Ok((answer, None))
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
