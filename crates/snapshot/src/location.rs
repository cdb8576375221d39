//! Where a repository is, and how its store is reached: a local directory or an S3-compatible bucket.
//!
//! This module reads no environment and no file of credentials: the caller hands in what it found. TLS is rustls on
//! ring; [`StoreOptions`] knows the names of the AWS tools.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::local::LocalFileSystem;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, RetryConfig};

use crate::error::SnapshotError;
use crate::exclusion::Exclusion;

/// Where a repository is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Location {
    /// A directory of this machine.
    Directory(PathBuf),
    /// A bucket of an S3-compatible store, and what all names in it begin with.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix, without slashes at its ends; may be empty.
        prefix: String,
    },
}

impl FromStr for Location {
    type Err = SnapshotError;

    /// `s3://bucket` or `s3://bucket/prefix`; anything else without a scheme is a directory.
    fn from_str(text: &str) -> Result<Self, SnapshotError> {
        let wrong = |reason: &str| {
            Err(SnapshotError::Location { reason: format!("\"{}\": {reason}", text.escape_debug()) })
        };
        match text.split_once("://") {
            None if text.is_empty() => wrong("a repository is a directory or s3://BUCKET/PREFIX"),
            None => Ok(Self::Directory(text.into())),
            Some(("s3", rest)) => {
                let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
                let usual = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
                if bucket.is_empty() || !bucket.chars().all(usual) {
                    return wrong("a bucket's name has letters, digits, dots and dashes");
                }
                let prefix = prefix.trim_matches('/');
                if object_store::path::Path::parse(prefix).is_err() {
                    return wrong("the prefix has an empty or a relative part");
                }
                Ok(Self::S3 { bucket: bucket.to_owned(), prefix: prefix.to_owned() })
            }
            Some(_) => wrong("a repository is a directory or s3://BUCKET/PREFIX"),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "{}", path.display()),
            Self::S3 { bucket, prefix } if prefix.is_empty() => write!(f, "s3://{bucket}"),
            Self::S3 { bucket, prefix } => write!(f, "s3://{bucket}/{prefix}"),
        }
    }
}

/// How an S3-compatible store is reached: endpoint, region, credentials. A directory needs none of it.
#[derive(Clone, Default)]
pub struct StoreOptions {
    options: Vec<(AmazonS3ConfigKey, String)>,
    /// How long a request is tried again while the store does not answer, or says that it cannot; none: 3 minutes.
    pub retry_for: Option<Duration>,
}

impl fmt::Debug for StoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Values may be secrets.
        let names = self.options.iter().map(|(key, _)| key.as_ref().to_owned());
        f.debug_struct("StoreOptions").field("options", &names.collect::<Vec<_>>()).finish_non_exhaustive()
    }
}

impl StoreOptions {
    /// Takes from an environment what concerns S3: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN`,
    /// `AWS_REGION`, `AWS_DEFAULT_REGION`, `AWS_ENDPOINT_URL`, `AWS_ENDPOINT_URL_S3`, `AWS_ALLOW_HTTP`, and those that containers and
    /// web identities use. The rest is ignored, other `AWS_` names too.
    #[must_use]
    pub fn with_environment(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        for (name, value) in variables {
            if !name.starts_with("AWS_") {
                continue;
            }
            if let Ok(key) = name.to_ascii_lowercase().parse() {
                self.options.push((key, value));
            }
        }
        self
    }

    /// Sets one option, over any of the same name before: `endpoint`, `region`, `allow_http`,
    /// `virtual_hosted_style_request`, `access_key_id`…
    ///
    /// # Errors
    /// [`SnapshotError::Location`]: there is no such option. The value is checked when the repository is opened.
    pub fn set(&mut self, name: &str, value: impl Into<String>) -> Result<(), SnapshotError> {
        let key = name.parse().map_err(|_| SnapshotError::Location {
            reason: format!("there is no repository option \"{}\"", name.escape_debug()),
        })?;
        self.options.push((key, value.into()));
        Ok(())
    }
}

/// A store, and how its small records are changed by one process at a time.
pub(crate) async fn connect(
    location: &Location,
    options: &StoreOptions,
) -> Result<(Arc<dyn ObjectStore>, Exclusion), SnapshotError> {
    match location {
        Location::Directory(path) => {
            let path = path.clone();
            let prepared = tokio::task::spawn_blocking(move || directory(&path)).await;
            prepared.expect("preparing a directory does not panic")
        }
        Location::S3 { bucket, prefix } => Ok((s3(bucket, prefix, options)?, Exclusion::Versions)),
    }
}

/// The directories that hold objects. Each has a file that is none, so that removing the last object of a kind and
/// writing the next never meet over an empty directory.
const DIRECTORIES: [&str; 4] = ["blocks", "pages", "snapshots", "holds"];
const KEEP: &str = ".keep";

fn directory(path: &Path) -> Result<(Arc<dyn ObjectStore>, Exclusion), SnapshotError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let local = |step, path: &Path| {
        let path = path.display().to_string();
        move |source| SnapshotError::Local { step, path, source }
    };
    let mut builder = std::fs::DirBuilder::new();
    // Snapshots of unencrypted volumes are plaintext: nobody else's business.
    builder.recursive(true).mode(0o700);
    for name in DIRECTORIES {
        let kind = path.join(name);
        builder.create(&kind).map_err(local("create the directory", &kind))?;
        let keep = kind.join(KEEP);
        if !keep.exists() {
            std::fs::write(&keep, b"").map_err(local("create", &keep))?;
        }
    }
    let store = LocalFileSystem::new_with_prefix(path).map_err(|source| SnapshotError::Location {
        reason: format!("{} cannot hold a repository: {source}", path.display()),
    })?;
    // Without fsync a reply would promise what a power failure takes back.
    let store = store.with_fsync(true).with_automatic_cleanup(true);
    Ok((Arc::new(store), Exclusion::Lock(path.join("lock"))))
}

fn s3(bucket: &str, prefix: &str, options: &StoreOptions) -> Result<Arc<dyn ObjectStore>, SnapshotError> {
    install_crypto_provider();
    let mut builder = AmazonS3Builder::new();
    for (key, value) in &options.options {
        builder = builder.with_config(*key, value);
    }
    let mut retry = RetryConfig::default();
    if let Some(retry_for) = options.retry_for {
        retry.retry_timeout = retry_for;
    }
    // What bounds the retries is the time.
    retry.max_retries = 1000;
    retry.backoff.max_backoff = Duration::from_secs(5);
    let store = builder.with_bucket_name(bucket).with_retry(retry).build().map_err(|source| {
        SnapshotError::Location { reason: format!("s3://{bucket} cannot be reached: {source}") }
    })?;
    if prefix.is_empty() {
        return Ok(Arc::new(store));
    }
    Ok(Arc::new(PrefixStore::new(store, prefix)))
}

/// Makes ring the process' TLS provider, unless somebody chose one: reqwest is built without one of its own.
fn install_crypto_provider() {
    // An error means that one is installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repository_is_a_directory_or_a_bucket() {
        let parsed = |text: &str| text.parse::<Location>();
        let s3 = |bucket: &str, prefix: &str| Location::S3 { bucket: bucket.into(), prefix: prefix.into() };
        assert_eq!(parsed("/srv/a b").expect("a path"), Location::Directory("/srv/a b".into()));
        assert_eq!(parsed("s3://bucket").expect("s3"), s3("bucket", ""));
        assert_eq!(parsed("s3://bucket/a/b/").expect("s3"), s3("bucket", "a/b"));
        assert_eq!(s3("bucket", "a/b").to_string(), "s3://bucket/a/b");
        for wrong in ["", "s3://", "s3:///x", "s3://b/a//b", "s3://b/../c", "gs://bucket", "s3://b?x"] {
            assert!(parsed(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn options_never_show_their_values() {
        let mut options = StoreOptions::default().with_environment([
            ("AWS_SECRET_ACCESS_KEY".to_owned(), "hush-1".to_owned()),
            ("AWS_PROFILE".to_owned(), "ignored".to_owned()),
            ("HOME".to_owned(), "ignored".to_owned()),
        ]);
        options.set("endpoint", "https://user:hush-2@host").expect("known");
        assert!(options.set("endpiont", "x").is_err());
        let shown = format!("{options:?}");
        assert!(!shown.contains("hush") && shown.contains("aws_secret_access_key"), "{shown}");
    }
}
