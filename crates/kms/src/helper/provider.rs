//! Which provider a helper opens, and how: what a parent says to its child about it. No field holds a secret: a file
//! that does is named.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{KmsError, KmsErrorKind};
use crate::exec::{ExecConfig, ExecKms};
use crate::local::{LocalKms, Scope};
use crate::passphrase::Unlock;
use crate::pkcs11::{Pkcs11Config, Pkcs11Kms};
use crate::service::{Kms, Principal};
use crate::transit::{TransitConfig, TransitKms};

/// Which provider the helper opens, and how.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all_fields = "PascalCase", deny_unknown_fields)]
pub enum ProviderConfig {
    /// The embedded key store.
    Local {
        /// Its directory. Relative paths mean the same to the helper: it inherits the working directory.
        dir: PathBuf,
        /// What its ARNs carry.
        scope: Scope,
        /// On whose behalf the calls are made.
        caller: Principal,
    },
    /// AWS KMS. Only `sealblk-kms-aws` opens it; calls name keys as AWS does, without `aws-kms:`.
    AwsKms {
        /// The region; `None`: what the standard chain says.
        region: Option<String>,
        /// The service's URL; `None`: AWS's own for the region.
        endpoint_url: Option<String>,
        /// The profile in the shared configuration files; `None`: what the standard chain says.
        profile: Option<String>,
        /// The service's certificate authorities, PEM; `None`: the well-known ones.
        ca_file: Option<PathBuf>,
        /// How long one attempt may take, in milliseconds; the whole call is bounded by the helper's time.
        attempt_ms: u64,
    },
    /// The transit engine of OpenBao or Vault.
    Transit(TransitConfig),
    /// A PKCS#11 module.
    Pkcs11(Pkcs11Config),
    /// An external program.
    Exec(ExecConfig),
}

impl ProviderConfig {
    /// Opens a provider that this crate has, in this process: the helper's. AWS KMS is not among them. `unlock` opens
    /// the embedded store's root key.
    pub fn open(&self, unlock: &Unlock) -> Result<Box<dyn Kms>, KmsError> {
        match self {
            Self::Local { dir, scope, caller } => {
                let kms = LocalKms::open(dir, scope.clone(), caller.clone())?;
                // A helper works for volumes; what is done to keys themselves goes to the store directly.
                Ok(Box::new(kms.via_service().unlocked_by(unlock.clone())))
            }
            Self::AwsKms { .. } => Err(KmsError {
                kind: KmsErrorKind::Misconfigured,
                operation: "OpenProvider",
                key: "AWS KMS".to_owned(),
                message: "this helper does not speak to AWS KMS: sealblk-kms-aws does".to_owned(),
                request_id: "none".to_owned(),
                source: None,
            }),
            Self::Transit(config) => Ok(Box::new(TransitKms::open(config)?)),
            Self::Pkcs11(config) => Ok(Box::new(Pkcs11Kms::open(config)?)),
            Self::Exec(config) => Ok(Box::new(ExecKms::open(config)?)),
        }
    }

    /// What the helper's environment must hold for the provider's library: a PKCS#11 module's own settings.
    pub(super) fn environment(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match self {
            Self::Pkcs11(config) => &config.environment,
            _ => &NONE,
        }
    }
}
