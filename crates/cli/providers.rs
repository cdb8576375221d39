//! `sealblk kms …`: which key services besides the embedded store the pool may use, and how.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use sealblk_control::PoolDirectory;
use sealblk_kms::{
    AppRole, AwsSettings, ExecSettings, Pkcs11Settings, Providers, TransitLogin, TransitSettings,
    parse_address,
};

use crate::exit::Failure;
use crate::output::{Output, fields};
use crate::place::Place;

/// `sealblk kms …`
#[derive(Subcommand)]
pub(crate) enum KmsCommand {
    /// Show which key services the pool may use besides its own key store, and how
    #[command(after_help = "\
Examples:
  sealblk kms show
  sealblk kms show --output json | jq '.Transit | keys'")]
    Show,
    /// Let the pool use a key service, or change how; secrets stay in the files that are named
    #[command(subcommand)]
    Configure(ConfigureCommand),
    /// Stop using a key service; volumes under its keys can no longer be attached
    #[command(subcommand)]
    Remove(RemoveCommand),
}

/// `sealblk kms configure …`
#[derive(Subcommand)]
pub(crate) enum ConfigureCommand {
    /// The transit engine of OpenBao or Vault: keys transit:https://HOST:PORT/MOUNT/keys/NAME
    #[command(after_help = "\
Examples:
  sealblk kms configure transit --address https://vault.example:8200 --ca-file /etc/sealblk/ca.pem \\
      --token-file /run/vault-agent/token
  sealblk kms configure transit --address https://vault.example:8200 --ca-file /etc/sealblk/ca.pem \\
      --role-id-file /etc/sealblk/role-id --secret-id-file /etc/sealblk/secret-id")]
    Transit(TransitArgs),
    /// A PKCS#11 module: keys pkcs11:token=TOKEN;object=KEY
    #[command(after_help = "\
Examples:
  sealblk kms configure pkcs11 --module /usr/lib/softhsm/libsofthsm2.so --pin-file /etc/sealblk/pin
  sealblk kms configure pkcs11 --module /usr/lib/hsm.so --pin-file /etc/sealblk/pin --environment HSM_CONF=/etc/hsm.conf")]
    Pkcs11 {
        /// The module's shared library
        #[arg(long, value_name = "PATH")]
        module: PathBuf,
        /// A file with the user PIN
        #[arg(long, value_name = "PATH")]
        pin_file: Option<PathBuf>,
        /// What the module reads from its environment; nothing secret; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
        environment: Vec<(String, String)>,
    },
    /// A program that wraps keys: keys exec:/PATH/TO/PROGRAM?key=KEY
    #[command(after_help = "\
Examples:
  sealblk kms configure exec --program /usr/local/libexec/wrap-with-hsm")]
    Exec {
        /// The program
        #[arg(long, value_name = "PATH")]
        program: PathBuf,
        /// Its environment, besides PATH; nothing secret; may be given several times
        #[arg(long, value_name = "NAME=VALUE", value_parser = parse_setting)]
        environment: Vec<(String, String)>,
    },
    /// AWS KMS, where the usual AWS settings are not enough: keys aws-kms:arn:aws:kms:…
    #[command(after_help = "\
Examples:
  sealblk kms configure aws --region eu-central-1 --profile volumes")]
    Aws {
        /// The region of keys whose name says none
        #[arg(long)]
        region: Option<String>,
        /// The service's URL
        #[arg(long, value_name = "URL")]
        endpoint: Option<String>,
        /// The profile in the shared AWS configuration files
        #[arg(long)]
        profile: Option<String>,
        /// The service's certificate authorities, a PEM file
        #[arg(long, value_name = "PATH")]
        ca_file: Option<PathBuf>,
    },
    /// How long to wait for any key service
    #[command(after_help = "\
Examples:
  sealblk kms configure patience --timeout 5 --deadline 30")]
    Patience {
        /// For one attempt, in seconds, up to 300
        #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
        timeout: Option<Duration>,
        /// For all attempts of a call together, in seconds; 0: one attempt
        #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
        deadline: Option<Duration>,
    },
}

/// `sealblk kms configure transit …`
#[derive(Args)]
pub(crate) struct TransitArgs {
    /// The server: https://HOST:PORT; http for a loopback address only
    #[arg(long, value_name = "URL")]
    address: String,
    /// The server's certificate authorities, a PEM file; needed for https
    #[arg(long, value_name = "PATH")]
    ca_file: Option<PathBuf>,
    /// The namespace, where the server has them
    #[arg(long)]
    namespace: Option<String>,
    /// A file with a token
    #[arg(
        long,
        value_name = "PATH",
        required_unless_present = "role_id_file",
        conflicts_with = "role_id_file"
    )]
    token_file: Option<PathBuf>,
    /// A file with the role id of an AppRole
    #[arg(long, value_name = "PATH", requires = "secret_id_file")]
    role_id_file: Option<PathBuf>,
    /// A file with the secret id of the AppRole
    #[arg(long, value_name = "PATH", requires = "role_id_file")]
    secret_id_file: Option<PathBuf>,
    /// Where the AppRole method is mounted
    #[arg(long, value_name = "MOUNT", default_value = "approle", requires = "role_id_file")]
    approle_mount: String,
}

/// `sealblk kms remove …`
#[derive(Subcommand)]
pub(crate) enum RemoveCommand {
    /// A server with a transit engine
    #[command(after_help = "\
Examples:
  sealblk kms remove transit https://vault.example:8200")]
    Transit {
        /// Its address
        address: String,
    },
    /// A PKCS#11 module
    #[command(after_help = "\
Examples:
  sealblk kms remove pkcs11 /usr/lib/softhsm/libsofthsm2.so")]
    Pkcs11 {
        /// The module's shared library
        module: PathBuf,
    },
    /// A program
    #[command(after_help = "\
Examples:
  sealblk kms remove exec /usr/local/libexec/wrap-with-hsm")]
    Exec {
        /// The program
        program: PathBuf,
    },
    /// What was set for AWS KMS
    #[command(after_help = "\
Examples:
  sealblk kms remove aws")]
    Aws,
}

/// Does what `sealblk kms` was asked for.
pub(crate) fn run(command: KmsCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    let pool = place.open_pool()?;
    let providers = match command {
        KmsCommand::Show => pool.load_key_providers()?,
        KmsCommand::Configure(command) => {
            let change = configuration(command)?;
            pool.change_key_providers(change)?
        }
        KmsCommand::Remove(command) => remove(&pool, command)?,
    };
    Ok(output.result(&providers, || show(&providers))?)
}

type Change = Box<dyn FnOnce(&mut Providers)>;

fn configuration(command: ConfigureCommand) -> Result<Change, Failure> {
    Ok(match command {
        ConfigureCommand::Transit(args) => {
            let (address, settings) = transit(args)?;
            Box::new(move |providers| drop(providers.transit.insert(address, settings)))
        }
        ConfigureCommand::Pkcs11 { module, pin_file, environment } => {
            let module = absolute(&module)?;
            let pin_file = pin_file.as_deref().map(absolute).transpose()?;
            let settings = Pkcs11Settings { pin_file, environment: environment.into_iter().collect() };
            Box::new(move |providers| drop(providers.pkcs11.insert(module, settings)))
        }
        ConfigureCommand::Exec { program, environment } => {
            let program = absolute(&program)?;
            let settings = ExecSettings { environment: environment.into_iter().collect() };
            Box::new(move |providers| drop(providers.exec.insert(program, settings)))
        }
        ConfigureCommand::Aws { region, endpoint, profile, ca_file } => {
            let ca_file = ca_file.as_deref().map(absolute).transpose()?;
            let settings = AwsSettings { region, endpoint, profile, ca_file };
            Box::new(move |providers| providers.aws_kms = Some(settings))
        }
        ConfigureCommand::Patience { timeout, deadline } => {
            let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
            if timeout.is_some_and(|time| time.is_zero() || time > Duration::from_secs(300)) {
                return Err(Failure::usage("--timeout is more than 0 and up to 300 seconds"));
            }
            Box::new(move |providers| {
                let patience = &mut providers.patience;
                patience.timeout_ms = timeout.map_or(patience.timeout_ms, milliseconds);
                patience.deadline_ms = deadline.map_or(patience.deadline_ms, milliseconds);
            })
        }
    })
}

fn transit(args: TransitArgs) -> Result<(String, TransitSettings), Failure> {
    let address =
        parse_address(&args.address).map_err(|error| Failure::usage(format!("--address: {error}")))?;
    let ca_file = args.ca_file.as_deref().map(absolute).transpose()?;
    if ca_file.is_none() && address.starts_with("https:") {
        return Err(Failure::usage(
            "--ca-file is needed for https: only the authorities that it names are trusted",
        ));
    }
    let login = match (args.token_file, args.role_id_file, args.secret_id_file) {
        (Some(file), ..) => TransitLogin::TokenFile(absolute(&file)?),
        (None, Some(role), Some(secret)) => TransitLogin::AppRole(AppRole {
            mount: args.approle_mount,
            role_id_file: absolute(&role)?,
            secret_id_file: absolute(&secret)?,
        }),
        _ => return Err(Failure::usage("--token-file, or --role-id-file and --secret-id-file")),
    };
    Ok((address, TransitSettings { ca_file, namespace: args.namespace, login }))
}

fn remove(pool: &PoolDirectory, command: RemoveCommand) -> Result<Providers, Failure> {
    let mut removed = false;
    let providers = pool.change_key_providers(|providers| {
        removed = match &command {
            RemoveCommand::Transit { address } => {
                let canonical = parse_address(address).unwrap_or_else(|_| address.clone());
                providers.transit.remove(&canonical).is_some()
            }
            RemoveCommand::Pkcs11 { module } => providers.pkcs11.remove(module).is_some(),
            RemoveCommand::Exec { program } => providers.exec.remove(program).is_some(),
            RemoveCommand::Aws => providers.aws_kms.take().is_some(),
        }
    })?;
    if removed {
        Ok(providers)
    } else {
        Err(Failure::usage("the pool does not use this; see: sealblk kms show"))
    }
}

fn show(providers: &Providers) -> String {
    let of = |environment: &BTreeMap<String, String>| {
        environment.iter().map(|(name, value)| format!(", {name}={value}")).collect::<String>()
    };
    let patience = &providers.patience;
    let mut rows = vec![(
        "Patience".to_owned(),
        format!("{} ms an attempt, {} ms in all", patience.timeout_ms, patience.deadline_ms),
    )];
    for (address, settings) in &providers.transit {
        let login = match &settings.login {
            TransitLogin::TokenFile(path) => format!("token in {}", path.display()),
            TransitLogin::AppRole(role) => format!("AppRole at {}", role.mount),
        };
        rows.push((format!("transit:{address}"), login));
    }
    for (module, settings) in &providers.pkcs11 {
        let pin = settings
            .pin_file
            .as_ref()
            .map_or("no PIN".to_owned(), |path| format!("PIN in {}", path.display()));
        rows.push((format!("pkcs11: {}", module.display()), format!("{pin}{}", of(&settings.environment))));
    }
    for (program, settings) in &providers.exec {
        rows.push((format!("exec:{}", program.display()), format!("to be run{}", of(&settings.environment))));
    }
    if let Some(aws) = &providers.aws_kms {
        let settings = [("region", &aws.region), ("endpoint", &aws.endpoint), ("profile", &aws.profile)];
        let set = settings.iter().filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)));
        rows.push(("aws-kms".to_owned(), set.collect::<Vec<_>>().join(", ")));
    }
    let rows: Vec<(&str, String)> = rows.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
    fields(&rows)
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|source| Failure::file("cannot name", path, source))
}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("NAME=VALUE".to_owned()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "a number of seconds, not negative".to_owned())
}
