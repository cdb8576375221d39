//! `sealblk key users`, and what asks before a key in use is disabled or destroyed.

use std::sync::Arc;

use sealblk_control::{ControlError, KeyRole, KeyUser, KeyUsers, Pool, PoolDirectory};

use crate::exit::Failure;
use crate::kms;
use crate::output::{Output, table};
use crate::place::Place;

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
    Ok(Pool::new(directory.clone(), Arc::new(kms)).key_users(key)?)
}

fn rows(users: &KeyUsers) -> String {
    let row = |user: &KeyUser| {
        let role = match user.role {
            KeyRole::Primary => "primary",
            KeyRole::Recovery => "recovery",
            KeyRole::Source => "source",
        };
        let others = if user.has_other_keys { "yes" } else { "no" };
        let material = user.key_material_id.clone().unwrap_or_default();
        let (id, state) = (user.volume_id.to_string(), user.state.as_str().to_owned());
        vec![id, state, role.to_owned(), others.to_owned(), material]
    };
    let rows: Vec<_> = users.volumes.iter().map(row).collect();
    table(&["VOLUME", "STATE", "ROLE", "OTHER KEYS", "MATERIAL"], &[], &rows)
}
