//! `sealblk init` and `sealblk key root-protection`: how the key store's root key is protected, from the beginning or
//! from now on.

use sealblk_control::{ControlError, PoolDirectory, PoolRecord};
use sealblk_keymem::harden_process;
use sealblk_kms::Passphrase;
use sealblk_kms::local::{NewProtection, RootKeyProtection};
use serde_json::{Value, json};

use crate::args::{InitArgs, Protection, ProtectionChoice, RootProtectionArgs};
use crate::exit::Failure;
use crate::kms;
use crate::output::{Output, fields};
use crate::passphrase::PassphraseInput;
use crate::place::Place;

/// Makes a pool that is not there.
pub(crate) fn run(args: &InitArgs, place: &Place, output: &Output) -> Result<(), Failure> {
    harden_process().map_err(ControlError::from)?;
    let chosen = Chosen::new(&args.choice, &place.passphrase)?;
    let usual = PoolRecord::default();
    let region = args.region.as_deref().unwrap_or(&usual.region);
    let record = PoolRecord::new(region, place.account.clone().unwrap_or(usual.account))?;
    let pool = PoolDirectory::create(&place.pool, record, |pool| {
        Ok::<_, Failure>(kms::store(pool, place)?.create_root_key(chosen.protection())?)
    })?;
    let store = kms::store(&pool, place)?;
    let protection = store.root_key_protection()?.unwrap_or(RootKeyProtection::KeyFile);
    let document = json!({
        "Pool": place.pool,
        "Region": pool.record().region,
        "Account": pool.record().account,
        "RootKeyProtection": protection,
    });
    Ok(output.result(&document, || {
        fields(&[
            ("Pool", place.pool.display().to_string()),
            ("Region", pool.record().region.clone()),
            ("Account", pool.record().account.to_string()),
            ("KeyStore", pool.key_store().display().to_string()),
            ("RootKey", describe(&protection)),
        ])
    })?)
}

/// Tells how the root key is protected, or protects it in another way.
pub(crate) fn root_protection(
    args: &RootProtectionArgs,
    place: &Place,
    output: &Output,
) -> Result<(), Failure> {
    let pool = place.open_pool()?;
    let store = kms::store(&pool, place)?;
    if let Some(protection) = args.protection {
        let choice = ProtectionChoice { root_key: protection, credential: args.credential.clone() };
        let new = PassphraseInput::of(args.new_passphrase_fd, args.new_passphrase_file.as_deref());
        // The old passphrase first, as both may be lines of one pipe.
        if let Some(RootKeyProtection::Passphrase(_)) = store.root_key_protection()? {
            place.source.get().map_err(Failure::Passphrase)?;
        }
        store.protect_root_key(Chosen::new(&choice, &new)?.protection())?;
    }
    let protection = store.root_key_protection()?;
    let document =
        json!({ "RootKeyProtection": protection.as_ref().map_or(Value::Null, |told| json!(told)) });
    Ok(output.result(&document, || {
        protection.as_ref().map_or("there is no root key yet: the first key makes one".to_owned(), describe)
    })?)
}

/// A protection with what it needs.
enum Chosen {
    KeyFile,
    Passphrase(Passphrase),
    Credential(String),
}

impl Chosen {
    fn new(choice: &ProtectionChoice, passphrase: &PassphraseInput) -> Result<Self, Failure> {
        Ok(match (choice.root_key, &choice.credential) {
            (Protection::File, _) => Self::KeyFile,
            (Protection::Passphrase, _) => {
                Self::Passphrase(passphrase.new_one().map_err(Failure::Passphrase)?)
            }
            (Protection::Credential, Some(name)) => Self::Credential(name.clone()),
            (Protection::Credential, None) => {
                return Err(Failure::usage(
                    "a root key under a credential needs its name: --credential NAME",
                ));
            }
        })
    }

    fn protection(&self) -> NewProtection<'_> {
        match self {
            Self::KeyFile => NewProtection::KeyFile,
            Self::Passphrase(passphrase) => NewProtection::Passphrase(passphrase),
            Self::Credential(name) => NewProtection::Credential(name),
        }
    }
}

fn describe(protection: &RootKeyProtection) -> String {
    match protection {
        RootKeyProtection::KeyFile => "in a key file, which only its owner can read".to_owned(),
        RootKeyProtection::Passphrase(cost) => format!(
            "under a passphrase (Argon2id, {} MiB, {} passes, {} lanes)",
            cost.memory_kib / 1024,
            cost.passes,
            cost.lanes
        ),
        RootKeyProtection::Credential { name } => format!("under the service manager's credential {name}"),
    }
}
