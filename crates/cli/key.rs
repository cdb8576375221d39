//! `sealblk key …`: the embedded key store's administrative verbs.

use sealblk_control::PoolDirectory;
use sealblk_kms::{KeyMetadata, Kms};
use serde_json::json;

use crate::args::KeyCommand;
use crate::exit::Failure;
use crate::init;
use crate::kms;
use crate::output::{Output, fields, table};
use crate::place::Place;

/// Does what `sealblk key` was asked for.
pub(crate) fn run(command: KeyCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    let store = kms::store(&PoolDirectory::open_or_create(&place.pool)?, place)?;
    match command {
        KeyCommand::Create { description } => {
            let key = store.create_key(&description)?;
            output.result(&key, || key.arn.clone())?;
        }
        KeyCommand::List => {
            let keys = store.list_keys()?;
            output.result(&json!({ "Keys": keys }), || list(&keys))?;
        }
        KeyCommand::Describe { key } => {
            let key = store.describe_key(&key)?;
            output.result(&key, || describe(&key))?;
        }
        KeyCommand::Enable { key } => {
            store.enable_key(&key)?;
            done(&store.describe_key(&key)?, output)?;
        }
        KeyCommand::Disable { key } => {
            store.disable_key(&key)?;
            done(&store.describe_key(&key)?, output)?;
        }
        KeyCommand::RootProtection(args) => init::root_protection(&args, place, output)?,
    }
    Ok(())
}

/// What a command says that only changed a state.
fn done(key: &KeyMetadata, output: &Output) -> std::io::Result<()> {
    output.result(key, || format!("{} {:?}", key.arn, key.key_state))
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
        ("Description", key.description.clone()),
    ])
}
