//! Where things are: the pool and the runtime directory, from the command line, the environment, or who runs this.

use std::env;
use std::path::PathBuf;
use std::sync::Arc;

use sealblk_control::{AccountId, ControlError, PoolDirectory, RuntimeDir};
use sealblk_kms::PassphraseSource;

use crate::args::Global;
use crate::exit::Failure;
use crate::passphrase::PassphraseInput;

/// The directories a command works in.
pub(crate) struct Place {
    /// The pool's directory.
    pub(crate) pool: PathBuf,
    /// On whose behalf the command acts; `None`: the pool's own account.
    pub(crate) account: Option<AccountId>,
    /// Where sockets are made.
    pub(crate) runtime: RuntimeDir,
    /// Where the key store's passphrase is, if it has one.
    pub(crate) passphrase: PassphraseInput,
    /// The same as the key service asks for it: once, when it is first needed.
    pub(crate) source: Arc<PassphraseSource>,
    /// The service manager's credentials.
    pub(crate) credentials: Option<PathBuf>,
}

/// What the environment says; gathered once, so that the choice itself is a pure function.
struct Surroundings {
    root: bool,
    pool: Option<PathBuf>,
    data_home: Option<PathBuf>,
    home: Option<PathBuf>,
    runtime_home: Option<PathBuf>,
}

impl Place {
    /// The directories for these options in this environment.
    pub(crate) fn find(global: &Global) -> Result<Self, Failure> {
        let variable = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        // The XDG specification: a relative path in these variables is to be ignored.
        let absolute = |name| variable(name).filter(|path| path.is_absolute());
        let surroundings = Surroundings {
            root: rustix::process::geteuid().is_root(),
            pool: variable("SEALBLK_POOL"),
            data_home: absolute("XDG_DATA_HOME"),
            home: absolute("HOME"),
            runtime_home: absolute("XDG_RUNTIME_DIR"),
        };
        let (pool, runtime) = choose(global.pool.clone(), global.runtime_dir.clone(), surroundings)
            .ok_or_else(|| Failure::usage("no pool: give --pool DIR, or set SEALBLK_POOL or HOME"))?;
        // A serving process and its clients may have other working directories.
        let pool = std::path::absolute(pool).map_err(|e| Failure::usage(format!("--pool: {e}")))?;
        let runtime =
            std::path::absolute(runtime).map_err(|e| Failure::usage(format!("--runtime-dir: {e}")))?;
        let account = global.account.as_deref().map(str::parse).transpose().map_err(ControlError::from)?;
        let passphrase = PassphraseInput::of(global.passphrase_fd, global.passphrase_file.as_deref());
        let asked = passphrase.clone();
        Ok(Self {
            pool,
            account,
            runtime: RuntimeDir::new(runtime),
            passphrase,
            source: Arc::new(PassphraseSource::new(move || asked.existing())),
            credentials: absolute("CREDENTIALS_DIRECTORY"),
        })
    }

    /// The pool, made if there is none, as the account that was asked for uses it.
    pub(crate) fn open_pool(&self) -> Result<PoolDirectory, ControlError> {
        let pool = PoolDirectory::open_or_create(&self.pool)?;
        self.account.clone().map_or(Ok(pool.clone()), |account| pool.acting_as(account))
    }
}

/// The pool's directory and the runtime directory.
fn choose(pool: Option<PathBuf>, runtime: Option<PathBuf>, here: Surroundings) -> Option<(PathBuf, PathBuf)> {
    let pool = pool.or(here.pool).or_else(|| {
        if here.root {
            return Some(PathBuf::from("/var/lib/sealblk"));
        }
        let data = here.data_home.or_else(|| Some(here.home?.join(".local/share")))?;
        Some(data.join("sealblk"))
    })?;
    let runtime = runtime
        .or_else(|| here.root.then(|| PathBuf::from("/run/sealblk")))
        .or_else(|| Some(here.runtime_home?.join("sealblk")))
        .unwrap_or_else(|| pool.join("run"));
    Some((pool, runtime))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(root: bool) -> Surroundings {
        Surroundings { root, pool: None, data_home: None, home: Some("/home/u".into()), runtime_home: None }
    }

    fn chosen(pool: Option<&str>, here: Surroundings) -> (String, String) {
        let (pool, runtime) = choose(pool.map(PathBuf::from), None, here).expect("a place");
        (pool.display().to_string(), runtime.display().to_string())
    }

    #[test]
    fn root_and_users_have_their_usual_places() {
        assert_eq!(chosen(None, surroundings(true)), ("/var/lib/sealblk".into(), "/run/sealblk".into()));
        let user = ("/home/u/.local/share/sealblk".into(), "/home/u/.local/share/sealblk/run".into());
        assert_eq!(chosen(None, surroundings(false)), user);
        let here = Surroundings {
            data_home: Some("/data".into()),
            runtime_home: Some("/run/user/1".into()),
            ..surroundings(false)
        };
        assert_eq!(chosen(None, here), ("/data/sealblk".into(), "/run/user/1/sealblk".into()));
    }

    #[test]
    fn the_option_comes_before_the_environment_and_that_before_the_default() {
        let here = || Surroundings { pool: Some("/env".into()), ..surroundings(true) };
        assert_eq!(chosen(Some("/given"), here()).0, "/given");
        assert_eq!(chosen(None, here()).0, "/env");
    }

    #[test]
    fn without_a_home_there_is_no_place_to_guess() {
        assert!(choose(None, None, Surroundings { home: None, ..surroundings(false) }).is_none());
    }
}
