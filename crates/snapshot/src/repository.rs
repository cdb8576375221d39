//! A repository: the snapshots in one place of an object store, and what changes their records.

use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use object_store::ObjectStore;
use object_store::path::Path;
use sealblk_record::SnapshotId;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::SnapshotError;
use crate::exclusion::{Exclusion, Records, Stored};
use crate::geometry::{BLOCK_BYTES, FANOUT};
use crate::location::{Location, StoreOptions, connect};
use crate::names;
use crate::objects::Objects;
use crate::record::{RepositoryRecord, SnapshotRecord, State};
use crate::snapshot::Snapshot;
use crate::tree::Tree;

/// Records read at the same time when all are listed.
const READS: usize = 16;

/// The snapshots in one place of an object store. Cheap to clone; holds no lock and no connection of its own.
///
/// All methods run on the calling task and need a tokio runtime with time and, for S3, I/O enabled. Dropping a future is
/// safe at any point: it leaves what a killed process would leave, and every operation copes with that.
#[derive(Clone, Debug)]
pub struct Repository {
    pub(crate) objects: Arc<Objects>,
    pub(crate) records: Arc<Records>,
}

impl Repository {
    /// Opens the repository at `location`, and makes an empty one if there is none.
    ///
    /// # Errors
    /// [`SnapshotError::Location`], [`SnapshotError::Local`], [`SnapshotError::Store`]; [`SnapshotError::Unfit`]: the store
    /// cannot tell who came first; [`SnapshotError::Record`]: a repository that this release does not know.
    pub async fn open(location: &Location, options: &StoreOptions) -> Result<Self, SnapshotError> {
        let (store, exclusion) = connect(location, options).await?;
        Self::in_store(store, exclusion).await
    }

    /// As [`open`](Self::open), in a store that the caller made: one that supports conditional writes (`If-None-Match`,
    /// `If-Match`), strongly consistent, used by nobody else.
    ///
    /// # Errors
    /// As of [`open`](Self::open).
    pub async fn with_store(store: Arc<dyn ObjectStore>) -> Result<Self, SnapshotError> {
        Self::in_store(store, Exclusion::Versions).await
    }

    async fn in_store(store: Arc<dyn ObjectStore>, exclusion: Exclusion) -> Result<Self, SnapshotError> {
        let records = Arc::new(Records::new(Arc::clone(&store), exclusion));
        let path = Path::from(names::REPOSITORY);
        if records.load::<RepositoryRecord>(&path).await?.is_none() {
            let record = RepositoryRecord {
                create_time: Timestamp::now(),
                block_bytes: BLOCK_BYTES,
                page_entries: FANOUT,
            };
            // Not created: somebody was faster, and theirs is as good.
            if records.create(&path, &record).await? {
                records.check_fitness(&path, &record).await?;
            }
        }
        let record = records.load::<RepositoryRecord>(&path).await?.map(|stored| stored.value);
        match record {
            Some(record) if (record.block_bytes, record.page_entries) == (BLOCK_BYTES, FANOUT) => {
                Ok(Self { objects: Arc::new(Objects::new(store)), records })
            }
            Some(_) => Err(SnapshotError::Unfit { reason: "it is divided into blocks of another size" }),
            None => Err(SnapshotError::Unfit { reason: "it does not have what was just written" }),
        }
    }

    /// The record of a snapshot, in whatever state.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`], [`SnapshotError::Store`], [`SnapshotError::Record`].
    pub async fn record(&self, id: SnapshotId) -> Result<SnapshotRecord, SnapshotError> {
        Ok(self.stored(id).await?.value)
    }

    /// The records of all snapshots, in whatever state, by id.
    ///
    /// # Errors
    /// [`SnapshotError::Store`]; [`SnapshotError::Record`]: one cannot be read, and its path is in the error.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotRecord>, SnapshotError> {
        let ids = self.ids().await?;
        let records = futures_util::stream::iter(ids.into_iter().map(|id| async move {
            match self.record(id).await {
                // Removed since the names were listed.
                Err(SnapshotError::NotFound { .. }) => Ok(None),
                record => record.map(Some),
            }
        }));
        let records: Vec<Option<SnapshotRecord>> = records.buffered(READS).try_collect().await?;
        Ok(records.into_iter().flatten().collect())
    }

    /// Opens a completed snapshot for reading.
    ///
    /// A snapshot that is deleted while it is read gives [`SnapshotError::Damaged`] sooner or later, never wrong data;
    /// whoever must be able to finish takes a [`hold`](Self::hold) first.
    ///
    /// # Errors
    /// [`SnapshotError::NotFound`]; [`SnapshotError::WrongState`]: it is not completed; [`SnapshotError::Store`],
    /// [`SnapshotError::Record`].
    pub async fn snapshot(&self, id: SnapshotId) -> Result<Snapshot, SnapshotError> {
        let record = self.record(id).await?;
        match record.state {
            State::Completed => Ok(Snapshot::new(self.tree(&record), record)),
            state => Err(SnapshotError::WrongState { id, state }),
        }
    }

    /// Changes what the caller attached to a snapshot, in whatever state: `change` is given the present metadata and says
    /// what it shall be; it is called again if somebody else changed the record meanwhile.
    ///
    /// # Errors
    /// [`SnapshotError::Metadata`]: the present metadata is not an `M`, or the new one is not JSON; the errors of
    /// [`record`](Self::record).
    pub async fn update_metadata<M: Serialize + DeserializeOwned>(
        &self,
        id: SnapshotId,
        mut change: impl FnMut(M) -> M,
    ) -> Result<SnapshotRecord, SnapshotError> {
        let stored = self.update(id, |record| {
            let metadata = change(record.metadata()?);
            record.metadata = to_value(id, &metadata)?;
            Ok(())
        });
        Ok(stored.await?.value)
    }

    /// Gives up a snapshot that is being made: its state is `error` with this message, and only deleting is left.
    /// Whoever still makes it is stopped. A snapshot in error already keeps its first message.
    ///
    /// # Errors
    /// [`SnapshotError::WrongState`]: it is completed or being deleted; the errors of [`record`](Self::record).
    pub async fn fail(&self, id: SnapshotId, message: &str) -> Result<SnapshotRecord, SnapshotError> {
        let stored = self.update(id, |record| match record.state {
            State::Error => Ok(()),
            State::Pending => {
                record.state = State::Error;
                record.state_message = Some(message.to_owned());
                Ok(())
            }
            state => Err(SnapshotError::WrongState { id, state }),
        });
        Ok(stored.await?.value)
    }

    /// The ids of all snapshots that have a record, ascending.
    pub(crate) async fn ids(&self) -> Result<Vec<SnapshotId>, SnapshotError> {
        let listed = self.objects.list(&Path::from(names::SNAPSHOTS)).await?;
        let mut ids: Vec<SnapshotId> =
            listed.iter().filter_map(|object| names::parse_record(&object.location)).collect();
        ids.sort_unstable();
        Ok(ids)
    }

    pub(crate) async fn stored(&self, id: SnapshotId) -> Result<Stored<SnapshotRecord>, SnapshotError> {
        self.records.load(&names::record(id)).await?.ok_or(SnapshotError::NotFound { id })
    }

    /// Reads, changes and writes a record until nobody came between.
    pub(crate) async fn update(
        &self,
        id: SnapshotId,
        mut change: impl FnMut(&mut SnapshotRecord) -> Result<(), SnapshotError>,
    ) -> Result<Stored<SnapshotRecord>, SnapshotError> {
        loop {
            let stored = self.stored(id).await?;
            let mut record = stored.value.clone();
            change(&mut record)?;
            if record == stored.value {
                return Ok(stored);
            }
            if let Some(replaced) = self.records.replace(&names::record(id), &stored, record).await? {
                return Ok(replaced);
            }
        }
    }

    /// The index that a record names as its own.
    pub(crate) fn tree(&self, record: &SnapshotRecord) -> Tree {
        Tree {
            objects: Arc::clone(&self.objects),
            snapshot: record.snapshot_id,
            root: record.root.map(|root| root.reference()),
        }
    }
}

/// Metadata as it is stored.
pub(crate) fn to_value<M: Serialize>(
    id: SnapshotId,
    metadata: &M,
) -> Result<serde_json::Value, SnapshotError> {
    serde_json::to_value(metadata).map_err(|source| SnapshotError::Metadata { id, source })
}
