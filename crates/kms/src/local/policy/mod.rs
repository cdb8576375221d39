//! Policies in AWS's JSON form: what one is, and what it says about a request (ebs.md C.7).
//!
//! Two kinds: the policy of a key names principals; the policy of an identity names resources and belongs to one
//! principal. What cannot be evaluated here (`NotAction`, an unknown condition) is refused when the policy is put, not
//! ignored: a policy never allows or denies less than its author reads in it. Who asks what of whom, and what follows
//! from several policies together, is `authorize`'s business.

mod condition;
mod pattern;
mod who;

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use self::condition::Condition;
pub(super) use self::condition::Facts;
use self::pattern::matches;
pub(super) use self::who::Asker;
use self::who::PrincipalPattern;

/// The longest policy, in bytes of compact JSON.
const POLICY_BYTES_MAX: usize = 32 * 1024;

/// What a policy belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PolicyKind {
    /// A key: statements name principals; resources may be left out and mean the key.
    Key,
    /// A principal: statements name resources and no principals.
    Identity,
}

/// A policy that can be evaluated.
#[derive(Debug)]
pub(super) struct Policy(Vec<Statement>);

/// What a policy says about one request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Verdict {
    /// A statement denies it, whatever others say.
    Denied,
    /// A statement allows it to this principal.
    Allowed,
    /// A statement allows it to the principal's account: the principal's own policies decide.
    LeftToAccount,
    /// No statement is about it.
    Silent,
}

/// What is asked for.
pub(super) struct Request<'a> {
    pub(super) asker: &'a Asker<'a>,
    /// The action without `kms:`.
    pub(super) action: &'a str,
    /// The ARN of what it is asked of; `*` where there is no one thing.
    pub(super) resource: &'a str,
    pub(super) facts: &'a Facts,
}

/// Why a document is not a policy; the words are for its author.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct MalformedPolicy(String);

#[derive(Debug)]
struct Statement {
    effect: Effect,
    /// `None`: of an identity policy, whose principal is the one it belongs to.
    principals: Option<Vec<PrincipalPattern>>,
    actions: Vec<String>,
    resources: Vec<String>,
    conditions: Vec<Condition>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct DocumentJson {
    version: Option<String>,
    #[serde(rename = "Id")]
    _id: Option<String>,
    statement: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct StatementJson {
    #[serde(rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    principal: Option<Value>,
    action: Value,
    resource: Option<Value>,
    #[serde(default)]
    condition: BTreeMap<String, BTreeMap<String, Value>>,
}

impl Policy {
    /// Reads a policy of the given kind.
    pub(super) fn parse(document: &Value, kind: PolicyKind) -> Result<Self, MalformedPolicy> {
        if document.to_string().len() > POLICY_BYTES_MAX {
            return Err(malformed("a policy is at most 32 KiB long"));
        }
        let parsed: DocumentJson = object(document, "a policy")?;
        if let Some(version) = parsed.version
            && !["2012-10-17", "2008-10-17"].contains(&version.as_str())
        {
            return Err(malformed(format!("the policy's Version is {version:?}, not \"2012-10-17\"")));
        }
        let statements = one_or_many(&parsed.statement).iter().enumerate().map(|(index, statement)| {
            Statement::parse(statement, kind)
                .map_err(|MalformedPolicy(reason)| malformed(format!("statement {}: {reason}", index + 1)))
        });
        Ok(Self(statements.collect::<Result<_, _>>()?))
    }

    /// What the policy says about `request`: a denial before everything else.
    pub(super) fn verdict(&self, request: &Request<'_>) -> Verdict {
        let mut verdict = Verdict::Silent;
        for statement in self.0.iter().filter(|statement| statement.concerns(request)) {
            let reach = statement.reach(request.asker);
            verdict = match (statement.effect, reach) {
                (_, Reach::Nobody) => verdict,
                // A denial to an account is one to everybody in it.
                (Effect::Deny, _) => return Verdict::Denied,
                (Effect::Allow, Reach::Asker) => Verdict::Allowed,
                (Effect::Allow, Reach::Account) if verdict == Verdict::Silent => Verdict::LeftToAccount,
                (Effect::Allow, Reach::Account) => verdict,
            };
        }
        verdict
    }
}

/// Whom a statement is about, seen from who asks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Who asks.
    Asker,
    /// The account of who asks, and so, by its leave, who asks.
    Account,
    /// Somebody else.
    Nobody,
}

impl Statement {
    fn parse(statement: &Value, kind: PolicyKind) -> Result<Self, MalformedPolicy> {
        let json: StatementJson = object(statement, "a statement")?;
        let principals = match (kind, &json.principal) {
            (PolicyKind::Key, Some(principal)) => Some(PrincipalPattern::parse_all(principal)?),
            (PolicyKind::Key, None) => return Err(malformed("a key policy's statement needs a Principal")),
            (PolicyKind::Identity, None) => None,
            (PolicyKind::Identity, Some(_)) => {
                return Err(malformed("an identity policy has no Principal: it belongs to one"));
            }
        };
        let resources = match (kind, &json.resource) {
            (_, Some(resource)) => texts("Resource", resource)?,
            (PolicyKind::Key, None) => vec!["*".to_owned()],
            (PolicyKind::Identity, None) => return Err(malformed("an identity policy needs a Resource")),
        };
        let actions = texts("Action", &json.action)?;
        if let Some(action) = actions.iter().find(|action| *action != "*" && !action.contains(':')) {
            return Err(malformed(format!("the action {action:?} names no service: kms:{action}")));
        }
        let tests =
            json.condition.iter().flat_map(|(operator, tests)| tests.iter().map(move |t| (operator, t)));
        let conditions = tests.map(|(operator, (key, values))| Condition::parse(operator, key, values));
        let conditions = conditions.collect::<Result<_, _>>()?;
        Ok(Self { effect: json.effect, principals, actions, resources, conditions })
    }

    fn concerns(&self, request: &Request<'_>) -> bool {
        self.actions.iter().any(|pattern| covers(pattern, request.action))
            && self.resources.iter().any(|pattern| matches(pattern, request.resource))
            && self.conditions.iter().all(|condition| condition.holds(request.facts))
    }

    fn reach(&self, asker: &Asker<'_>) -> Reach {
        let Some(principals) = &self.principals else { return Reach::Asker };
        let reaches = || principals.iter().map(|pattern| pattern.reach(asker));
        if reaches().any(|reach| reach == Reach::Asker) {
            Reach::Asker
        } else if reaches().any(|reach| reach == Reach::Account) {
            Reach::Account
        } else {
            Reach::Nobody
        }
    }
}

/// Whether an action in a policy, with wildcards and in any case, means this action of KMS. `kms:ReEncrypt`, which
/// EBS's documentation asks for, means both halves of it.
fn covers(pattern: &str, action: &str) -> bool {
    let pattern = pattern.to_ascii_lowercase();
    let action = action.to_ascii_lowercase();
    matches(&pattern, &format!("kms:{action}"))
        || (pattern == "kms:reencrypt" && action.starts_with("reencrypt"))
}

fn malformed(reason: impl Into<String>) -> MalformedPolicy {
    MalformedPolicy(reason.into())
}

/// Reads an object; serde alone would take a list of its members' values for one.
fn object<T: DeserializeOwned>(value: &Value, what: &str) -> Result<T, MalformedPolicy> {
    if !value.is_object() {
        return Err(malformed(format!("{what} is a JSON object")));
    }
    T::deserialize(value).map_err(|error| malformed(error.to_string()))
}

/// A list, or one thing as a list of one.
fn one_or_many(value: &Value) -> &[Value] {
    value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice)
}

/// A text or a list of texts, not empty.
fn texts(what: &str, value: &Value) -> Result<Vec<String>, MalformedPolicy> {
    let texts: Option<Vec<_>> =
        one_or_many(value).iter().map(|text| text.as_str().map(str::to_owned)).collect();
    texts
        .filter(|texts| !texts.is_empty())
        .ok_or_else(|| malformed(format!("{what} is a text or a list of texts")))
}

#[cfg(test)]
mod tests;
