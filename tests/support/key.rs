//! The embedded key store of a test's pool, opened as its owner: what only the owner can learn.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sealblk_kms::local::{GrantEntry, LocalKms, Scope};
use sealblk_kms::{DecryptRequest, EncryptionContext, Kms, Principal, WrappedKey};

use super::pool::Pool;

/// The pool's key store.
pub fn key_store(pool: &Pool) -> LocalKms {
    let owner = Principal(format!("uid:{}", rustix::process::geteuid().as_raw()));
    let store = LocalKms::open(&pool.path().join("kms"), Scope::default(), owner);
    store.expect("the key store opens").via_service()
}

/// A volume's data key, by the way that an administrator has to a backup of the wrapped key.
pub fn data_key(pool: &Pool, volume: &str) -> [u8; 64] {
    let described = pool.describe(volume);
    let text = |name: &str| {
        described[name].as_str().unwrap_or_else(|| panic!("no {name} in {described}")).to_owned()
    };
    let wrapped = WrappedKey(STANDARD.decode(text("WrappedKey")).expect("the wrapped key is base64"));
    let context = EncryptionContext::for_resource(volume);
    let request =
        DecryptRequest { wrapped: &wrapped, key: &text("KmsKeyId"), context: &context, grant: None };
    key_store(pool).decrypt(&request).expect("the owner may unwrap it").expose(|key| *key)
}

/// A volume's data key as dm-crypt's table takes it.
pub fn data_key_hex(pool: &Pool, volume: &str) -> String {
    data_key(pool, volume).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The grants of the key that a volume is encrypted under.
pub fn grants(pool: &Pool, volume: &str) -> Vec<GrantEntry> {
    let key = pool.describe(volume)["KmsKeyId"].as_str().expect("it is encrypted").to_owned();
    key_store(pool).list_grants(&key).expect("the owner may list them")
}
