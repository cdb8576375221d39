//! The conditions of a statement: an operator, a condition key, and the values that it is compared with.
//!
//! Operators are AWS's: `StringEquals`, `StringNotEquals`, `StringEqualsIgnoreCase`, `StringLike`, `StringNotLike`,
//! `NumericEquals`, `NumericLessThan`, `NumericLessThanEquals`, `NumericGreaterThan`, `NumericGreaterThanEquals`,
//! `Bool` and `Null`, with `IfExists` behind, and with `ForAllValues:` or `ForAnyValue:` before.

use std::collections::BTreeMap;

use serde_json::Value;

use super::pattern::matches;
use super::{MalformedPolicy, malformed, one_or_many};

/// Condition keys that a request can have, in lower case.
const KEYS: [&str; 15] = [
    "kms:calleraccount",
    "kms:encryptioncontextkeys",
    "kms:grantconstrainttype",
    "kms:granteeprincipal",
    "kms:grantisforawsresource",
    "kms:grantoperations",
    "kms:keyorigin",
    "kms:keyspec",
    "kms:keyusage",
    "kms:multiregion",
    "kms:requestalias",
    "kms:resourcealiases",
    "kms:retiringprincipal",
    "kms:schedulekeydeletionpendingwindowindays",
    "kms:viaservice",
];
/// What comes before the name of a context's pair, in lower case.
const CONTEXT_PREFIX: &str = "kms:encryptioncontext:";

/// What is known about a request: condition keys and their values. Names of condition keys have no case; the name
/// of a context's pair behind `kms:EncryptionContext:` has.
#[derive(Debug, Default)]
pub(in super::super) struct Facts(BTreeMap<String, Vec<String>>);

impl Facts {
    /// The request has this value under this key, besides what it has already.
    pub(in super::super) fn add(&mut self, key: &str, value: impl Into<String>) {
        self.0.entry(normal(key)).or_default().push(value.into());
    }
}

/// One test of a statement.
#[derive(Debug)]
pub(super) struct Condition {
    quantifier: Quantifier,
    operator: Operator,
    /// `IfExists`: a request without the key passes.
    if_exists: bool,
    key: String,
    values: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Quantifier {
    One,
    All,
    Any,
}

#[derive(Clone, Copy, Debug)]
enum Operator {
    Equals { negated: bool },
    EqualsIgnoreCase,
    Like { negated: bool },
    Number(fn(&f64, &f64) -> bool),
    Bool,
    Null,
}

impl Condition {
    pub(super) fn parse(operator: &str, key: &str, values: &Value) -> Result<Self, MalformedPolicy> {
        let unknown = || malformed(format!("the condition {operator} on {key} cannot be evaluated here"));
        let (quantifier, name) = match operator.split_once(':') {
            None => (Quantifier::One, operator),
            Some(("ForAllValues", name)) => (Quantifier::All, name),
            Some(("ForAnyValue", name)) => (Quantifier::Any, name),
            Some(_) => return Err(unknown()),
        };
        let (name, if_exists) = name.strip_suffix("IfExists").map_or((name, false), |name| (name, true));
        let operator = Operator::parse(name).ok_or_else(unknown)?;
        let key = normal(key);
        if !KEYS.contains(&key.as_str()) && !key.starts_with(CONTEXT_PREFIX) {
            return Err(unknown());
        }
        let values: Option<Vec<_>> = one_or_many(values).iter().map(scalar).collect();
        let values = values.filter(|values| !values.is_empty()).ok_or_else(unknown)?;
        Ok(Self { quantifier, operator, if_exists, key, values })
    }

    pub(super) fn holds(&self, facts: &Facts) -> bool {
        let actual = facts.0.get(&self.key).map(Vec::as_slice).unwrap_or_default();
        if matches!(self.operator, Operator::Null) {
            let wants_absent = self.values.iter().any(|value| value.eq_ignore_ascii_case("true"));
            return wants_absent == actual.is_empty();
        }
        if actual.is_empty() {
            return self.if_exists || self.quantifier == Quantifier::All || self.operator.is_negated();
        }
        let passes = |actual: &String| {
            let equal = self.values.iter().any(|wanted| self.operator.compare(actual, wanted));
            equal != self.operator.is_negated()
        };
        let all = match self.quantifier {
            Quantifier::All => true,
            Quantifier::Any => false,
            // With several values, "not equal" means to none of them.
            Quantifier::One => self.operator.is_negated(),
        };
        if all { actual.iter().all(passes) } else { actual.iter().any(passes) }
    }
}

impl Operator {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "StringEquals" => Self::Equals { negated: false },
            "StringNotEquals" => Self::Equals { negated: true },
            "StringEqualsIgnoreCase" => Self::EqualsIgnoreCase,
            "StringLike" => Self::Like { negated: false },
            "StringNotLike" => Self::Like { negated: true },
            "NumericEquals" => Self::Number(PartialEq::eq),
            "NumericLessThan" => Self::Number(PartialOrd::lt),
            "NumericLessThanEquals" => Self::Number(PartialOrd::le),
            "NumericGreaterThan" => Self::Number(PartialOrd::gt),
            "NumericGreaterThanEquals" => Self::Number(PartialOrd::ge),
            "Bool" => Self::Bool,
            "Null" => Self::Null,
            _ => return None,
        })
    }

    fn is_negated(self) -> bool {
        matches!(self, Self::Equals { negated: true } | Self::Like { negated: true })
    }

    /// The comparison itself, not negated.
    fn compare(self, actual: &str, wanted: &str) -> bool {
        match self {
            Self::Equals { .. } => actual == wanted,
            Self::EqualsIgnoreCase | Self::Bool => actual.eq_ignore_ascii_case(wanted),
            Self::Like { .. } => matches(wanted, actual),
            Self::Number(test) => match (actual.parse(), wanted.parse()) {
                (Ok(actual), Ok(wanted)) => test(&actual, &wanted),
                _ => false,
            },
            Self::Null => false,
        }
    }
}

/// A condition key in the form that facts have it in.
fn normal(key: &str) -> String {
    let prefix = key.get(..CONTEXT_PREFIX.len()).filter(|prefix| prefix.eq_ignore_ascii_case(CONTEXT_PREFIX));
    match prefix.and_then(|_| key.get(CONTEXT_PREFIX.len()..)) {
        Some(pair) => format!("{CONTEXT_PREFIX}{pair}"),
        None => key.to_ascii_lowercase(),
    }
}

/// A text, a number or a truth value, as text.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
