//! The verbs about the root key: how it is protected, making it, protecting it in another way. None of them is KMS's:
//! there, the root of trust is in hardware. They are audited like the others.

use serde_json::json;

use super::LocalKms;
use super::root_key::{NewProtection, RootKeyProtection};
use crate::error::KmsError;

impl LocalKms {
    /// How the root key is protected; `None` before there is one: the first key makes one, in a key file. Reads no
    /// secret, and is not audited.
    pub fn root_key_protection(&self) -> Result<Option<RootKeyProtection>, KmsError> {
        let told = self.store.root_key_protection();
        told.map_err(|error| super::store_failure("DescribeRootKey", "the root key", &error))
    }

    /// Makes the root key of a store without keys, protected as asked; one that a killed process made is replaced. A
    /// store with keys has one, which is left alone: `Misconfigured`.
    pub fn create_root_key(&self, how: NewProtection<'_>) -> Result<(), KmsError> {
        self.audited("CreateRootKey", "the root key", parameters(how), |call| {
            call.event.mutates();
            self.authorize_owner(call)?;
            let _lock = self.store.lock().map_err(|e| call.broken(e))?;
            self.store.create_root_key(how).map_err(|e| call.broken(e))
        })
    }

    /// Protects the root key in another way, or under another passphrase or credential. The root key itself stays, so
    /// neither keys nor volumes change. Killed at any point it leaves the old protection or the new one; when it returns
    /// the file of the old one has been overwritten and removed.
    pub fn protect_root_key(&self, how: NewProtection<'_>) -> Result<(), KmsError> {
        self.audited("UpdateRootKeyProtection", "the root key", parameters(how), |call| {
            call.event.mutates();
            self.authorize_owner(call)?;
            let _lock = self.store.lock().map_err(|e| call.broken(e))?;
            // A store without keys has none yet.
            self.store.root_key_or_new().map_err(|e| call.broken(e))?;
            self.store.protect_root_key(how).map_err(|e| call.broken(e))
        })
    }
}

/// What the audit log tells: never more of a passphrase than that it is one.
fn parameters(how: NewProtection<'_>) -> serde_json::Value {
    match how {
        NewProtection::KeyFile => json!({ "method": "file" }),
        NewProtection::Passphrase(_) => json!({ "method": "passphrase" }),
        NewProtection::Credential(name) => {
            json!({ "method": "credential", "credential": super::call::clip(name) })
        }
    }
}
