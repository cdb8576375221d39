//! The embedded key store: a KMS in a directory, for a host that has no other.
//!
//! It keeps keys as KMS does: states, deletion after a waiting period, aliases, the managed default key, rotation,
//! grants, key policies, encryption contexts, an audit log; each backing key wrapped under one root key. It is not a
//! server: whoever may read the directory has the keys, so the directory belongs to one user, the owner. What policies
//! keep others from, they keep them from as far as they come through a process of the owner's.
//!
//! Called by `helper` in its short-lived child, and by the command line for the administrative verbs, which are not
//! part of the trait. Nothing runs between calls: a rotation or a deletion that is due takes place at the next call.
//!
//! * Files: `store`, `records`, `root_key`, `audit`. Bytes: `blob`, a wrapped key; `material`, a wrapped backing key.
//! * Verbs: `verbs`, those of the trait; `keys`, `destroy`, `rotation`, `aliases`, `granting`, `policies`.
//! * Permission: `authorize` decides, from `policy` and `grants`.

mod aliases;
mod audit;
mod auditing;
mod authorize;
mod blob;
mod call;
#[cfg(test)]
mod crash;
mod destroy;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod granting;
mod grants;
mod hex;
mod keys;
mod material;
mod policies;
mod policy;
mod protection;
mod records;
mod reference;
mod root_key;
mod rotation;
mod spec;
mod store;
mod verbs;

use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;

pub use self::aliases::AliasEntry;
pub use self::audit::{AuditFinding, AuditPlace, AuditRecords, AuditReport};
pub(crate) use self::blob::material_of;
use self::call::Call;
pub use self::destroy::ScheduledDeletion;
pub use self::granting::{IssuedGrant, NewGrant};
pub use self::grants::{GrantConstraints, GrantEntry};
pub use self::keys::NewKey;
pub use self::reference::Scope;
pub use self::root_key::{ArgonParameters, NewProtection, RootKeyProtection};
pub use self::rotation::{RotationEntry, RotationStatus, RotationType};
pub use self::spec::{KeySpec, KeyUsage};
use self::store::{Store, StoreError};
use crate::error::KmsError;
use crate::passphrase::Unlock;
use crate::service::Principal;

/// The managed default key's alias.
pub const DEFAULT_KEY_ALIAS: &str = "alias/aws/ebs";
const SECONDS_PER_DAY: f64 = 86_400.0;

/// A key store in a directory, used by one principal.
///
/// Holds no key between calls: each reads what it needs into locked memory and wipes it when it returns. Only a root
/// key under a passphrase, once opened, stays in locked memory as long as the value. Any number of processes may have
/// the same directory open.
#[derive(Debug)]
pub struct LocalKms {
    store: Store,
    scope: Scope,
    caller: Principal,
    /// The service through which the caller calls, if it does not call itself.
    via: Option<String>,
    ahead: Duration,
}

/// Which ways to name a key a verb takes (ebs.md C.3).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// Id, ARN, alias name, alias ARN: DescribeKey and the cryptographic verbs.
    Any,
    /// Id or ARN: everything that changes a key or its grants.
    IdOrArn,
}

impl LocalKms {
    /// Opens the key store in `dir`, creating the directory (0700) if it is not there; its parent must be. `caller` is
    /// who the calls are made as, `uid:N` of the process normally; `scope` is what ARNs carry.
    ///
    /// Errors are `Misconfigured` and name the path: a directory or root key that others can write or read, a root key
    /// that is missing although keys exist, or has another length than 32.
    pub fn open(dir: &Path, scope: Scope, caller: Principal) -> Result<Self, KmsError> {
        match Store::open(dir) {
            Ok(store) => Ok(Self { store, scope, caller, via: None, ahead: Duration::ZERO }),
            Err(error) => Err(store_failure("OpenKeyStore", &dir.display().to_string(), &error)),
        }
    }

    /// The same store, with what opens its root key where that is not simply in a file. Nothing is asked for before a
    /// call needs the root key.
    #[must_use]
    pub fn unlocked_by(mut self, unlock: Unlock) -> Self {
        self.store.unlock_with(unlock);
        self
    }

    /// The calls are made for volumes and snapshots, on the caller's behalf: `kms:ViaService` is
    /// `ec2.REGION.amazonaws.com`, and `kms:GrantIsForAWSResource` is true. Without this, they are the caller's own.
    #[must_use]
    pub fn via_service(self) -> Self {
        Self { via: Some(self.scope.service()), ..self }
    }

    /// As if the clock were ahead by so much: for tests of what happens in days.
    #[must_use]
    pub fn with_clock_ahead(self, ahead: Duration) -> Self {
        Self { ahead, ..self }
    }

    /// A call that changes nothing; what is due is done first.
    fn reading<T>(
        &self,
        operation: &'static str,
        key: &str,
        parameters: Value,
        body: impl FnOnce(&mut Call) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        self.audited(operation, key, parameters, |call| {
            self.destroy_what_is_due().map_err(|e| call.broken(e))?;
            body(call)
        })
    }

    /// A call that changes the store, under its lock; what is due is done first.
    fn changing<T>(
        &self,
        operation: &'static str,
        key: &str,
        parameters: Value,
        body: impl FnOnce(&mut Call) -> Result<T, KmsError>,
    ) -> Result<T, KmsError> {
        self.reading(operation, key, parameters, |call| {
            call.event.mutates();
            let _lock = self.store.lock().map_err(|e| call.broken(e))?;
            body(call)
        })
    }

    /// Seconds since the epoch.
    fn now(&self) -> f64 {
        seconds(Timestamp::now()) + self.ahead.as_secs_f64()
    }
}

/// A failure of the store outside any call.
fn store_failure(operation: &'static str, key: &str, error: &StoreError) -> KmsError {
    KmsError {
        kind: error.kind(),
        operation,
        key: key.to_owned(),
        message: error.to_string(),
        request_id: "none".to_owned(),
        source: std::error::Error::source(error).map(|cause| std::io::Error::other(cause.to_string())),
    }
}

/// Seconds since the epoch, to the millisecond.
#[allow(clippy::cast_precision_loss, reason = "milliseconds since 1970 fit 53 bits for 285 millennia")]
fn seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1000.0
}
