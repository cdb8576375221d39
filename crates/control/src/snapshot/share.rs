//! Sharing: which other accounts may make volumes and copies of a snapshot (EC2: ModifySnapshotAttribute,
//! `createVolumePermission`; requirements 50, 51). It is a list in the snapshot's record and says nothing to the key:
//! whoever is to use an encrypted snapshot must be let use its key by the key's policy or a grant.
//!
//! Taking it back ends what is not begun yet; volumes and copies that were made live on.

use sealblk_volume::{AccountId, KeyReference, SnapshotId};

use super::describe::SnapshotDescription;
use super::metadata::SnapshotMetadata;
use crate::error::{ControlError, ErrorClass};
use crate::offline;
use crate::pool::Pool;

/// Accounts in one request (ebs.md A.4).
const CHANGES_MAX: usize = 500;
/// Accounts that one snapshot is shared with.
const ACCOUNTS_MAX: usize = 1000;
/// `KeyManager` of a key that accounts cannot let others use.
const MANAGED: &str = "AWS";

/// Whom a snapshot is shared with, or no longer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ShareWith {
    /// These accounts.
    Accounts(Vec<AccountId>),
    /// Every account.
    Everybody,
}

/// Why a snapshot is not changed, or not shared.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each field is in its variant's message")]
pub enum ShareError {
    /// It is shared with the account, and no more.
    #[error("the snapshot {id} belongs to account {owner}: others cannot share, change or delete it")]
    NotOwner { id: SnapshotId, owner: AccountId },
    /// Requirement 50.
    #[error(
        "the snapshot {id} is encrypted and cannot be shared with everybody; name accounts (--account-id)"
    )]
    EncryptedInPublic { id: SnapshotId },
    /// Nobody can be let use the managed key, so sharing would be of no use.
    #[error(
        "the snapshot {id} is encrypted under the account's managed key, which no other account can be let use; share a copy of it under a key of your own: sealblk snapshot copy {id} --encrypted --kms-key-id KEY"
    )]
    ManagedKey { id: SnapshotId, key: KeyReference },
    /// One request names too many accounts.
    #[error("{count} accounts in one request: {CHANGES_MAX} at most")]
    TooManyChanges { count: usize },
    /// The list would be too long.
    #[error("the snapshot {id} would be shared with more than {ACCOUNTS_MAX} accounts")]
    TooManyAccounts { id: SnapshotId },
}

impl ShareError {
    /// EC2's code for it (ebs.md A.4), and what it means for the caller.
    pub(crate) fn verdict(&self) -> (&'static str, ErrorClass) {
        match self {
            Self::NotOwner { .. } => ("AuthFailure", ErrorClass::Denied),
            Self::EncryptedInPublic { .. } | Self::ManagedKey { .. } => {
                ("OperationNotPermitted", ErrorClass::Denied)
            }
            Self::TooManyChanges { .. } => ("InvalidParameterValue", ErrorClass::Usage),
            Self::TooManyAccounts { .. } => ("ResourceLimitExceeded", ErrorClass::State),
        }
    }
}

impl Pool {
    /// Lets others make volumes and copies of a snapshot of the account's own. Whoever may already, still may.
    ///
    /// The key is looked up (DescribeKey): a snapshot under the managed key is refused, because nobody else could use
    /// it. On an error the list is as it was.
    pub fn share_snapshot(
        &self,
        id: SnapshotId,
        with: &ShareWith,
    ) -> Result<SnapshotDescription, ControlError> {
        self.change_sharing(id, with, |metadata| {
            match with {
                ShareWith::Everybody => metadata.public = true,
                ShareWith::Accounts(accounts) => {
                    let others = accounts.iter().filter(|account| **account != metadata.owner_id);
                    metadata.shared_with.extend(others.cloned());
                    metadata.shared_with.sort_unstable();
                    metadata.shared_with.dedup();
                }
            }
            metadata.shared_with.len() <= ACCOUNTS_MAX
        })
    }

    /// Takes that back. What others have made of the snapshot stays theirs; whom it is not shared with is passed over.
    pub fn unshare_snapshot(
        &self,
        id: SnapshotId,
        with: &ShareWith,
    ) -> Result<SnapshotDescription, ControlError> {
        self.change_sharing(id, with, |metadata| {
            match with {
                ShareWith::Everybody => metadata.public = false,
                ShareWith::Accounts(accounts) => {
                    metadata.shared_with.retain(|account| !accounts.contains(account));
                }
            }
            true
        })
    }

    /// Checks who asks, for what, and replaces the record whole, as often as others change it meanwhile. `change` says
    /// whether the new list may be stored.
    fn change_sharing(
        &self,
        id: SnapshotId,
        with: &ShareWith,
        change: impl Fn(&mut SnapshotMetadata) -> bool,
    ) -> Result<SnapshotDescription, ControlError> {
        if let ShareWith::Accounts(accounts) = with
            && accounts.len() > CHANGES_MAX
        {
            return Err(ShareError::TooManyChanges { count: accounts.len() }.into());
        }
        let metadata = offline::run(async {
            Ok::<SnapshotMetadata, ControlError>(self.repository.open().await?.record(id).await?.metadata()?)
        })??;
        self.require_owned(id, &metadata)?;
        self.require_shareable(id, &metadata, with)?;
        let mut fits = true;
        let record = offline::run(async {
            let repository = self.repository.open().await?;
            // Whose it is and how it is encrypted never change; only the list may have, meanwhile.
            let changed = repository.update_metadata(id, |metadata: SnapshotMetadata| {
                let mut changed = metadata.clone();
                fits = change(&mut changed);
                if fits { changed } else { metadata }
            });
            Ok::<_, ControlError>(changed.await?)
        })??;
        if !fits {
            return Err(ShareError::TooManyAccounts { id }.into());
        }
        let metadata = record.metadata()?;
        Ok(self.describe(&record, metadata))
    }

    /// Refuses what would be of no use to anybody, or be seen by everybody.
    fn require_shareable(
        &self,
        id: SnapshotId,
        metadata: &SnapshotMetadata,
        with: &ShareWith,
    ) -> Result<(), ControlError> {
        let Some(key) = metadata.kms_key_id() else { return Ok(()) };
        if *with == ShareWith::Everybody {
            return Err(ShareError::EncryptedInPublic { id }.into());
        }
        if self.kms.describe_key(key.as_str())?.key_manager == MANAGED {
            return Err(ShareError::ManagedKey { id, key: key.clone() }.into());
        }
        Ok(())
    }
}
