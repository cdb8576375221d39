//! The two volumes that are compared, one encrypted and one not, in a pool of their own: created, attached
//! and served as `sealblk volume attach` does it, only both by this process and at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use sealblk_block::Caching;
use sealblk_control::{
    AttachVolume, Attachment, ControlError, CreateVolume, Endpoints, KeyLossPolicy, Pool, PoolDirectory,
    RuntimeDir, UnixEndpoint,
};
use sealblk_nbd::Limits;
use tokio::sync::watch;

use crate::attach::Signals;
use crate::exit::Failure;
use crate::kms;

/// What kind of volumes, and where.
pub(crate) struct Volumes<'a> {
    /// An empty directory.
    pub(crate) directory: &'a Path,
    /// Size of each.
    pub(crate) bytes: u64,
    /// Around the page cache?
    pub(crate) direct: bool,
}

impl Volumes<'_> {
    /// Where the encrypted or the plain one is served.
    pub(crate) fn socket(&self, encrypted: bool) -> PathBuf {
        self.directory.join(if encrypted { "encrypted.sock" } else { "plain.sock" })
    }

    /// Creates, attaches and serves both until `stop` changes or is dropped; `ready` hears when clients may come.
    /// A signal sets `interrupted`, and it is then the measurement's business to stop.
    pub(crate) fn serve(
        &self,
        ready: &mpsc::Sender<()>,
        stop: &watch::Receiver<bool>,
        interrupted: &AtomicBool,
    ) -> Result<(), Failure> {
        let failed = |source| ControlError::Start { what: "the I/O runtime", source };
        let io = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let mut signals = io.block_on(async { Signals::catch() }).map_err(failed)?;
        let directory = PoolDirectory::open_or_create(&self.directory.join("pool"))?;
        let keys = kms::for_key_file(&directory)?;
        let pool = Pool::new(directory, Arc::new(keys));
        let encrypted = self.attach(&pool, true)?;
        let plain = self.attach(&pool, false)?;
        // Nobody waits for it any more if this measurement has come to an end already.
        let _ = ready.send(());
        let serving = async {
            let mut events = ((), ());
            tokio::join!(
                encrypted.serve(&mut events.0, stopped(stop.clone())),
                plain.serve(&mut events.1, stopped(stop.clone())),
                async {
                    tokio::select! {
                        () = signals.wait() => interrupted.store(true, Ordering::Relaxed),
                        () = stopped(stop.clone()) => {}
                    }
                }
            )
        };
        let (encrypted, plain, ()) = tokio::task::LocalSet::new().block_on(&io, serving);
        encrypted?;
        plain?;
        Ok(())
    }

    /// Creates one volume and attaches it.
    fn attach<'p>(&self, pool: &'p Pool, encrypted: bool) -> Result<Attachment<'p>, Failure> {
        let volume = pool.create_volume(
            &CreateVolume {
                size_bytes: Some(self.bytes),
                snapshot_id: None,
                encrypted: Some(encrypted),
                kms_key_id: None,
                recovery_kms_key_ids: Vec::new(),
                backing: None,
                name: None,
                discard: true,
                erase: false,
            },
            &mut |_, _| {},
        )?;
        let runtime = RuntimeDir::new(self.directory.join("run"));
        let attachment = pool.attach_volume(
            &runtime,
            &AttachVolume {
                volume: volume.volume_id,
                endpoints: Endpoints {
                    socket: UnixEndpoint::At(self.socket(encrypted)),
                    ..Endpoints::default()
                },
                read_only: false,
                caching: Some(if self.direct { Caching::Direct } else { Caching::Buffered }),
                limits: Limits { max_connections: 4, ..Limits::default() },
                snapshot_stall: AttachVolume::SNAPSHOT_STALL,
                metrics: None,
                key_loss: KeyLossPolicy::default(),
            },
        )?;
        // The open file is all that is needed. Without a name it is gone with this process, even a killed one.
        if let Some(data) = volume.backing.path() {
            let removed = fs::remove_file(data);
            removed.map_err(|source: io::Error| Failure::file("cannot remove", data, source))?;
        }
        Ok(attachment)
    }
}

/// Completes when `stop` says so, or when nobody is left who could.
async fn stopped(mut stop: watch::Receiver<bool>) {
    let _ = stop.wait_for(|stop| *stop).await;
}
