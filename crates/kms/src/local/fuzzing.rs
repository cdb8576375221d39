//! What is checked of the bytes that the embedded store keeps wrapped: data keys and backing keys.

use std::sync::OnceLock;

use uuid::Uuid;

use super::blob::{self, BLOB_BYTES, BackingKey, BlobError, Header};
use super::material::{Material, MaterialError};
use super::reference::{KeyReference, Scope};
use super::root_key::RootKey;
pub(crate) use super::root_key::fuzzing as root_key;
use crate::context::EncryptionContext;
use crate::fuzzing::{edited, edited_base64, filled};
use crate::material_id::wrapped_under;
use crate::service::WrappedKey;

/// What the good ones hold.
const PLAIN: u8 = 0x5a;
const KEY: Uuid = Uuid::from_bytes([0x11; 16]);

fn backing() -> &'static BackingKey {
    static BACKING: OnceLock<BackingKey> = OnceLock::new();
    BACKING.get_or_init(|| filled(0x33))
}

fn context() -> EncryptionContext {
    EncryptionContext::for_resource("vol-0123456789abcdef0")
}

fn whole_blob() -> &'static [u8] {
    static WHOLE: OnceLock<Vec<u8>> = OnceLock::new();
    WHOLE.get_or_init(|| {
        let header = Header { key_id: KEY, material_id: [0x22; 32], nonce: [0x44; 32] };
        blob::seal(&header, backing(), &context(), &filled(PLAIN)).expect("sealed").0
    })
}

/// Any bytes as a wrapped data key: taken apart if they have the length and the beginning, and never opened.
pub(crate) fn data_key(input: &[u8]) {
    let wrapped = WrappedKey(input.to_vec());
    let parsed = blob::parse(&wrapped);
    let has_shape = input.len() == BLOB_BYTES && input.starts_with(b"SEALKEY\x01");
    assert_eq!(parsed.is_some(), has_shape);
    let shown = wrapped_under(input);
    assert!(shown.is_none_or(|text| text.bytes().all(|byte| byte.is_ascii_alphanumeric())));
    if input != whole_blob() {
        must_stay_shut(&wrapped, &context());
    }
}

/// A good one, edited: it opens, to the data key, if nothing is changed, and not otherwise; nor for another context.
pub(crate) fn data_key_edits(input: &[u8]) {
    let wrapped = WrappedKey(edited(whole_blob(), input));
    if wrapped.0 != whole_blob() {
        return must_stay_shut(&wrapped, &context());
    }
    let opened = blob::open(&blob::parse(&wrapped).expect("ours"), backing(), &context());
    opened.expect("it is as it was").expose(|bytes| assert_eq!(bytes, &[PLAIN; 64]));
    let elsewhere: EncryptionContext =
        [("aws:ebs:id".to_owned(), String::from_utf8_lossy(input).into_owned())].into_iter().collect();
    must_stay_shut(&wrapped, &elsewhere);
}

fn must_stay_shut(wrapped: &WrappedKey, context: &EncryptionContext) {
    if let Some(blob) = blob::parse(wrapped) {
        let opened = blob::open(&blob, backing(), context);
        assert!(matches!(opened, Err(BlobError::Unauthentic)), "{opened:?}");
    }
}

fn root() -> &'static RootKey {
    static ROOT: OnceLock<RootKey> = OnceLock::new();
    ROOT.get_or_init(|| filled(0x55))
}

/// Any JSON as a backing key in a key's record.
pub(crate) fn material(input: &[u8]) {
    if let Ok(material) = serde_json::from_slice::<Material>(input) {
        let opened = material.open(root(), KEY);
        assert!(matches!(opened, Err(MaterialError::Unauthentic)), "{opened:?}");
    }
}

/// A good one, edited.
pub(crate) fn material_edits(input: &[u8]) {
    static WHOLE: OnceLock<Material> = OnceLock::new();
    let whole = WHOLE.get_or_init(|| Material::generate(root(), KEY, 0.0).expect("generated"));
    let before = serde_json::to_value(whole).expect("JSON");
    let (&which, input) = input.split_first().unwrap_or((&0, &[]));
    let mut changed = before.clone();
    if which % 2 == 0 {
        edited_base64(&mut changed["WrappedMaterial"], input);
    } else {
        let id = edited(whole.key_material_id.as_bytes(), input);
        changed["KeyMaterialId"] = String::from_utf8_lossy(&id).into_owned().into();
    }
    let material: Material = serde_json::from_value(changed.clone()).expect("strings where they were");
    let same = changed["WrappedMaterial"] == before["WrappedMaterial"] && material.id() == whole.id();
    match material.open(root(), KEY) {
        Ok(_) => assert!(same, "what was edited does not open"),
        Err(MaterialError::Unauthentic) => assert!(!same, "what was not, does"),
        Err(other) => panic!("{other}"),
    }
    let elsewhere = material.open(root(), Uuid::from_bytes([0x12; 16]));
    assert!(matches!(elsewhere, Err(MaterialError::Unauthentic)), "in another key's record");
}

/// The name of a key in the store: it is an id or an alias in a form that can be shown, or an error.
pub(crate) fn name(text: &str, scope: &Scope) {
    if let Ok(reference) = KeyReference::parse(text, scope) {
        let again = match &reference {
            KeyReference::Id(id) => scope.key_arn(*id),
            KeyReference::Alias(name) => scope.alias_arn(name),
        };
        assert_eq!(KeyReference::parse(&again, scope), Ok(reference), "{text}");
    }
}
