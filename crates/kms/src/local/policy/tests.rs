//! What policies say about requests, and which documents are none.

use serde_json::json;

use super::*;
use crate::service::Principal;

const KEY: &str = "arn:aws:kms:us-east-2:123456789012:key/abcd1234-a123-456d-a12b-a123b4cd56ef";

/// The policy in the document that this project implements, to the letter (requirement 27).
fn least_privilege() -> Value {
    serde_json::from_str(include_str!("../../../tests/r27_policy.json")).expect("JSON")
}

fn verdict(
    policy: &Value,
    kind: PolicyKind,
    who: (&str, bool),
    action: &str,
    facts: &[(&str, &str)],
) -> Verdict {
    let principal = Principal(who.0.to_owned());
    let asker = Asker { principal: &principal, account: "123456789012", is_root: who.1 };
    let mut known = Facts::default();
    for (key, value) in facts {
        known.add(key, *value);
    }
    let request = Request { asker: &asker, action, resource: KEY, facts: &known };
    Policy::parse(policy, kind).expect("a policy").verdict(&request)
}

#[test]
fn r27_the_documented_policy_allows_grants_for_services_only() {
    let policy = least_privilege();
    let ask = |action, for_service| {
        let facts = [("kms:GrantIsForAWSResource", for_service)];
        verdict(&policy, PolicyKind::Identity, ("uid:1000", false), action, &facts)
    };
    assert_eq!(ask("CreateGrant", "true"), Verdict::Allowed);
    assert_eq!(ask("CreateGrant", "false"), Verdict::Silent);
    assert_eq!(ask("Decrypt", "true"), Verdict::Silent);
}

#[test]
fn actions_have_wildcards_and_no_case() {
    for (pattern, action, expected) in [
        ("kms:*", "Decrypt", true),
        ("*", "Decrypt", true),
        ("kms:ReEncrypt*", "ReEncryptFrom", true),
        ("kms:ReEncrypt", "ReEncryptTo", true),
        ("kms:GenerateDataKeyWithoutPlainText", "GenerateDataKeyWithoutPlaintext", true),
        ("kms:GenerateDataKey", "GenerateDataKeyWithoutPlaintext", false),
        ("ec2:*", "Decrypt", false),
    ] {
        assert_eq!(covers(pattern, action), expected, "{pattern} on {action}");
    }
}

#[test]
fn an_account_leaves_it_to_the_policies_of_its_principals_except_for_its_root() {
    for name in ["123456789012", "account:123456789012", "arn:aws:iam::123456789012:root"] {
        let policy = json!({
            "Statement": { "Effect": "Allow", "Principal": { "AWS": name }, "Action": "kms:*", "Resource": "*" },
        });
        let ask = |who| verdict(&policy, PolicyKind::Key, who, "Decrypt", &[]);
        assert_eq!(ask(("uid:0", true)), Verdict::Allowed);
        assert_eq!(ask(("uid:1000", false)), Verdict::LeftToAccount);
    }
}

#[test]
fn a_denial_comes_before_every_permission() {
    let allow = json!({ "Effect": "Allow", "Principal": "*", "Action": "kms:*" });
    let deny =
        json!({ "Effect": "Deny", "Principal": { "AWS": ["uid:7", "host:a"] }, "Action": "kms:Decrypt" });
    for statements in [json!([allow, deny]), json!([deny, allow])] {
        let policy = json!({ "Version": "2012-10-17", "Id": "x", "Statement": statements });
        let ask = |who, action| verdict(&policy, PolicyKind::Key, (who, false), action, &[]);
        assert_eq!(ask("uid:7", "Decrypt"), Verdict::Denied);
        assert_eq!(ask("host:a/vol-1", "Decrypt"), Verdict::Denied);
        assert_eq!(ask("host:ab", "Decrypt"), Verdict::Allowed);
        assert_eq!(ask("uid:77", "Decrypt"), Verdict::Allowed);
        assert_eq!(ask("uid:7", "DescribeKey"), Verdict::Allowed);
    }
}

#[test]
fn conditions_compare_what_the_request_has() {
    const CONTEXT: (&str, &str) = ("kms:EncryptionContext:aws:ebs:id", "vol-1");
    let operations = [("kms:GrantOperations", "Decrypt"), ("kms:GrantOperations", "Encrypt")];
    let holds = |condition: Value, facts: &[(&str, &str)]| {
        let policy = json!({
            "Statement": { "Effect": "Allow", "Action": "kms:*", "Resource": "*", "Condition": condition },
        });
        verdict(&policy, PolicyKind::Identity, ("uid:1", false), "Decrypt", facts) == Verdict::Allowed
    };
    let context = |operator: &str, value| json!({ operator: { CONTEXT.0: value } });
    assert!(holds(context("StringEquals", "vol-1"), &[CONTEXT]));
    assert!(!holds(context("StringEquals", "vol-1"), &[]));
    assert!(holds(context("StringEqualsIfExists", "vol-1"), &[]));
    assert!(holds(context("StringLike", "vol-*"), &[CONTEXT]));
    assert!(!holds(context("StringNotLike", "vol-*"), &[CONTEXT]));
    assert!(holds(context("StringNotEquals", "vol-2"), &[]));
    assert!(!holds(json!({ "StringEquals": { "kms:EncryptionContext:AWS:ebs:id": "vol-1" } }), &[CONTEXT]));
    assert!(holds(json!({ "StringEquals": { "KMS:viaservice": ["a", "b"] } }), &[("kms:ViaService", "b")]));
    assert!(holds(json!({ "Null": { "kms:ViaService": true } }), &[]));
    assert!(!holds(json!({ "Null": { "kms:ViaService": "true" } }), &[("kms:ViaService", "b")]));
    let all = |values: Value| json!({ "ForAllValues:StringEquals": { "kms:GrantOperations": values } });
    assert!(holds(all(json!(["Decrypt", "Encrypt", "Sign"])), &operations));
    assert!(!holds(all(json!("Decrypt")), &operations));
    assert!(holds(json!({ "ForAnyValue:StringEquals": { "kms:GrantOperations": "Encrypt" } }), &operations));
    let days = json!({ "NumericLessThan": { "kms:ScheduleKeyDeletionPendingWindowInDays": 10 } });
    assert!(holds(days.clone(), &[("kms:ScheduleKeyDeletionPendingWindowInDays", "7")]));
    assert!(!holds(days, &[("kms:ScheduleKeyDeletionPendingWindowInDays", "30")]));
}

#[test]
fn what_cannot_be_evaluated_is_refused_and_named() {
    let statement = |extra: Value| {
        let mut statement =
            json!({ "Effect": "Allow", "Principal": "*", "Action": "kms:Decrypt", "Resource": "*" });
        for (name, value) in extra.as_object().expect("an object") {
            statement[name] = value.clone();
        }
        json!({ "Version": "2012-10-17", "Statement": [statement] })
    };
    for (document, part) in [
        (json!({ "Statement": [] , "Extra": 1 }), "Extra"),
        (json!({ "Version": "2030-01-01", "Statement": [] }), "2030-01-01"),
        (json!(["2012-10-17", "x", []]), "a policy is a JSON object"),
        (json!({ "Statement": ["Allow"] }), "a statement is a JSON object"),
        (statement(json!({ "NotAction": "kms:Encrypt" })), "NotAction"),
        (statement(json!({ "Effect": "Maybe" })), "Maybe"),
        (statement(json!({ "Action": [] })), "Action"),
        (statement(json!({ "Action": "Decrypt" })), "kms:Decrypt"),
        (statement(json!({ "Principal": { "AWS": "nobody" } })), "nobody"),
        (statement(json!({ "Condition": { "IpAddress": { "aws:SourceIp": "10.0.0.0/8" } } })), "IpAddress"),
        (statement(json!({ "Condition": { "StringEquals": { "kms:Unknown": "x" } } })), "kms:Unknown"),
        (statement(json!({ "Sid": "x".repeat(POLICY_BYTES_MAX) })), "32 KiB"),
    ] {
        let error = Policy::parse(&document, PolicyKind::Key).expect_err(part);
        assert!(error.to_string().contains(part), "{part} in {error}");
    }
    let with_principal = statement(json!({}));
    Policy::parse(&with_principal, PolicyKind::Key).expect("a key's policy");
    Policy::parse(&with_principal, PolicyKind::Identity)
        .expect_err("an identity's policy names no principal");
}
