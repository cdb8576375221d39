//! `sealblk key users`, and what asks before a key in use is disabled or destroyed.

use std::sync::Arc;

use sealblk_control::{ControlError, KeyRole, KeySnapshot, KeyUser, KeyUsers, Pool, PoolDirectory};

use crate::exit::Failure;
use crate::kms;
use crate::output::{Output, table};
use crate::place::Place;
use crate::repository_args::RepositoryArgs;

/// Lists what depends on the key.
pub(crate) fn list(
    directory: &PoolDirectory,
    place: &Place,
    key: &str,
    output: &Output,
) -> Result<(), Failure> {
    let users = find(directory, place, key)?;
    output.result(&users, || rows(&users))?;
    for volume in &users.unreadable_volumes {
        output
            .text_note(&format!("warning: the record of {volume} cannot be read: it may depend on any key"));
    }
    if let Some(reason) = &users.unreadable_snapshots {
        output.text_note(&format!("warning: it is not known which snapshots depend on it: {reason}"));
    }
    Ok(())
}

/// Refuses to go on with a key that something depends on.
pub(crate) fn refuse_in_use(directory: &PoolDirectory, place: &Place, key: &str) -> Result<(), Failure> {
    let users = find(directory, place, key)?;
    if users.is_empty() {
        return Ok(());
    }
    Err(ControlError::KeyInUse { users: Box::new(users) }.into())
}

fn find(directory: &PoolDirectory, place: &Place, key: &str) -> Result<KeyUsers, Failure> {
    let kms = kms::for_volumes(directory, place)?;
    let repository = RepositoryArgs::default().place(directory)?;
    Ok(Pool::new(directory.clone(), Arc::new(kms)).with_repository(repository).key_users(key)?)
}

fn rows(users: &KeyUsers) -> String {
    let row = |id: String, state: &str, role: KeyRole, has_others: bool, material: &Option<String>| {
        let role = match role {
            KeyRole::Primary => "primary",
            KeyRole::Recovery => "recovery",
            KeyRole::Source => "source",
        };
        let others = if has_others { "yes" } else { "no" };
        let words = [state, role, others, material.as_deref().unwrap_or_default()];
        std::iter::once(id).chain(words.map(str::to_owned)).collect::<Vec<_>>()
    };
    let volume = |user: &KeyUser| {
        let state = user.state.as_str();
        row(user.volume_id.to_string(), state, user.role, user.has_other_keys, &user.key_material_id)
    };
    let snapshot = |user: &KeySnapshot| {
        let state = user.state.to_string();
        row(user.snapshot_id.to_string(), &state, user.role, user.has_other_keys, &user.key_material_id)
    };
    let volumes = users.volumes.iter().map(volume);
    let rows: Vec<_> = volumes.chain(users.snapshots.iter().map(snapshot)).collect();
    table(&["USED BY", "STATE", "ROLE", "OTHER KEYS", "MATERIAL"], &[], &rows)
}
