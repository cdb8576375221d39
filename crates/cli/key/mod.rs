//! `sealblk key …`: the embedded key store's administrative verbs.

mod access;
mod args;
mod users;

use sealblk_kms::local::{LocalKms, NewKey, RotationEntry};
use sealblk_kms::{KeyMetadata, Kms};
use serde_json::json;

pub(crate) use self::args::KeyCommand;
use self::args::{AliasCommand, CreateKeyArgs};
use crate::exit::Failure;
use crate::init;
use crate::kms;
use crate::output::{Output, fields, table};
use crate::place::Place;

/// Does what `sealblk key` was asked for.
pub(crate) fn run(command: KeyCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    let directory = place.open_pool()?;
    let store = kms::store(&directory, place)?;
    match command {
        KeyCommand::Create(args) => create(&store, args, output)?,
        KeyCommand::List => {
            let keys = store.list_keys()?;
            output.result(&json!({ "Keys": keys }), || list(&keys))?;
        }
        KeyCommand::Describe { key } => {
            let key = store.describe_key(&key)?;
            output.result(&key, || describe(&key))?;
        }
        KeyCommand::UpdateDescription { key, description } => {
            store.update_key_description(&key, &description)?;
            done(&store.describe_key(&key)?, output)?;
        }
        KeyCommand::Enable { key } => {
            store.enable_key(&key)?;
            done(&store.describe_key(&key)?, output)?;
        }
        KeyCommand::Disable { key, force } => {
            if !force {
                users::refuse_in_use(&directory, place, &key)?;
            }
            store.disable_key(&key)?;
            done(&store.describe_key(&key)?, output)?;
        }
        KeyCommand::Users { key } => users::list(&directory, place, &key, output)?,
        KeyCommand::ScheduleDeletion { key, pending_window_in_days, force } => {
            if !force {
                users::refuse_in_use(&directory, place, &key)?;
            }
            let scheduled = store.schedule_key_deletion(&key, Some(pending_window_in_days))?;
            let state = || Ok::<_, Failure>(store.describe_key(&key)?.state_in_words());
            let state = state()?;
            output.result(&scheduled, || format!("{} {state}", scheduled.key_id))?;
        }
        KeyCommand::CancelDeletion { key } => done(&store.cancel_key_deletion(&key)?, output)?,
        KeyCommand::Rotate { .. }
        | KeyCommand::EnableRotation { .. }
        | KeyCommand::DisableRotation { .. }
        | KeyCommand::RotationStatus { .. }
        | KeyCommand::ListRotations { .. } => rotation(&store, command, output)?,
        KeyCommand::Alias(command) => alias(&store, command, output)?,
        KeyCommand::Grants(command) => access::grants(&store, command, output)?,
        KeyCommand::Policy(command) => access::policy(&store, command, output)?,
        KeyCommand::RootProtection(args) => init::root_protection(&args, place, output)?,
    }
    Ok(())
}

fn create(store: &LocalKms, args: CreateKeyArgs, output: &Output) -> Result<(), Failure> {
    let policy = args.policy.as_deref().map(access::read_policy).transpose()?;
    let key = store.create_key_as(&NewKey {
        description: args.description,
        spec: args.key_spec,
        usage: args.key_usage,
        policy,
        alias: args.alias,
    })?;
    Ok(output.result(&key, || key.arn.clone())?)
}

fn rotation(store: &LocalKms, command: KeyCommand, output: &Output) -> Result<(), Failure> {
    let key = match command {
        KeyCommand::Rotate { key } => {
            store.rotate_key_on_demand(&key)?;
            let key = store.describe_key(&key)?;
            let text =
                || format!("{} {}", key.arn, key.current_key_material_id.as_deref().unwrap_or_default());
            return Ok(output.result(&key, text)?);
        }
        KeyCommand::ListRotations { key } => {
            let rotations = store.list_key_rotations(&key)?;
            return Ok(output.result(&json!({ "Rotations": rotations }), || materials(&rotations))?);
        }
        KeyCommand::EnableRotation { key, rotation_period_in_days } => {
            store.enable_key_rotation(&key, rotation_period_in_days)?;
            key
        }
        KeyCommand::DisableRotation { key } => {
            store.disable_key_rotation(&key)?;
            key
        }
        KeyCommand::RotationStatus { key } => key,
        _ => return Ok(()),
    };
    let status = store.get_key_rotation_status(&key)?;
    let text = || match (status.rotation_period_in_days, status.next_rotation_date) {
        (Some(days), Some(next)) => {
            format!("{} every {days} days, next on {}", status.key_id, day(Some(next)))
        }
        _ => format!("{} not rotated automatically", status.key_id),
    };
    Ok(output.result(&status, text)?)
}

fn alias(store: &LocalKms, command: AliasCommand, output: &Output) -> Result<(), Failure> {
    let (alias, key) = match command {
        AliasCommand::Create { alias, key } => {
            store.create_alias(&alias, &key)?;
            (alias, Some(key))
        }
        AliasCommand::Update { alias, key } => {
            store.update_alias(&alias, &key)?;
            (alias, Some(key))
        }
        AliasCommand::Delete { alias } => {
            store.delete_alias(&alias)?;
            (alias, None)
        }
        AliasCommand::List { key } => {
            let aliases = store.list_aliases(key.as_deref())?;
            let row = |alias: &sealblk_kms::local::AliasEntry| {
                vec![alias.alias_name.clone(), alias.target_key_id.clone().unwrap_or_default()]
            };
            let rows: Vec<_> = aliases.iter().map(row).collect();
            return Ok(
                output.result(&json!({ "Aliases": aliases }), || table(&["ALIAS", "KEY"], &[], &rows))?
            );
        }
    };
    let document = json!({ "AliasName": alias, "TargetKeyId": key });
    Ok(output.result(&document, || format!("{alias} {}", key.as_deref().unwrap_or("deleted")))?)
}

/// What a command says that only changed a state.
fn done(key: &KeyMetadata, output: &Output) -> Result<(), Failure> {
    Ok(output.result(key, || format!("{} {:?}", key.arn, key.key_state))?)
}

fn materials(rotations: &[RotationEntry]) -> String {
    let row = |entry: &RotationEntry| {
        vec![
            entry.key_material_id.clone(),
            entry.key_material_state.to_owned(),
            entry.rotation_type.map_or_else(String::new, |how| format!("{how:?}")),
            day(entry.rotation_date),
        ]
    };
    let rows: Vec<_> = rotations.iter().map(row).collect();
    table(&["MATERIAL", "STATE", "ROTATION", "DATE"], &[], &rows)
}

/// A date of KMS's as a day; empty if there is none.
fn day(seconds: Option<f64>) -> String {
    #[allow(clippy::cast_possible_truncation, reason = "a date beyond what 64 bits hold is not shown")]
    let time = seconds.and_then(|seconds| jiff::Timestamp::from_second(seconds as i64).ok());
    time.map_or_else(String::new, |time| time.strftime("%Y-%m-%d").to_string())
}

fn list(keys: &[KeyMetadata]) -> String {
    let row = |key: &KeyMetadata| {
        vec![
            key.key_id.clone(),
            format!("{:?}", key.key_state),
            key.key_manager.clone(),
            key.description.clone(),
        ]
    };
    table(&["KEY", "STATE", "MANAGER", "DESCRIPTION"], &[], &keys.iter().map(row).collect::<Vec<_>>())
}

fn describe(key: &KeyMetadata) -> String {
    fields(&[
        ("KeyId", key.key_id.clone()),
        ("Arn", key.arn.clone()),
        ("KeyState", format!("{:?}", key.key_state)),
        ("KeyManager", key.key_manager.clone()),
        ("KeySpec", key.key_spec.clone()),
        ("KeyUsage", key.key_usage.clone()),
        ("CreationDate", day(Some(key.creation_date))),
        ("DeletionDate", day(key.deletion_date)),
        ("CurrentKeyMaterialId", key.current_key_material_id.clone().unwrap_or_default()),
        ("Description", key.description.clone()),
    ])
}
