//! Principals: who asks, and how a policy names them.
//!
//! A principal is a local user (`uid:1000`), a host or one of its attachments (`host:NAME`, `host:NAME/vol-…`), or an
//! account (`account:` and 12 digits, its root). The pool's owner and root are the root of the pool's account.

use serde_json::Value;

use super::{MalformedPolicy, Reach, malformed, one_or_many};
use crate::service::Principal;

/// Who asks, as policies see it.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Asker<'a> {
    pub(in super::super) principal: &'a Principal,
    /// The account that it belongs to.
    pub(in super::super) account: &'a str,
    /// Whether it is that account's root.
    pub(in super::super) is_root: bool,
}

/// What a policy says where it names a principal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PrincipalPattern {
    Anyone,
    /// `account:…`, the account's digits, or `arn:aws:iam::ACCOUNT:root`.
    Account(String),
    /// One principal; a host with its attachments.
    One(String),
}

impl PrincipalPattern {
    /// `"*"`, or an object whose member `AWS` or `Service` holds one or many.
    pub(super) fn parse_all(value: &Value) -> Result<Vec<Self>, MalformedPolicy> {
        let members = match value {
            Value::String(text) if text == "*" => return Ok(vec![Self::Anyone]),
            Value::Object(members) if !members.is_empty() => members,
            _ => return Err(malformed("a Principal is \"*\" or {\"AWS\": …}")),
        };
        let mut all = Vec::new();
        for (kind, names) in members {
            for name in one_or_many(names) {
                let name = name.as_str().ok_or_else(|| malformed("a Principal is named by a text"))?;
                all.push(match kind.as_str() {
                    "AWS" => Self::parse(name)?,
                    // No service calls as itself here, only on somebody's behalf; the name harms nobody.
                    "Service" => Self::One(name.to_owned()),
                    _ => return Err(malformed(format!("a Principal cannot be of the kind {kind:?}"))),
                });
            }
        }
        Ok(all)
    }

    fn parse(text: &str) -> Result<Self, MalformedPolicy> {
        let root = || text.strip_prefix("arn:aws:iam::")?.strip_suffix(":root");
        if text == "*" {
            return Ok(Self::Anyone);
        }
        let account = text.strip_prefix("account:").or_else(root).unwrap_or(text);
        if account.len() == 12 && account.bytes().all(|c| c.is_ascii_digit()) {
            return Ok(Self::Account(account.to_owned()));
        }
        let uid = text.strip_prefix("uid:").is_some_and(|uid| uid.parse::<u32>().is_ok());
        let host = text.strip_prefix("host:").is_some_and(|host| !host.is_empty());
        if uid || host {
            return Ok(Self::One(text.to_owned()));
        }
        Err(malformed(format!(
            "invalid principal {text:?}: uid:1000, host:NAME, account:123456789012 or arn:aws:iam::123456789012:root"
        )))
    }

    pub(super) fn reach(&self, asker: &Asker<'_>) -> Reach {
        match self {
            Self::Anyone => Reach::Asker,
            Self::Account(account) if account == asker.account => {
                if asker.is_root {
                    Reach::Asker
                } else {
                    Reach::Account
                }
            }
            Self::One(name) if is_or_belongs_to(&asker.principal.0, name) => Reach::Asker,
            Self::Account(_) | Self::One(_) => Reach::Nobody,
        }
    }
}

/// `host:a/vol-1` belongs to `host:a`.
fn is_or_belongs_to(principal: &str, name: &str) -> bool {
    principal.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}
