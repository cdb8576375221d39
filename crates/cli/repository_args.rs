//! Where snapshots are: what can be typed, what the environment and the settings say, in this order.

use std::env;

use clap::Args;
use sealblk_control::{PoolDirectory, RepositoryName, RepositoryPlace, StoreOptions};

use crate::exit::Failure;

/// The environment's word.
const VARIABLE: &str = "SEALBLK_REPOSITORY";

/// The options of commands that use snapshots.
#[derive(Args, Default)]
pub(crate) struct RepositoryArgs {
    /// Where the snapshots are: a directory, or s3://BUCKET/PREFIX [default: $SEALBLK_REPOSITORY, else what `settings
    /// repository` says, else in the pool]
    #[arg(long, value_name = "DIR|S3")]
    pub(crate) repository: Option<String>,
    /// How the store is reached: endpoint, region, allow_http, virtual_hosted_style_request or retry_seconds; goes before
    /// the AWS_ variables of the environment, where the credentials are; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_option)]
    pub(crate) repository_option: Vec<(String, String)>,
}

/// A repository that is named and cannot be left out.
#[derive(Args)]
pub(crate) struct NamedRepository {
    /// A directory, or s3://BUCKET/PREFIX
    #[arg(value_name = "DIR|S3")]
    location: String,
    /// How the store is reached: endpoint, region, allow_http, virtual_hosted_style_request or retry_seconds; never a
    /// secret; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = parse_option)]
    repository_option: Vec<(String, String)>,
}

impl RepositoryArgs {
    /// The repository that is meant. The environment is read here and nowhere else.
    pub(crate) fn place(&self, directory: &PoolDirectory) -> Result<RepositoryPlace, Failure> {
        let variable = env::var(VARIABLE).ok().filter(|value| !value.is_empty());
        let settings = directory.of_region().settings()?;
        let named = match self.repository.as_ref().or(variable.as_ref()) {
            Some(location) => Some(RepositoryName { location: absolute(location)?, options: [].into() }),
            None => settings.snapshot_repository().cloned(),
        };
        let Some(mut name) = named else {
            if let Some((option, _)) = self.repository_option.first() {
                let text =
                    format!("--repository-option {option}: the snapshots are in the pool's own directory");
                return Err(Failure::usage(text));
            }
            return Ok(RepositoryPlace::own(directory));
        };
        name.options.extend(self.repository_option.iter().cloned());
        Ok(RepositoryPlace::named(name, credentials())?)
    }
}

impl NamedRepository {
    /// The repository that is meant, for the settings.
    pub(crate) fn place(&self) -> Result<RepositoryPlace, Failure> {
        let options = self.repository_option.iter().cloned().collect();
        let name = RepositoryName { location: absolute(&self.location)?, options };
        Ok(RepositoryPlace::named(name, credentials())?)
    }
}

/// What the environment says about S3, credentials among it.
pub(crate) fn credentials() -> StoreOptions {
    let variables = env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
    let about_s3 = variables.filter(|(name, _)| name.starts_with("AWS_"));
    StoreOptions::default()
        .with_environment(about_s3.filter_map(|(name, value)| Some((name, value.into_string().ok()?))))
}

/// A directory is the same for who runs elsewhere; anything with a scheme is left as it is.
fn absolute(location: &str) -> Result<String, Failure> {
    if location.contains("://") || location.is_empty() {
        return Ok(location.to_owned());
    }
    let path = std::path::absolute(location)?;
    let text = path.into_os_string().into_string();
    text.map_err(|_| Failure::usage("the repository's path is not text"))
}

/// Reads one option of a repository.
pub(crate) fn parse_option(text: &str) -> Result<(String, String), String> {
    let (name, value) =
        text.split_once('=').ok_or("NAME=VALUE, endpoint=https://s3.example.com for example")?;
    Ok((name.to_owned(), value.to_owned()))
}
