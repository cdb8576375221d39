//! Keys behind an external program: the way to any key service that has a command line. docs/KMS.md is the protocol's
//! stable description, and has an example.
//!
//! `PROGRAM OPERATION [DESCRIPTOR]` gets one JSON document on standard input and writes one to standard output. A data key
//! is in neither: `encrypt` reads its 64 bytes from the descriptor, `decrypt` writes them there. Exit status 0 means done, 3 no
//! such key, 5 denied, 6 unreachable, 7 not this key's ciphertext or another context, anything else broken; standard error
//! says why.
//!
//! The program runs in the helper's process tree, with an environment of its own. A program has no grants: whoever may run
//! it may unwrap.

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::io::{Errno, FdFlags, fcntl_setfd};
use rustix::pipe::{PipeFlags, pipe_with};
use sealblk_keymem::{DATA_KEY_BYTES, DataKey};
use serde::{Deserialize, Serialize};

use crate::attempt::Attempt;
use crate::context::EncryptionContext;
use crate::data_key::halves_differ;
use crate::error::{KmsError, KmsErrorKind};
use crate::helper::{Exchange, Fault, Start};
use crate::key_uri::KeyUri;
use crate::service::{KeyMetadata, KeyState, WrappedKey};
use crate::trusted_file;
use crate::wrapping::WrappingService;

const VERSION: u32 = 1;
/// The longest reply taken, in bytes.
const REPLY_BYTES_MAX: usize = 64 * 1024;
/// The longest wrapped key, as KMS limits CiphertextBlob.
const WRAPPED_BYTES_MAX: usize = 6144;
/// Where a program finds others.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Which program, and what it gets.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ExecConfig {
    /// The program.
    pub program: PathBuf,
    /// Its environment, besides PATH.
    pub environment: BTreeMap<String, String>,
    /// How long it may take, in milliseconds.
    pub timeout_ms: u64,
}

/// The keys of one program.
#[derive(Debug)]
pub struct ExecKms {
    config: ExecConfig,
}

/// What the program reads.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Request<'a> {
    version: u32,
    operation: Operation,
    key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    encryption_context: Option<&'a EncryptionContext>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ciphertext: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key_descriptor: Option<i32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
enum Operation {
    Describe,
    Encrypt,
    Decrypt,
}

impl Operation {
    fn argument(self) -> &'static str {
        match self {
            Self::Describe => "describe",
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
        }
    }
}

/// What it writes.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Reply {
    version: u32,
    #[serde(default)]
    ciphertext: Option<String>,
    #[serde(default)]
    description: Option<String>,
}

impl ExecKms {
    /// Looks at the program's file.
    pub fn open(config: &ExecConfig) -> Result<Self, KmsError> {
        let program = config.program.display().to_string();
        let attempt = Attempt { operation: "OpenProvider", key: &program };
        trusted_file::require("key program", &config.program)
            .map_err(|error| attempt.misconfigured(&error))?;
        Ok(Self { config: config.clone() })
    }

    /// One run: `inherited` is the descriptor that the program gets besides the usual three.
    fn run(
        &self,
        attempt: Attempt<'_>,
        operation: Operation,
        request: &Request<'_>,
        inherited: Option<OwnedFd>,
    ) -> Result<Reply, KmsError> {
        let document = serde_json::to_vec(&request).map_err(|error| attempt.misconfigured(&error))?;
        let mut args: Vec<OsString> = vec![operation.argument().into()];
        args.extend(request.key_descriptor.map(|number| number.to_string().into()));
        let mut environment: Vec<(OsString, OsString)> = vec![("PATH".into(), PATH.into())];
        let settings = self.config.environment.iter();
        environment.extend(settings.map(|(name, value)| (name.into(), value.into())));
        let start = Start {
            program: &self.config.program,
            args: &args,
            environment: &environment,
            request: &document,
            timeout: Duration::from_millis(self.config.timeout_ms),
        };
        let faulty = |fault: Fault| self.fault(attempt, &fault);
        let mut exchange = Exchange::start(&start).map_err(faulty)?;
        // The program's end of the pipe is the program's alone from here on.
        drop(inherited);
        let mut reply = vec![0; REPLY_BYTES_MAX];
        let length = exchange.fill(&mut reply).map_err(faulty)?;
        if length == REPLY_BYTES_MAX {
            return Err(self.complain(attempt, "wrote more than 64 KiB"));
        }
        match exchange.code().map_err(faulty)? {
            Some(0) => {}
            code => {
                let ending = exchange.ending().map_err(faulty)?;
                let kind = match code {
                    Some(3) => KmsErrorKind::NotFound,
                    Some(5) => KmsErrorKind::Denied,
                    Some(6) => KmsErrorKind::Unreachable,
                    Some(7) => KmsErrorKind::InvalidCiphertext,
                    _ => KmsErrorKind::Misconfigured,
                };
                let message = format!("the key program {} failed{ending}", self.config.program.display());
                return Err(attempt.fail(kind, message));
            }
        }
        self.parse(attempt, reply.get(..length).unwrap_or_default())
    }

    fn parse(&self, attempt: Attempt<'_>, bytes: &[u8]) -> Result<Reply, KmsError> {
        // Not serde's message: it quotes what it read, which could be anything, a misplaced key too.
        let reply: Reply = serde_json::from_slice(bytes).map_err(|error| {
            let what = format!("wrote something that is not a reply ({:?} error)", error.classify());
            self.complain(attempt, &what)
        })?;
        if reply.version == VERSION {
            Ok(reply)
        } else {
            Err(self.complain(attempt, &format!("speaks version {} of the protocol", reply.version)))
        }
    }

    fn fault(&self, attempt: Attempt<'_>, fault: &Fault) -> KmsError {
        let kind = match fault {
            Fault::TimedOut(_) => KmsErrorKind::Unreachable,
            _ => KmsErrorKind::Misconfigured,
        };
        let source = std::error::Error::source(fault).map(|cause| io::Error::other(cause.to_string()));
        let message = format!("the key program {} {fault}", self.config.program.display());
        KmsError { source, ..attempt.fail(kind, message) }
    }

    fn complain(&self, attempt: Attempt<'_>, what: &str) -> KmsError {
        let message = format!("the key program {} {what}", self.config.program.display());
        attempt.fail(KmsErrorKind::Misconfigured, message)
    }

    fn key<'a>(&self, attempt: Attempt<'a>) -> Result<String, KmsError> {
        match KeyUri::parse(attempt.key) {
            Ok(KeyUri::Exec(uri)) if uri.program == self.config.program => Ok(uri.key),
            _ => Err(attempt.fail(KmsErrorKind::InvalidRequest, "not a key of this program")),
        }
    }

    fn wrapped(&self, attempt: Attempt<'_>, reply: Reply) -> Result<WrappedKey, KmsError> {
        let wrapped = reply.ciphertext.and_then(|text| STANDARD.decode(text).ok());
        let wrapped = wrapped.filter(|bytes| (1..=WRAPPED_BYTES_MAX).contains(&bytes.len()));
        let wrapped =
            wrapped.ok_or_else(|| self.complain(attempt, "gave no Ciphertext of 1 to 6144 bytes"))?;
        Ok(WrappedKey(wrapped))
    }
}

impl WrappingService for ExecKms {
    fn describe(&self, attempt: Attempt<'_>) -> Result<KeyMetadata, KmsError> {
        let name = self.key(attempt)?;
        let request = Request {
            version: VERSION,
            operation: Operation::Describe,
            key: &name,
            encryption_context: None,
            ciphertext: None,
            key_descriptor: None,
        };
        let reply = self.run(attempt, Operation::Describe, &request, None)?;
        let metadata = KeyMetadata::symmetric(name.as_str(), attempt.key, KeyState::Enabled);
        Ok(KeyMetadata {
            origin: "EXTERNAL".to_owned(),
            description: reply.description.unwrap_or_default(),
            ..metadata
        })
    }

    fn wrap(
        &self,
        attempt: Attempt<'_>,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        let key = self.key(attempt)?;
        let piped = || -> io::Result<OwnedFd> {
            let (theirs, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            // A pipe holds 4096 bytes at least, so this does not wait for the program.
            let written = data_key.expose(|bytes| rustix::io::write(&ours, bytes))?;
            if written != DATA_KEY_BYTES {
                return Err(io::ErrorKind::WriteZero.into());
            }
            fcntl_setfd(&theirs, FdFlags::empty())?;
            Ok(theirs)
        };
        let theirs = piped().map_err(|error| self.fault(attempt, &error.into()))?;
        let request = Request {
            version: VERSION,
            operation: Operation::Encrypt,
            key: &key,
            encryption_context: Some(context),
            ciphertext: None,
            key_descriptor: Some(theirs.as_fd().as_raw_fd()),
        };
        self.wrapped(attempt, self.run(attempt, Operation::Encrypt, &request, Some(theirs))?)
    }

    fn unwrap(
        &self,
        attempt: Attempt<'_>,
        wrapped: &WrappedKey,
        context: &EncryptionContext,
    ) -> Result<DataKey, KmsError> {
        let key = self.key(attempt)?;
        let piped = || -> io::Result<(OwnedFd, OwnedFd)> {
            let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
            fcntl_setfl(&ours, OFlags::NONBLOCK)?;
            fcntl_setfd(&theirs, FdFlags::empty())?;
            Ok((ours, theirs))
        };
        let (ours, theirs) = piped().map_err(|error| self.fault(attempt, &error.into()))?;
        let request = Request {
            version: VERSION,
            operation: Operation::Decrypt,
            key: &key,
            encryption_context: Some(context),
            ciphertext: Some(STANDARD.encode(&wrapped.0)),
            key_descriptor: Some(theirs.as_fd().as_raw_fd()),
        };
        self.run(attempt, Operation::Decrypt, &request, Some(theirs))?;
        let data_key = DataKey::init(|bytes| read_key(&ours, bytes));
        data_key.map_err(|fault| self.fault(attempt, &fault))
    }
}

/// What the program left in the pipe: exactly a data key. The program has ended; nothing is waited for.
fn read_key(pipe: &OwnedFd, bytes: &mut [u8; DATA_KEY_BYTES]) -> Result<(), Fault> {
    let mut length: usize = 0;
    while let Some(rest) = bytes.get_mut(length..).filter(|rest| !rest.is_empty()) {
        match rustix::io::read(pipe, rest) {
            // Nothing more, though something that the program started may still hold the other end.
            Ok(0) | Err(Errno::AGAIN) => return Err(Fault::KeyBytes(length)),
            Ok(count) => length = length.saturating_add(count),
            Err(Errno::INTR) => {}
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    match rustix::io::read(pipe, &mut [0; 1][..]) {
        Ok(0) | Err(Errno::AGAIN) if halves_differ(bytes) => Ok(()),
        Ok(0) | Err(Errno::AGAIN) => Err(Fault::EqualHalves),
        Ok(_) => Err(Fault::LongKey),
        Err(error) => Err(io::Error::from(error).into()),
    }
}
