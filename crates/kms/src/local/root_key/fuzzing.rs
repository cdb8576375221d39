//! What is checked of a root key's record, given any JSON, or a good one with its wrapped bytes edited.

use std::path::Path;
use std::sync::OnceLock;

use super::wrapping::{RootKeyProtection, SALT_BYTES, WrappedRootKey, WrappingKey, is_credential_name};
use super::{RootKey, RootKeyError};
use crate::fuzzing::{edited, edited_base64, filled};

/// A root key of these bytes, wrapped.
const ROOT: u8 = 0x77;

fn wrapping_key() -> &'static WrappingKey {
    static KEY: OnceLock<WrappingKey> = OnceLock::new();
    KEY.get_or_init(|| WrappingKey(filled(0x11)))
}

/// Any record: its parameters are ones that are safe to use, or refused; it does not open.
pub(crate) fn record(input: &[u8]) {
    let Ok(record) = serde_json::from_slice::<WrappedRootKey>(input) else { return };
    let path = Path::new("root.key");
    match record.protection(path) {
        Ok(RootKeyProtection::Passphrase(cost)) => {
            assert!(cost.memory_kib <= 1 << 20 && cost.passes <= 32 && cost.lanes <= 16);
        }
        Ok(RootKeyProtection::Credential { name }) => assert!(is_credential_name(&name)),
        Ok(RootKeyProtection::KeyFile) => panic!("no record is a key file"),
        Err(RootKeyError::Parameters { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    match record.open(wrapping_key(), path) {
        Ok(None) | Err(RootKeyError::Parameters { .. }) => {}
        Ok(Some(_)) => panic!("nobody wrapped this"),
        Err(other) => panic!("{other}"),
    }
}

/// A good record, edited: it opens, to the root key, if nothing is changed, and not otherwise.
pub(crate) fn edits(input: &[u8]) {
    static WHOLE: OnceLock<serde_json::Value> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| {
        let root: RootKey = filled(ROOT);
        let how = RootKeyProtection::Credential { name: "seal.key".to_owned() };
        let record = WrappedRootKey::seal(&root, wrapping_key(), how, &[0x22; SALT_BYTES]);
        serde_json::to_value(record.expect("sealed")).expect("JSON")
    });
    let (&which, input) = input.split_first().unwrap_or((&0, &[]));
    let mut changed = whole.clone();
    match which % 3 {
        0 => edited_base64(&mut changed["WrappedRootKey"], input),
        1 => edited_base64(&mut changed["Salt"], input),
        _ => {
            let name = edited(b"seal.key", input);
            changed["Protection"]["Credential"] = String::from_utf8_lossy(&name).into_owned().into();
        }
    }
    let record: WrappedRootKey = serde_json::from_value(changed.clone()).expect("strings where they were");
    match record.open(wrapping_key(), Path::new("root.key")) {
        Ok(Some(root)) => {
            assert_eq!(changed, *whole, "what was edited does not open");
            root.expose(|bytes| assert_eq!(bytes, &[ROOT; 32]));
        }
        Ok(None) | Err(RootKeyError::Parameters { .. }) => assert_ne!(changed, *whole, "what was not, does"),
        Err(other) => panic!("{other}"),
    }
}
