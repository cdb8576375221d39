//! A pool that two accounts use, each with an embedded key store, without helper processes.

use std::path::PathBuf;
use std::sync::Arc;

use sealblk_control::{
    AccountId, ControlError, CopyRun, CopySnapshot, CreateSnapshot, CreateVolume, Pool, PoolDirectory,
    SnapshotDescription, SnapshotId, Stop, VolumeDescription, VolumeId,
};
use sealblk_keymem::DataKey;
use sealblk_kms::local::{LocalKms, NewKey, Scope};
use sealblk_kms::{
    DecryptRequest, EncryptionContext, Grant, GrantId, GrantRequest, KeyMetadata, Kms, KmsError, Principal,
    ReEncryptRequest, WrappedKey,
};
use serde_json::json;

/// The two accounts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// The one that the pool belongs to.
    Home,
    Other,
}

impl Who {
    pub(crate) const BOTH: [Self; 2] = [Self::Home, Self::Other];

    pub(crate) fn other(self) -> Self {
        if self == Self::Home { Self::Other } else { Self::Home }
    }

    pub(crate) fn account(self) -> AccountId {
        let text = if self == Self::Home { "000000000000" } else { "222222222222" };
        text.parse().expect("an account")
    }
}

/// What is said about encryption.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) encrypted: Option<bool>,
    pub(crate) key: Option<String>,
}

/// The pool.
pub(crate) struct Region {
    dir: tempfile::TempDir,
}

impl Region {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    pub(crate) fn directory(&self, who: Who) -> PoolDirectory {
        let directory = PoolDirectory::open_or_create(&self.path()).expect("the pool");
        directory.acting_as(who.account()).expect("the account")
    }

    /// The pool as an account uses it.
    pub(crate) fn pool(&self, who: Who) -> Pool {
        Pool::new(self.directory(who), Arc::new(Stores { who, pool: self.path() }))
    }

    /// A key of an account's; with `let_other`, one that the other account may use, too.
    pub(crate) fn key(&self, who: Who, let_other: bool) -> String {
        let root = |who: Who| json!({ "AWS": format!("arn:aws:iam::{}:root", who.account()) });
        let policy = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Principal": root(who), "Action": "kms:*", "Resource": "*" },
            { "Effect": "Allow", "Principal": root(who.other()), "Resource": "*", "Action": [
                "kms:DescribeKey", "kms:CreateGrant", "kms:Decrypt", "kms:Encrypt", "kms:ReEncrypt*",
                "kms:GenerateDataKeyWithoutPlaintext",
            ] },
        ] });
        let store = Stores { who, pool: self.path() }.store(who);
        let new = NewKey { policy: let_other.then_some(policy), ..NewKey::default() };
        store.create_key_as(&new).expect("a key").arn
    }

    pub(crate) fn volume(
        &self,
        who: Who,
        from: Option<SnapshotId>,
        said: &Said,
    ) -> Result<VolumeDescription, ControlError> {
        self.pool(who).create_volume(&creation(from, said), &mut |_, _| {})
    }

    pub(crate) fn snapshot(&self, who: Who, volume: VolumeId) -> Result<SnapshotDescription, ControlError> {
        let request = CreateSnapshot { volume, description: String::new(), resume: None };
        self.pool(who).create_snapshot(&request, &Stop::default(), &|_| {})
    }

    pub(crate) fn copy(
        &self,
        who: Who,
        source: SnapshotId,
        said: &Said,
    ) -> Result<SnapshotDescription, ControlError> {
        let run = CopyRun { begun: &|_| {}, progress: &|_, _| {}, stop: &Stop::default() };
        let pool = self.pool(who);
        Ok(pool.copy_snapshot(&pool, &copying(source, said), &run)?.snapshot)
    }
}

pub(crate) fn creation(from: Option<SnapshotId>, said: &Said) -> CreateVolume {
    CreateVolume {
        size_bytes: Some(1 << 20),
        snapshot_id: from,
        encrypted: said.encrypted,
        kms_key_id: said.key.clone(),
        recovery_kms_key_ids: Vec::new(),
        backing: None,
        discard: true,
        name: None,
        erase: false,
    }
}

pub(crate) fn copying(source: SnapshotId, said: &Said) -> CopySnapshot {
    CopySnapshot {
        source,
        encrypted: said.encrypted,
        kms_key_id: said.key.clone(),
        description: String::new(),
    }
}

/// The key stores of both accounts as one of them sees them: its own as their owner, the other's as its account's root.
struct Stores {
    who: Who,
    pool: PathBuf,
}

impl Stores {
    fn store(&self, of: Who) -> LocalKms {
        let directory = PoolDirectory::open_or_create(&self.pool).expect("the pool");
        let directory = directory.acting_as(of.account()).expect("the account");
        let caller = if of == self.who {
            Principal(format!("uid:{}", rustix::process::geteuid().as_raw()))
        } else {
            Principal::of_account(self.who.account().as_str())
        };
        let scope = Scope { account: of.account().to_string(), ..Scope::default() };
        LocalKms::open(&directory.key_store(), scope, caller).expect("a key store").via_service()
    }

    /// The account that a key's ARN names; any other name is the caller's own.
    fn owner(&self, key: &str) -> Who {
        let named = |who: &Who| key.starts_with("arn:") && key.contains(who.account().as_str());
        Who::BOTH.into_iter().find(named).unwrap_or(self.who)
    }

    fn of(&self, key: &str) -> LocalKms {
        self.store(self.owner(key))
    }
}

impl Kms for Stores {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.of(key).describe_key(key)
    }

    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.of(key).generate_data_key_without_plaintext(key, context)
    }

    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<DataKey, KmsError> {
        self.of(request.key).decrypt(request)
    }

    fn encrypt(
        &self,
        key: &str,
        data_key: &DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.of(key).encrypt(key, data_key, context)
    }

    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        if self.owner(request.from_key) == self.owner(request.to_key) {
            return self.of(request.from_key).re_encrypt(request);
        }
        let (wrapped, key, context) = (request.wrapped, request.from_key, request.from_context);
        let data_key = self.decrypt(&DecryptRequest { wrapped, key, context, grant: None })?;
        self.encrypt(request.to_key, &data_key, request.to_context)
    }

    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        self.of(&request.key).create_grant(request)
    }

    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        self.of(key).retire_grant(key, grant)
    }
}
