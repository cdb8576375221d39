//! A pool in a temporary directory with an embedded key store, for the tests beside this.
#![allow(dead_code, reason = "no test file uses all of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use sealblk_control::{
    AttachVolume, ControlError, CreateVolume, Endpoints, KeyLossPolicy, Pool, PoolDirectory, RuntimeDir,
    VolumeDescription, VolumeId,
};
use sealblk_kms::local::{LocalKms, Scope};
use sealblk_kms::{
    DecryptRequest, EncryptionContext, Grant, GrantId, GrantRequest, KeyMetadata, Kms, KmsError,
    KmsErrorKind, Principal, ReEncryptRequest, WrappedKey,
};
use sealblk_nbd::Limits;
use tokio::sync::oneshot;

/// A fresh pool.
pub(crate) struct Rig {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) pool: Pool,
}

impl Rig {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pool = open(dir.path());
        Self { dir, pool }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn kms(&self) -> LocalKms {
        store(&PoolDirectory::open_or_create(&self.path("pool")).expect("the pool"))
    }

    /// The same pool with another key service around its own.
    pub(crate) fn pool_with(&self, kms: impl FnOnce(LocalKms) -> Arc<dyn Kms + Send + Sync>) -> Pool {
        let directory = PoolDirectory::open_or_create(&self.path("pool")).expect("the pool");
        Pool::new(directory, kms(self.kms()))
    }

    pub(crate) fn create(&self, request: &CreateVolume) -> Result<VolumeDescription, ControlError> {
        self.pool.create_volume(request, &mut |_, _| {})
    }

    pub(crate) fn encrypted(&self) -> VolumeDescription {
        self.create(&CreateVolume { encrypted: Some(true), ..plain() }).expect("a volume")
    }

    /// What is in `volumes/`, without the pool's own lock.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("pool/volumes")).expect("the directory");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"));
        names.filter(|name| name != ".lock").collect()
    }

    /// The names of the calls in the audit log, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        let log = fs::read_to_string(self.path("pool/kms/audit.log")).expect("the log");
        let name = |line: &str| {
            let record: serde_json::Value = serde_json::from_str(line).expect("JSON");
            record["eventName"].as_str().expect("a name").to_owned()
        };
        log.lines().map(name).collect()
    }

    pub(crate) fn grants(&self, volume: &VolumeDescription) -> usize {
        let key = volume.kms_key_id.as_ref().expect("an encrypted volume").as_str();
        self.kms().list_grants(key).expect("the grants").len()
    }

    pub(crate) fn attach_request(&self, volume: VolumeId) -> AttachVolume {
        AttachVolume {
            volume,
            endpoints: Endpoints::default(),
            metrics: None,
            key_loss: KeyLossPolicy::default(),
            read_only: false,
            caching: None,
            limits: Limits { max_connections: 4, ..Limits::default() },
            snapshot_stall: AttachVolume::SNAPSHOT_STALL,
        }
    }

    pub(crate) fn runtime(&self) -> RuntimeDir {
        RuntimeDir::new(self.path("run"))
    }

    /// Serves a volume on a thread, until it is dropped or detached.
    pub(crate) fn serve(&self, volume: VolumeId) -> Serving {
        let (dir, runtime, request) =
            (self.dir.path().to_owned(), self.runtime(), self.attach_request(volume));
        let (ready, is_ready) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = thread::spawn(move || {
            let pool = open(&dir);
            let attachment = pool.attach_volume(&runtime, &request)?;
            ready.send(attachment.uris().to_vec()).expect("the test waits");
            let io = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let over = async {
                let _ = stopped.await;
            };
            tokio::task::LocalSet::new().block_on(&io, attachment.serve(&mut (), over)).map(|_| ())
        });
        let uris = is_ready.recv().unwrap_or_default();
        Serving { uris, stop: Some(stop), thread: Some(thread) }
    }
}

/// A volume that is being served.
pub(crate) struct Serving {
    pub(crate) uris: Vec<String>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<Result<(), ControlError>>>,
}

impl Serving {
    /// Ends it as a signal would.
    pub(crate) fn stop(mut self) -> Result<(), ControlError> {
        drop(self.stop.take());
        self.join()
    }

    /// Waits until somebody has ended it.
    pub(crate) fn wait(mut self) -> Result<(), ControlError> {
        self.join()
    }

    fn join(&mut self) -> Result<(), ControlError> {
        self.thread.take().expect("joined once").join().expect("no panic")
    }
}

/// An unencrypted volume of 1 MiB.
pub(crate) fn plain() -> CreateVolume {
    CreateVolume {
        size_bytes: Some(1 << 20),
        snapshot_id: None,
        encrypted: None,
        kms_key_id: None,
        recovery_kms_key_ids: Vec::new(),
        backing: None,
        name: None,
        discard: true,
        erase: false,
    }
}

fn open(dir: &Path) -> Pool {
    let directory = PoolDirectory::open_or_create(&dir.join("pool")).expect("a pool");
    let kms = store(&directory);
    Pool::new(directory, Arc::new(kms))
}

fn store(directory: &PoolDirectory) -> LocalKms {
    // The store knows its owner by this name.
    let owner = format!("uid:{}", rustix::process::geteuid().as_raw());
    let store = LocalKms::open(&directory.key_store(), Scope::default(), Principal(owner));
    store.expect("a key store").via_service()
}

/// A key service that does not answer.
pub(crate) struct Unreachable;

impl Unreachable {
    fn error<T>(operation: &'static str, key: &str) -> Result<T, KmsError> {
        Err(KmsError {
            kind: KmsErrorKind::Unreachable,
            operation,
            key: key.to_owned(),
            message: "no answer".to_owned(),
            request_id: "none".to_owned(),
            source: None,
        })
    }
}

impl Kms for Unreachable {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        Self::error("DescribeKey", key)
    }
    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        _: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        Self::error("GenerateDataKeyWithoutPlaintext", key)
    }
    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<sealblk_keymem::DataKey, KmsError> {
        Self::error("Decrypt", request.key)
    }
    fn encrypt(
        &self,
        key: &str,
        _: &sealblk_keymem::DataKey,
        _: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        Self::error("Encrypt", key)
    }
    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        Self::error("ReEncrypt", request.to_key)
    }
    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        Self::error("CreateGrant", &request.key)
    }
    fn retire_grant(&self, key: &str, _: &GrantId) -> Result<(), KmsError> {
        Self::error("RetireGrant", key)
    }
}

/// The pool's own key service, which does not answer when a grant is to be retired.
pub(crate) struct NoRetire(pub(crate) LocalKms);

impl Kms for NoRetire {
    fn describe_key(&self, key: &str) -> Result<KeyMetadata, KmsError> {
        self.0.describe_key(key)
    }
    fn generate_data_key_without_plaintext(
        &self,
        key: &str,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.0.generate_data_key_without_plaintext(key, context)
    }
    fn decrypt(&self, request: &DecryptRequest<'_>) -> Result<sealblk_keymem::DataKey, KmsError> {
        self.0.decrypt(request)
    }
    fn encrypt(
        &self,
        key: &str,
        data_key: &sealblk_keymem::DataKey,
        context: &EncryptionContext,
    ) -> Result<WrappedKey, KmsError> {
        self.0.encrypt(key, data_key, context)
    }
    fn re_encrypt(&self, request: &ReEncryptRequest<'_>) -> Result<WrappedKey, KmsError> {
        self.0.re_encrypt(request)
    }
    fn create_grant(&self, request: &GrantRequest) -> Result<Grant, KmsError> {
        self.0.create_grant(request)
    }
    fn retire_grant(&self, key: &str, grant: &GrantId) -> Result<(), KmsError> {
        Unreachable.retire_grant(key, grant)
    }
}
