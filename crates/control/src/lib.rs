//! EC2-shaped operations on the pool: create, describe, modify, attach, detach, materialize and delete volumes.
//!
//! A [`Pool`] is a [`PoolDirectory`] with a key service ([`sealblk_kms::Kms`]), which is called for encrypted volumes only. Every
//! operation blocks, except [`Attachment::serve`]. What was done is returned; nothing is printed, and the
//! environment is not read. Called by the command line.
#![forbid(unsafe_code)]

mod account;
mod attach;
mod attachment;
mod backing;
mod block_stream;
mod conversation;
mod create;
mod delete;
mod describe;
mod detach;
mod endpoints;
mod error;
mod explain;
mod export;
mod export_info;
mod exposition;
mod freezing;
mod grant;
mod grow;
mod hold;
mod image;
mod keep;
mod key_providers;
mod key_users;
mod key_watch;
mod materialize;
mod metrics;
mod modify;
mod offline;
mod offline_work;
mod open;
mod outcome;
mod place;
mod pool;
mod restore;
mod rewrap;
mod runtime;
mod settings;
mod snapshot;
mod stats;
mod store;
mod uri;
mod wherever;

pub use attach::{AttachVolume, Attachment};
pub use attachment::AttachmentState;
pub use backing::BackingError;
pub use create::CreateVolume;
pub use delete::DeletedData;
pub use describe::{AttachmentDescription, DamagedVolume, ListedVolume, VolumeDescription, VolumeState};
pub use endpoints::{Endpoints, InheritedClient, UnixEndpoint};
pub use error::{ControlError, ErrorClass, with_causes};
pub use explain::Explanation;
pub use freezing::{SnapshotEvents, SnapshotGivenUp};
pub use grant::KeyUse;
pub use image::{ExportTarget, ExportVolume, ImageError, ImageFormat, ImportVolume};
pub use key_users::{KeyRole, KeySnapshot, KeyUser, KeyUsers};
pub use key_watch::{KeyEvent, KeyEvents, KeyLossPolicy, OnKeyLoss};
pub use metrics::{MalformedMetricsAddress, MetricsAddress};
pub use modify::ModifyVolume;
pub use outcome::{
    EncryptionDefaults, EncryptionRequest, Outcome, OutcomeError, Source, copy_outcome, outcome, row,
    start_outcome,
};
pub use place::BackingPlace;
pub use pool::{Pool, PoolDirectory, PoolRecord};
pub use restore::{
    RestoreError, RestoreEvent, RestoreEvents, RestoreProgram, RestoringDescription, serve_restore_helper,
};
pub use rewrap::RewrapOutcome;
pub use runtime::{RuntimeDir, SocketError};
pub use sealblk_snapshot::{Flaw, Progress, Report, State, Stop, StoreOptions};
pub use sealblk_volume::{AccountId, MalformedAccountId, SnapshotId, VolumeId, VolumeName};
pub use settings::Settings;
pub use snapshot::{
    CopiedFrom, CopiedSnapshot, CopyError, CopyExplanation, CopyRun, CopySnapshot, CreateSnapshot,
    DeletedSnapshot, Group, MisshapenBlock, Permission, Reencryption, RepositoryName, RepositoryPlace,
    ShareError, ShareWith, SnapshotDescription, SnapshotEncryption, SnapshotEvent, SnapshotMetadata,
    SnapshotOperationError, VerifySnapshots, XtsSnapshot,
};
pub use stats::{AttachmentStatistics, KindStatistics, LatencyHistogram, Percentiles};
