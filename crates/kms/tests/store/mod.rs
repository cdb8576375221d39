//! A key store in a temporary directory, and what the tests ask of it.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::path::PathBuf;
use std::time::Duration;

use sealblk_kms::helper::{HelperKms, HelperProgram, ProviderConfig};
use sealblk_kms::local::{LocalKms, Scope};
use sealblk_kms::{
    DecryptRequest, EncryptionContext, GrantOperation, GrantRequest, KeyMetadata, Kms, KmsError, Principal,
    ReEncryptRequest, Unlock, WrappedKey,
};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const VOLUME: &str = "vol-0123456789abcdef0";
/// Longer than any helper process in a test should need.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);
pub(crate) const OTHER_VOLUME: &str = "vol-0123456789abcdef1";

/// A fresh store; the directory goes with the value.
pub(crate) struct TestStore {
    dir: TempDir,
}

impl TestStore {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// The store's directory; its parent exists, itself only after the first use.
    pub(crate) fn dir(&self) -> PathBuf {
        self.dir.path().join("kms")
    }

    /// As the owner, on a volume's behalf.
    pub(crate) fn open(&self) -> LocalKms {
        self.open_as(&owner()).expect("the key store opens").via_service()
    }

    /// As somebody, in his own name.
    pub(crate) fn open_as(&self, caller: &Principal) -> Result<LocalKms, KmsError> {
        LocalKms::open(&self.dir(), Scope::default(), caller.clone())
    }

    /// The audit log's records, oldest first; every line must be one.
    pub(crate) fn audit(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.dir().join("audit.log")).expect("the audit log is readable");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is a JSON document")).collect()
    }

    /// The audit log's records of one operation.
    pub(crate) fn audit_of(&self, operation: &str) -> Vec<Value> {
        self.audit().into_iter().filter(|record| record["eventName"] == operation).collect()
    }
}

/// The principal of this process, which owns the stores that it makes; `uid:0` or not.
pub(crate) fn owner() -> Principal {
    Principal(format!("uid:{}", rustix::process::geteuid().as_raw()))
}

/// Somebody else.
pub(crate) fn attachment() -> Principal {
    Principal(format!("host:test/{VOLUME}"))
}

pub(crate) fn context(resource: &str) -> EncryptionContext {
    EncryptionContext::for_resource(resource)
}

pub(crate) fn default_key(kms: &LocalKms) -> KeyMetadata {
    kms.describe_key("alias/aws/ebs").expect("the default key is described")
}

/// A data key of `VOLUME` under the default key: the key's ARN and the wrapped key.
pub(crate) fn volume_key(kms: &LocalKms) -> (String, WrappedKey) {
    let arn = default_key(kms).arn;
    let wrapped = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
    (arn, wrapped)
}

/// Decrypts as the store's owner.
pub(crate) fn decrypt(
    kms: &LocalKms,
    key: &str,
    wrapped: &WrappedKey,
    resource: &str,
) -> Result<[u8; 64], KmsError> {
    let context = context(resource);
    let request = DecryptRequest { wrapped, key, context: &context, grant: None };
    Ok(kms.decrypt(&request)?.expose(|bytes| *bytes))
}

/// What an attachment asks for (ebs.md A.6).
pub(crate) fn attachment_grant(key: &str, resource: &str) -> GrantRequest {
    GrantRequest {
        key: key.to_owned(),
        grantee: attachment(),
        operations: vec![GrantOperation::Decrypt],
        constraint: context(resource),
        name: Some(resource.to_owned()),
    }
}

/// Calls through a helper, which is the ignored test `helper_process` of the test file that asks: its own binary,
/// with the harness's output sent elsewhere and the reply on descriptor 3.
pub(crate) fn helper_with(store: &TestStore, caller: Principal) -> HelperKms {
    let script = "exec \"$0\" --exact helper_process --ignored --quiet 3>&1 >/dev/null";
    let this = std::env::current_exe().expect("this test's binary");
    HelperKms {
        program: HelperProgram {
            path: PathBuf::from("/bin/sh"),
            args: vec!["-c".into(), script.into(), this.into_os_string()],
            environment: Vec::new(),
        },
        destination: None,
        provider: ProviderConfig::Local { dir: store.dir(), scope: Scope::default(), caller },
        unlock: Unlock::default(),
        timeout: PATIENCE,
    }
}

/// As the store's owner.
pub(crate) fn helper(store: &TestStore) -> HelperKms {
    helper_with(store, owner())
}

/// `ReEncrypt` of a data key wrapped under `from.0` for `from.1` (the volume), to another key or volume.
pub(crate) fn re_encrypt(
    kms: &dyn Kms,
    wrapped: &WrappedKey,
    from: (&str, &str),
    to: (&str, &str),
) -> Result<WrappedKey, KmsError> {
    kms.re_encrypt(&ReEncryptRequest {
        wrapped,
        from_key: from.0,
        from_context: &context(from.1),
        to_key: to.0,
        to_context: &context(to.1),
    })
}
