//! Which providers besides the embedded key store a pool may use, and how: the pool's `kms.json`.
//!
//! A key's name comes from a record, and a record may come from a store that others can write. So nothing is contacted,
//! loaded or run because a name says so: a transit server, a PKCS#11 module and a program are used only if they are
//! listed here, and a server gets only the token that is listed for its own address. AWS KMS needs no entry.
//!
//! The file holds no secret, only the names of files that do.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sealblk_record::Document;
use serde::{Deserialize, Serialize};

use crate::exec::ExecConfig;
use crate::helper::ProviderConfig;
use crate::key_uri::KeyUri;
use crate::pkcs11::{Pkcs11Config, Pkcs11Uri};
use crate::transit::TransitConfig;

/// Every provider's settings, and the patience with all of them.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Providers {
    /// How long to wait for any provider.
    pub patience: Patience,
    /// AWS KMS, where the standard chain of settings is not enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws_kms: Option<AwsSettings>,
    /// Servers with a transit engine, by address.
    pub transit: BTreeMap<String, TransitSettings>,
    /// PKCS#11 modules, by the path of the shared library.
    pub pkcs11: BTreeMap<PathBuf, Pkcs11Settings>,
    /// Programs, by path.
    pub exec: BTreeMap<PathBuf, ExecSettings>,
}

impl Document for Providers {
    const FORMAT: &'static str = "sealblk-kms-providers";
    const VERSION: u32 = 1;
}

/// The pool does not say that this may be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotListed {
    #[error("{0} is not set up for this pool: sealblk kms configure transit --address {0} (docs/KMS.md)")]
    Transit(String),
    #[error("the PKCS#11 module {} is not set up for this pool: sealblk kms configure pkcs11 --module {}", .0.display(), .0.display())]
    Module(PathBuf),
    #[error(
        "no PKCS#11 module is set up for this pool, or several are: sealblk kms configure pkcs11 --module PATH, or module-path= in the URI"
    )]
    WhichModule,
    #[error("the key program {} is not set up for this pool: sealblk kms configure exec --program {}", .0.display(), .0.display())]
    Program(PathBuf),
    #[error("the embedded store and AWS KMS are not listed")]
    NeedsNone,
}

impl Providers {
    /// How to open the provider of a key whose provider must be listed here.
    pub(crate) fn provider_of(&self, uri: &KeyUri) -> Result<ProviderConfig, NotListed> {
        // A little less than the helper has, so that it can still say who did not answer.
        let timeout_ms = self.patience.inner_ms();
        match uri {
            KeyUri::Transit(uri) => {
                let address = uri.address.clone();
                let settings = self.transit.get(&address).ok_or(NotListed::Transit(address.clone()))?;
                let TransitSettings { ca_file, namespace, login } = settings.clone();
                Ok(ProviderConfig::Transit(TransitConfig { address, ca_file, namespace, login, timeout_ms }))
            }
            KeyUri::Pkcs11(uri) => {
                let (module, settings) = self.module_of(uri)?;
                let Pkcs11Settings { pin_file, environment } = settings.clone();
                Ok(ProviderConfig::Pkcs11(Pkcs11Config { module: module.clone(), pin_file, environment }))
            }
            KeyUri::Exec(uri) => {
                let program = uri.program.clone();
                let settings = self.exec.get(&program).ok_or(NotListed::Program(program.clone()))?;
                let environment = settings.environment.clone();
                Ok(ProviderConfig::Exec(ExecConfig { program, environment, timeout_ms }))
            }
            KeyUri::Local(_) | KeyUri::AwsKms(_) => Err(NotListed::NeedsNone),
        }
    }

    fn module_of(&self, uri: &Pkcs11Uri) -> Result<(&PathBuf, &Pkcs11Settings), NotListed> {
        match &uri.module_path {
            Some(path) => self.pkcs11.get_key_value(path).ok_or(NotListed::Module(path.clone())),
            None if self.pkcs11.len() == 1 => self.pkcs11.iter().next().ok_or(NotListed::WhichModule),
            None => Err(NotListed::WhichModule),
        }
    }
}

/// How long to wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct Patience {
    /// For one attempt, in milliseconds, 100 to 300000: then the helper is killed.
    pub timeout_ms: u64,
    /// For all attempts together, in milliseconds: no new one begins after that.
    pub deadline_ms: u64,
}

impl Default for Patience {
    /// Ten seconds an attempt, twenty in all.
    fn default() -> Self {
        Self { timeout_ms: 10_000, deadline_ms: 20_000 }
    }
}

impl Patience {
    /// For one attempt; a value out of range counts as the nearest in it.
    pub fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms.clamp(100, 300_000))
    }

    /// What a provider has of an attempt's time, in milliseconds.
    fn inner_ms(&self) -> u64 {
        self.timeout_ms.clamp(100, 300_000) / 5 * 4
    }

    /// For all attempts together.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms.min(3_600_000))
    }
}

/// AWS KMS. Credentials come from the standard chain: environment, shared files, container, instance.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default, deny_unknown_fields)]
pub struct AwsSettings {
    /// The region of keys whose name says none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The service's URL for keys whose name says none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The profile in the shared configuration files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// The service's certificate authorities, a PEM file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// One server with a transit engine.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct TransitSettings {
    /// The server's certificate authorities, a PEM file; needed for https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// `X-Vault-Namespace`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// How to be let in.
    pub login: TransitLogin,
}

/// How the server knows us.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum TransitLogin {
    /// A file with a token, as an agent keeps it.
    TokenFile(PathBuf),
    /// The AppRole method: a login, and a token of its own, for every call.
    AppRole(AppRole),
}

/// Where the two halves of an AppRole are.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct AppRole {
    /// Where the method is mounted, usually `approle`.
    pub mount: String,
    /// A file with the role id.
    pub role_id_file: PathBuf,
    /// A file with the secret id.
    pub secret_id_file: PathBuf,
}

/// One PKCS#11 module.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct Pkcs11Settings {
    /// A file with the user PIN; a key's own `pin-source` comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_file: Option<PathBuf>,
    /// What the module reads from its environment, `SOFTHSM2_CONF` for example. Nothing secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// One program.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct ExecSettings {
    /// Its environment, besides PATH. Nothing secret.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}
