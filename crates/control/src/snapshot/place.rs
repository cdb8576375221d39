//! Where a pool's snapshots are: a directory, or a prefix of an S3-compatible bucket.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use sealblk_snapshot::{Location, Repository, SnapshotError, StoreOptions};
use sealblk_volume::SnapshotRepository;
use serde::{Deserialize, Serialize};

use crate::error::ControlError;
use crate::pool::PoolDirectory;

/// Options that say nothing secret: those that may be typed, and stored.
const OPTIONS: [&str; 5] =
    ["endpoint", "region", "allow_http", "virtual_hosted_style_request", RETRY_SECONDS];
/// How long a store that does not answer is asked again.
const RETRY_SECONDS: &str = "retry_seconds";

/// What a directory has that is a repository.
const REPOSITORY: &str = "repository.json";

/// A repository by its name: what can be written down. Credentials are never a part of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
pub struct RepositoryName {
    /// An absolute path, or `s3://BUCKET/PREFIX`.
    pub location: String,
    /// How its store is reached: `endpoint`, `region`, `allow_http`, `virtual_hosted_style_request`, `retry_seconds`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

impl From<&SnapshotRepository> for RepositoryName {
    fn from(recorded: &SnapshotRepository) -> Self {
        Self { location: recorded.location.clone(), options: recorded.options.clone() }
    }
}

impl From<&RepositoryName> for SnapshotRepository {
    fn from(name: &RepositoryName) -> Self {
        Self { location: name.location.clone(), options: name.options.clone() }
    }
}

/// A repository that is not open yet.
#[derive(Clone, Debug)]
pub struct RepositoryPlace {
    location: Location,
    options: StoreOptions,
    /// `None`: the pool's own.
    name: Option<RepositoryName>,
}

impl RepositoryPlace {
    /// The pool's own: a directory beside its volumes.
    pub fn own(pool: &PoolDirectory) -> Self {
        Self { location: Location::Directory(pool.snapshots()), options: StoreOptions::default(), name: None }
    }

    /// The one of this name, reached with the credentials in `credentials` ([`StoreOptions::with_environment`]); what the
    /// name says of endpoint and region comes before what they say.
    ///
    /// # Errors
    /// `InvalidParameterValue`: not a location, a path that is not absolute, or an option that there is not.
    pub fn named(name: RepositoryName, credentials: StoreOptions) -> Result<Self, ControlError> {
        let (location, mut options) = (name.location.parse()?, credentials);
        if let Location::Directory(path) = &location
            && !path.is_absolute()
        {
            return Err(invalid(format!("\"{}\" is not an absolute path", name.location.escape_debug())));
        }
        for (option, value) in &name.options {
            match option.as_str() {
                RETRY_SECONDS => options.retry_for = Some(seconds(value)?),
                // The values of these are checked by nobody else before a request is made.
                "allow_http" | "virtual_hosted_style_request" if !["true", "false"].contains(&&**value) => {
                    return Err(invalid(format!("{option} is true or false")));
                }
                known if OPTIONS.contains(&known) => options.set(known, value)?,
                other => {
                    let (other, known) = (other.escape_debug(), OPTIONS.join(", "));
                    return Err(invalid(format!("\"{other}\" is no repository option; there are {known}")));
                }
            }
        }
        Ok(Self { location, options, name: Some(name) })
    }

    /// What another pool can find it by, also if it is this pool's own.
    pub(crate) fn name_for_others(&self) -> RepositoryName {
        let own = || RepositoryName { location: self.location.to_string(), options: BTreeMap::new() };
        self.name.clone().unwrap_or_else(own)
    }

    /// Where it is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// What it can be found by again; `None`: it is the pool's own.
    pub fn name(&self) -> Option<&RepositoryName> {
        self.name.as_ref()
    }

    /// The same, which gives up on a store that does not answer after `patience` at the latest.
    pub(crate) fn within(mut self, patience: Duration) -> Self {
        self.options.retry_for = Some(self.options.retry_for.map_or(patience, |asked| asked.min(patience)));
        self
    }

    /// Opens it to look at what is there; `None`: it is the pool's own, and there was never a snapshot. One elsewhere that is not
    /// there is an error: it may be a file system that is not mounted.
    pub(crate) async fn open_to_look(&self) -> Result<Option<Repository>, ControlError> {
        if let Location::Directory(path) = &self.location
            && !path.join(REPOSITORY).exists()
        {
            let missing = || SnapshotError::Local {
                step: "list the snapshots in",
                path: path.display().to_string(),
                source: io::Error::new(io::ErrorKind::NotFound, "there is no repository"),
            };
            return self.name.as_ref().map_or(Ok(None), |_| Err(missing().into()));
        }
        self.open().await.map(Some)
    }

    /// Opens it, and makes an empty one if there is none. In a runtime with I/O and time.
    pub(crate) async fn open(&self) -> Result<Repository, ControlError> {
        Ok(Repository::open(&self.location, &self.options).await?)
    }
}

fn seconds(text: &str) -> Result<Duration, ControlError> {
    let seconds = text.parse().ok().filter(|seconds| (1..=86_400).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(|| invalid(format!("{RETRY_SECONDS} is 1 to 86400")))
}

fn invalid(reason: String) -> ControlError {
    SnapshotError::Location { reason }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(location: &str, options: &[(&str, &str)]) -> RepositoryName {
        let options = options.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        RepositoryName { location: location.to_owned(), options }
    }

    #[test]
    fn a_repository_is_named_by_a_location_and_options_that_are_no_secrets() {
        let all = [("endpoint", "https://s3.example"), ("allow_http", "true"), ("retry_seconds", "5")];
        let s3 = name("s3://bucket/prefix", &all);
        let place = RepositoryPlace::named(s3.clone(), StoreOptions::default()).expect("a place");
        assert_eq!((place.name(), place.options.retry_for), (Some(&s3), Some(Duration::from_secs(5))));
        for wrong in [
            name("snapshots", &[]),
            name("gs://bucket", &[]),
            name("/srv", &[("secret_access_key", "x")]),
            name("/srv", &[("retry_seconds", "0")]),
            name("/srv", &[("allow_http", "yes")]),
        ] {
            let error = RepositoryPlace::named(wrong.clone(), StoreOptions::default());
            assert_eq!(error.expect_err("refused").code(), "InvalidParameterValue", "{wrong:?}");
        }
    }
}
