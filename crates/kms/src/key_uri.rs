//! How a key of any provider is named: the text that `--kms-key-id` takes and a volume's record keeps.
//!
//! | form | provider |
//! |---|---|
//! | `ID`, `arn:aws:kms:…`, `alias/NAME`, each also after `local:` | the embedded key store |
//! | `aws-kms:ID-ARN-OR-ALIAS[?region=R&endpoint=URL]` | AWS KMS |
//! | `transit:https://HOST[:PORT]/MOUNT/keys/NAME` | the transit engine of OpenBao or Vault |
//! | `pkcs11:token=T;object=O;id=%01?module-path=PATH` | a PKCS#11 token (RFC 7512) |
//! | `exec:/PATH/TO/PROGRAM?key=KEY` | an external program |
//!
//! This is only the grammar. Whether a provider may be used at all is `providers`' question, whether the key exists
//! the provider's.

use std::fmt;
use std::path::PathBuf;

use crate::pkcs11::uri::Pkcs11Uri;

/// The longest reference, in bytes: what KMS takes for a KeyId.
const REFERENCE_BYTES_MAX: usize = 2048;

/// A key's name, parsed. `Display` gives the canonical form, which parses to the same value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyUri {
    /// In the embedded key store: id, ARN, alias name or alias ARN, as that store parses it.
    Local(String),
    /// In AWS KMS.
    AwsKms(AwsKeyUri),
    /// In a transit engine.
    Transit(TransitUri),
    /// In a PKCS#11 token.
    Pkcs11(Pkcs11Uri),
    /// Behind a program.
    Exec(ExecUri),
}

/// `aws-kms:KEY[?region=R&endpoint=URL]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AwsKeyUri {
    /// Id, ARN, alias name or alias ARN: what AWS KMS takes as KeyId.
    pub key: String,
    /// The region, where neither the ARN nor the surroundings say it.
    pub region: Option<String>,
    /// The service's URL, if it is not AWS's own.
    pub endpoint: Option<String>,
}

/// `transit:https://HOST[:PORT]/MOUNT/keys/NAME`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TransitUri {
    /// `https://HOST[:PORT]`; `http` only to a loopback address.
    pub address: String,
    /// Where the engine is mounted; may have several segments.
    pub mount: String,
    /// The key's name.
    pub name: String,
}

/// `exec:/PATH?key=KEY`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExecUri {
    /// Absolute.
    pub program: PathBuf,
    /// What the program calls the key; opaque here.
    pub key: String,
}

/// Why a text names no key.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum KeyUriError {
    /// Empty, too long, or not printable ASCII.
    #[error("a key's name is 1 to {REFERENCE_BYTES_MAX} printable ASCII characters without spaces")]
    Text,
    /// No provider is called so.
    #[error(
        "no key provider is called '{0}': there are local, aws-kms, transit, pkcs11 and exec (docs/KMS.md)"
    )]
    UnknownProvider(String),
    /// Not this provider's form.
    #[error("expected {0}")]
    Shape(&'static str),
    /// A key or a PIN would be in the record, in listings and in the process table.
    #[error("{0} is refused: a secret is given by a file, never in a URI")]
    Secret(&'static str),
    /// The transit engine would get the token over a network in the clear.
    #[error("{0} is not encrypted: http is taken for a loopback address only")]
    Cleartext(String),
}

const AWS_SHAPE: &str = "aws-kms:KEY-ID, -ARN OR alias/NAME, then ?region=REGION&endpoint=URL if needed";
const TRANSIT_SHAPE: &str = "transit:https://HOST:PORT/MOUNT/keys/NAME";
const EXEC_SHAPE: &str = "exec:/PATH/TO/PROGRAM?key=KEY, the path absolute and without '?'";

impl KeyUri {
    /// Parses any of the forms. A name whose canonical form would be too long is refused too: that form is what is stored.
    pub fn parse(text: &str) -> Result<Self, KeyUriError> {
        let uri = Self::parse_form(text)?;
        if uri.to_string().len() > REFERENCE_BYTES_MAX { Err(KeyUriError::Text) } else { Ok(uri) }
    }

    fn parse_form(text: &str) -> Result<Self, KeyUriError> {
        if text.is_empty() || text.len() > REFERENCE_BYTES_MAX || !text.bytes().all(|c| c.is_ascii_graphic())
        {
            return Err(KeyUriError::Text);
        }
        match text.split_once(':') {
            Some(("local", key)) => Ok(Self::Local(key.to_owned())),
            Some(("aws-kms", rest)) => parse_aws(rest).map(Self::AwsKms),
            Some(("transit", rest)) => parse_transit(rest).map(Self::Transit),
            Some(("pkcs11", rest)) => Pkcs11Uri::parse(rest).map(Self::Pkcs11),
            Some(("exec", rest)) => parse_exec(rest).map(Self::Exec),
            // An alias may have a colon in it.
            Some((scheme, _)) if scheme != "arn" && !scheme.contains('/') => {
                Err(KeyUriError::UnknownProvider(scheme.to_owned()))
            }
            _ => Ok(Self::Local(text.to_owned())),
        }
    }
}

impl fmt::Display for KeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(key) => f.write_str(key),
            Self::AwsKms(uri) => write!(f, "{uri}"),
            Self::Transit(uri) => write!(f, "{uri}"),
            Self::Pkcs11(uri) => write!(f, "{uri}"),
            Self::Exec(uri) => write!(f, "{uri}"),
        }
    }
}

impl AwsKeyUri {
    /// The same service's key `arn`: what is stored once an alias has been looked up. An ARN names its region.
    pub fn resolved(&self, arn: &str) -> Self {
        Self { key: arn.to_owned(), region: None, endpoint: self.endpoint.clone() }
    }

    /// The region: the ARN's own, else the one given.
    pub fn region(&self) -> Option<&str> {
        let of_arn = self.key.strip_prefix("arn:").and_then(|rest| rest.split(':').nth(2));
        of_arn.filter(|region| !region.is_empty()).or(self.region.as_deref())
    }
}

impl fmt::Display for AwsKeyUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "aws-kms:{}", self.key)?;
        let region = self.region.as_ref().map(|region| format!("region={region}"));
        let endpoint = self.endpoint.as_ref().map(|endpoint| format!("endpoint={endpoint}"));
        for (separator, parameter) in ["?", "&"].iter().zip([region, endpoint].into_iter().flatten()) {
            write!(f, "{separator}{parameter}")?;
        }
        Ok(())
    }
}

impl TransitUri {
    /// The engine's API path for a verb on this key: `MOUNT/VERB/NAME`.
    pub fn path(&self, verb: &str) -> String {
        format!("{}/{verb}/{}", self.mount, self.name)
    }
}

impl fmt::Display for TransitUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transit:{}/{}", self.address, self.path("keys"))
    }
}

impl fmt::Display for ExecUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exec:{}?key={}", self.program.display(), self.key)
    }
}

fn parse_aws(rest: &str) -> Result<AwsKeyUri, KeyUriError> {
    let (key, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut uri = AwsKeyUri { key: key.to_owned(), region: None, endpoint: None };
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let place = match parameter.split_once('=') {
            Some(("region", value)) => (&mut uri.region, value),
            Some(("endpoint", value)) if is_http(value) => (&mut uri.endpoint, value),
            _ => return Err(KeyUriError::Shape(AWS_SHAPE)),
        };
        if place.1.is_empty() || place.0.replace(place.1.to_owned()).is_some() {
            return Err(KeyUriError::Shape(AWS_SHAPE));
        }
    }
    if key.is_empty() { Err(KeyUriError::Shape(AWS_SHAPE)) } else { Ok(uri) }
}

fn is_http(url: &str) -> bool {
    url.starts_with("https://") || url.starts_with("http://")
}

/// A transit server's address in canonical form: `https://HOST[:PORT]` without a trailing slash, host in lower case; `http`
/// only to this machine.
pub fn parse_address(text: &str) -> Result<String, KeyUriError> {
    let (scheme, authority) = text.split_once("://").ok_or(KeyUriError::Shape(TRANSIT_SHAPE))?;
    let authority = authority.trim_end_matches('/').to_ascii_lowercase();
    // No user and password: they would be in the record.
    let plain = |c: u8| c.is_ascii_alphanumeric() || b".-:[]_".contains(&c);
    if authority.is_empty() || !authority.bytes().all(plain) {
        return Err(KeyUriError::Shape(TRANSIT_SHAPE));
    }
    let address = format!("{scheme}://{authority}");
    match scheme {
        "https" => Ok(address),
        "http" if is_loopback(&authority) => Ok(address),
        "http" => Err(KeyUriError::Cleartext(address)),
        _ => Err(KeyUriError::Shape(TRANSIT_SHAPE)),
    }
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse_transit(rest: &str) -> Result<TransitUri, KeyUriError> {
    let shape = || KeyUriError::Shape(TRANSIT_SHAPE);
    let authority_at = rest.find("://").ok_or_else(shape)?.saturating_add("://".len());
    let path_at = rest.get(authority_at..).and_then(|rest| rest.find('/')).ok_or_else(shape)?;
    let (address, path) = rest.split_at_checked(authority_at.saturating_add(path_at)).ok_or_else(shape)?;
    let (mount, name) = path.trim_start_matches('/').rsplit_once("/keys/").ok_or_else(shape)?;
    // Nothing that would need escaping in a path, and no way up.
    let legal = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    let segment =
        |text: &str| !text.is_empty() && text.bytes().all(legal) && !text.bytes().all(|c| c == b'.');
    if !mount.split('/').all(segment) || !segment(name) {
        return Err(shape());
    }
    Ok(TransitUri { address: parse_address(address)?, mount: mount.to_owned(), name: name.to_owned() })
}

fn parse_exec(rest: &str) -> Result<ExecUri, KeyUriError> {
    let (program, query) = rest.split_once('?').ok_or(KeyUriError::Shape(EXEC_SHAPE))?;
    let key = query.strip_prefix("key=").filter(|key| !key.is_empty() && !key.contains('&'));
    match key {
        Some(key) if program.starts_with('/') => {
            Ok(ExecUri { program: PathBuf::from(program), key: key.to_owned() })
        }
        _ => Err(KeyUriError::Shape(EXEC_SHAPE)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ARN: &str = "arn:aws:kms:eu-central-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

    #[test]
    fn every_form_is_its_own_canonical_form() {
        for text in [
            ARN,
            "alias/aws/ebs",
            "alias/a:b",
            "1234abcd-12ab-34cd-56ef-1234567890ab",
            &format!("aws-kms:{ARN}"),
            "aws-kms:alias/x?region=eu-west-1&endpoint=http://127.0.0.1:5000",
            "aws-kms:alias/x?endpoint=https://kms.example",
            "transit:https://vault.example:8200/transit/keys/ebs",
            "transit:http://127.0.0.1:8200/team/a/transit/keys/ebs",
            "transit:http://[::1]:8200/transit/keys/ebs",
            "exec:/usr/libexec/wrap?key=main",
        ] {
            assert_eq!(KeyUri::parse(text).map(|uri| uri.to_string()), Ok(text.to_owned()));
        }
        assert_eq!(KeyUri::parse("local:alias/x"), Ok(KeyUri::Local("alias/x".to_owned())));
    }

    #[test]
    fn a_name_whose_canonical_form_is_too_long_is_refused_before_it_is_stored() {
        // Each of these characters is three in the canonical form.
        let name = |count: usize| format!("pkcs11:object={}", "=".repeat(count));
        let longest = (REFERENCE_BYTES_MAX - "pkcs11:object=".len()) / 3;
        let uri = KeyUri::parse(&name(longest)).expect("it fits");
        assert_eq!(KeyUri::parse(&uri.to_string()), Ok(uri));
        assert_eq!(KeyUri::parse(&name(longest + 1)), Err(KeyUriError::Text));
    }

    #[test]
    fn an_arn_names_its_region() {
        let Ok(KeyUri::AwsKms(uri)) = KeyUri::parse("aws-kms:alias/x?region=eu-west-1") else {
            panic!("AWS KMS")
        };
        assert_eq!(uri.region(), Some("eu-west-1"));
        assert_eq!(uri.resolved(ARN).region(), Some("eu-central-1"));
        assert_eq!(uri.resolved(ARN).to_string(), format!("aws-kms:{ARN}"));
    }

    #[test]
    fn what_is_no_key_is_refused_by_its_reason() {
        assert_eq!(KeyUri::parse(""), Err(KeyUriError::Text));
        assert_eq!(KeyUri::parse("alias/a b"), Err(KeyUriError::Text));
        assert_eq!(KeyUri::parse(&"a".repeat(2049)), Err(KeyUriError::Text));
        assert_eq!(KeyUri::parse("vault:x"), Err(KeyUriError::UnknownProvider("vault".to_owned())));
        let remote = KeyUri::parse("transit:http://vault.example:8200/transit/keys/ebs");
        assert_eq!(remote, Err(KeyUriError::Cleartext("http://vault.example:8200".to_owned())));
        for wrong in [
            "transit:https://h:8200/transit/ebs",
            "transit:https://h:8200",
            "transit:https://user:pw@h:8200/transit/keys/ebs",
            "transit:https://h/../keys/ebs",
            "transit:https://h/transit/keys/a%2fb",
            "transit:ftp://h/transit/keys/a",
            "aws-kms:",
            "aws-kms:alias/x?profile=y",
            "aws-kms:alias/x?region=a&region=b",
            "aws-kms:alias/x?endpoint=ftp://h",
            "exec:wrap?key=main",
            "exec:/wrap",
            "exec:/wrap?key=",
        ] {
            assert!(matches!(KeyUri::parse(wrong), Err(KeyUriError::Shape(_))), "{wrong}");
        }
    }
}
