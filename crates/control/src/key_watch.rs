//! What an attachment does about its key while it serves (an extension: EBS does nothing). A thread of the control side
//! asks the key service again and again whether the data key may still be unwrapped; when it may no longer be, the
//! volume is frozen or fails. The data plane makes no call: it only finds its cipher gone (`volume::KeyHold`).
//!
//! A question is a Decrypt under the attachment's own grant, made in a helper process that throws the result away:
//! whatever would stop the next attach (state, policy, grant, a key that is gone) answers it. A service that does not
//! answer has not said no.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use sealblk_kms::{DecryptRequest, EncryptionContext, Kms, KmsError, KmsErrorKind, Principal, WrappedKey};
use sealblk_volume::{Access, KeyHold, VolumeDirectory, VolumeId};

use crate::attachment::GrantRecord;
use crate::error::ControlError;
use crate::grant::{create_grant, grantee};
use crate::pool::load_record;

/// What an attachment does when its key can no longer be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnKeyLoss {
    /// It goes on, as EBS does: the key is in memory.
    #[default]
    Ignore,
    /// It wipes the key and holds requests until the key can be used again.
    Freeze,
    /// It wipes the key and fails requests until it is detached.
    Fail,
}

/// What to do, and how often to look. With [`OnKeyLoss::Ignore`] nobody looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeyLossPolicy {
    /// What to do.
    pub on_key_loss: OnKeyLoss,
    /// From one answer to the next question.
    pub check_interval: Duration,
}

impl Default for KeyLossPolicy {
    fn default() -> Self {
        Self { on_key_loss: OnKeyLoss::default(), check_interval: Duration::from_secs(60) }
    }
}

/// What is worth telling a person about an attachment's key.
#[derive(Debug)]
pub enum KeyEvent {
    /// The key service refuses; this was done.
    Lost(OnKeyLoss, KmsError),
    /// The key can be used again, and is.
    Restored,
    /// It cannot be told whether the key may be used: nothing is changed.
    Unknown(ControlError),
    /// It can be told again, and the key may be used.
    Known,
}

/// Who hears of it; called on a thread of its own.
pub type KeyEvents = Box<dyn Fn(&KeyEvent) + Send>;

/// What is asked about, and on whose behalf.
pub(crate) struct WatchedKey {
    pub(crate) id: VolumeId,
    pub(crate) directory: VolumeDirectory,
    pub(crate) kms: Arc<dyn Kms + Send + Sync>,
    /// The key that served the attachment.
    pub(crate) key: String,
    /// The grant that it served under, where the service has grants.
    pub(crate) grant: Option<GrantRecord>,
    pub(crate) hold: KeyHold,
}

/// A watch under way. Dropped, no further question is asked; one that was asked may still be waiting for its answer,
/// which nobody waits for.
pub(crate) struct KeyWatch {
    hold: KeyHold,
    /// Its end is the thread's.
    _stop: mpsc::Sender<()>,
    /// Grants that were made later, for keys that the volume was moved to.
    moved: Arc<Mutex<Vec<GrantRecord>>>,
}

impl KeyWatch {
    /// Begins to watch, if the policy says so.
    pub(crate) fn start(
        key: WatchedKey,
        policy: KeyLossPolicy,
        events: KeyEvents,
    ) -> Result<Option<Self>, ControlError> {
        if policy.on_key_loss == OnKeyLoss::Ignore {
            return Ok(None);
        }
        let (stop, stopped) = mpsc::channel();
        let moved = Arc::<Mutex<Vec<GrantRecord>>>::default();
        let hold = key.hold.clone();
        let mut watcher = Watcher { key, policy, events, moved: Arc::clone(&moved), unknown: false };
        let run = move || {
            // Whatever else the channel says, the other end is gone.
            while stopped.recv_timeout(policy.check_interval) == Err(RecvTimeoutError::Timeout) {
                watcher.look();
            }
        };
        let started = thread::Builder::new().name("key-watch".to_owned()).spawn(run);
        started.map_err(|source| ControlError::Start { what: "the watch over the key", source })?;
        Ok(Some(Self { hold, _stop: stop, moved }))
    }

    /// The attachment is ending: requests that wait for the key fail, and none waits from now on.
    pub(crate) fn conclude(&self) {
        self.hold.conclude();
    }

    /// The grants that the watch made, for whoever retires them.
    pub(crate) fn into_grants(self) -> Vec<GrantRecord> {
        std::mem::take(&mut self.moved.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why a question was not answered with yes.
enum No {
    /// The service refuses.
    Lost(KmsError),
    /// Nobody knows.
    Unknown(ControlError),
}

impl From<KmsError> for No {
    fn from(error: KmsError) -> Self {
        if is_loss(error.kind) { Self::Lost(error) } else { Self::Unknown(error.into()) }
    }
}

/// Whether the service has said that the key is not to be used. Anything else may pass, or is our own trouble, and must
/// not stop a volume that serves.
fn is_loss(kind: KmsErrorKind) -> bool {
    match kind {
        KmsErrorKind::Denied
        | KmsErrorKind::NotFound
        | KmsErrorKind::Disabled
        | KmsErrorKind::PendingDeletion
        | KmsErrorKind::InvalidState
        | KmsErrorKind::InvalidKeyUsage
        | KmsErrorKind::IncorrectKey
        | KmsErrorKind::InvalidCiphertext => true,
        KmsErrorKind::Unreachable
        | KmsErrorKind::AlreadyExists
        | KmsErrorKind::LimitExceeded
        | KmsErrorKind::Unsupported
        | KmsErrorKind::InvalidRequest
        | KmsErrorKind::MalformedPolicy
        | KmsErrorKind::NoGrants
        | KmsErrorKind::Misconfigured => false,
    }
}

struct Watcher {
    key: WatchedKey,
    policy: KeyLossPolicy,
    events: KeyEvents,
    moved: Arc<Mutex<Vec<GrantRecord>>>,
    /// Whether the last question had no answer, so that a person is told once.
    unknown: bool,
}

impl Watcher {
    /// One question, and what follows from the answer.
    fn look(&mut self) {
        let frozen = self.key.hold.is_frozen();
        let answer = if frozen { self.restore() } else { self.ask(false).map(drop) };
        match answer {
            Ok(()) if frozen => self.tell(&KeyEvent::Restored),
            Ok(()) if self.unknown => self.tell(&KeyEvent::Known),
            Ok(()) => {}
            // Told when it was frozen.
            Err(No::Lost(_)) if frozen => {}
            Err(No::Lost(error)) => self.lose(error),
            Err(No::Unknown(error)) if !self.unknown => {
                self.tell(&KeyEvent::Unknown(error));
                self.unknown = true;
                return;
            }
            Err(No::Unknown(_)) => return,
        }
        self.unknown = false;
    }

    fn lose(&self, error: KmsError) {
        match self.policy.on_key_loss {
            OnKeyLoss::Ignore => {}
            OnKeyLoss::Freeze => self.key.hold.freeze(),
            OnKeyLoss::Fail => {
                // Once: a volume that fails does so until it is detached.
                if self.key.hold.is_gone() {
                    return;
                }
                self.key.hold.fail();
            }
        }
        self.tell(&KeyEvent::Lost(self.policy.on_key_loss, error));
    }

    /// Has the key unwrapped again.
    fn restore(&mut self) -> Result<(), No> {
        let Some(key) = self.ask(true)? else { return Ok(()) };
        let id = self.key.id;
        // Another key than the volume's leaves it frozen.
        self.key.hold.restore(&key).map_err(|source| No::Unknown(ControlError::Open { id, source }))
    }

    /// Whether the key that the volume's record has now may be used; with `take`, the data key itself.
    fn ask(&mut self, take: bool) -> Result<Option<sealblk_keymem::DataKey>, No> {
        let record = load_record(&self.key.directory).map_err(No::Unknown)?;
        let Access::Encrypted(volume) = record.access() else {
            return Err(No::Unknown(ControlError::KeyAnswer { reason: "the record names no key any more" }));
        };
        let same = volume.wrappings().find(|(key, _)| key.as_str() == self.key.key);
        let (key, wrapped) = match same {
            Some(found) => found,
            None => (volume.kms_key_id(), volume.wrapped_key()),
        };
        if same.is_none() {
            self.move_to(key.as_str())?;
        }
        let (context, grantee) =
            (EncryptionContext::for_resource(&self.key.id.to_string()), grantee(self.key.id));
        let wrapped = WrappedKey(wrapped.as_bytes().to_vec());
        let request = self.request(&wrapped, &context, &grantee);
        if take {
            Ok(Some(self.key.kms.decrypt(&request)?))
        } else {
            self.key.kms.check_decrypt(&request)?;
            Ok(None)
        }
    }

    fn request<'a>(
        &'a self,
        wrapped: &'a WrappedKey,
        context: &'a EncryptionContext,
        grantee: &'a Principal,
    ) -> DecryptRequest<'a> {
        let grant = self.key.grant.as_ref().map(|grant| (&grant.grant_id, grantee));
        DecryptRequest { wrapped, key: &self.key.key, context, grant }
    }

    /// The volume was re-wrapped while it is attached: its new key is the one that counts, under a grant as at an attach.
    fn move_to(&mut self, key: &str) -> Result<(), No> {
        let grant = create_grant(&*self.key.kms, self.key.id, key)?;
        self.moved.lock().unwrap_or_else(PoisonError::into_inner).extend(grant.clone());
        self.key.grant = grant;
        key.clone_into(&mut self.key.key);
        Ok(())
    }

    fn tell(&self, event: &KeyEvent) {
        (self.events)(event);
    }
}
