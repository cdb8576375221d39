//! Policies of the embedded store: requirements 25 to 27, explicit denials, other accounts.

mod store;

use sealblk_kms::local::{GrantConstraints, LocalKms, NewGrant, NewKey};
use sealblk_kms::{DecryptRequest, GrantOperation, Kms, KmsError, KmsErrorKind, Principal, WrappedKey};
use serde_json::{Value, json};
use store::{
    OTHER_VOLUME, TestStore, VOLUME, attachment, attachment_grant, context, decrypt, owner, re_encrypt,
};

/// The five actions that the document asks for, as it spells them.
const FIVE: [&str; 5] = [
    "kms:CreateGrant",
    "kms:Decrypt",
    "kms:DescribeKey",
    "kms:GenerateDataKeyWithoutPlainText",
    "kms:ReEncrypt",
];

fn user() -> Principal {
    Principal("uid:4000000000".to_owned())
}

fn identity_policy(actions: &[&str]) -> Value {
    json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": actions, "Resource": "*" }],
    })
}

/// A store with a customer key, and the key's ARN.
fn store_with_key() -> (TestStore, String) {
    let store = TestStore::new();
    let arn = store.open_as(&owner()).expect("opened").create_key("").expect("created").arn;
    (store, arn)
}

/// As the user, through volumes and snapshots.
fn through_volumes(store: &TestStore) -> LocalKms {
    store.open_as(&user()).expect("opened").via_service()
}

/// All that volumes and snapshots do with a key and what it has wrapped; what came of each.
fn operations(kms: &LocalKms, arn: &str, wrapped: &WrappedKey) -> [(&'static str, Result<(), KmsError>); 4] {
    let own = context(VOLUME);
    let attach = || {
        let grant = kms.create_grant(&attachment_grant(arn, VOLUME))?.id;
        let (me, own) = (attachment(), context(VOLUME));
        let request = DecryptRequest { wrapped, key: arn, context: &own, grant: Some((&grant, &me)) };
        kms.decrypt(&request)?;
        kms.retire_grant(arn, &grant)
    };
    [
        ("describe", kms.describe_key(arn).map(drop)),
        ("create", kms.generate_data_key_without_plaintext(arn, &own).map(drop)),
        ("attach", attach()),
        ("restore", re_encrypt(kms, wrapped, (arn, VOLUME), (arn, OTHER_VOLUME)).map(drop)),
    ]
}

#[test]
fn r25_the_default_key_policy_lets_any_user_with_the_actions_use_the_key_and_nobody_without() {
    let (store, arn) = store_with_key();
    let wrapped =
        store.open().generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
    for (operation, outcome) in operations(&through_volumes(&store), &arn, &wrapped) {
        assert_eq!(outcome.expect_err(operation).kind, KmsErrorKind::Denied, "{operation}");
    }
    let admin = store.open_as(&owner()).expect("opened");
    admin.put_identity_policy(&user(), "ebs", &identity_policy(&FIVE)).expect("put");
    for (operation, outcome) in operations(&through_volumes(&store), &arn, &wrapped) {
        outcome.expect(operation);
    }
    assert!(store.open().list_grants(&arn).expect("listed").is_empty(), "the service retired the grant");
    admin.delete_identity_policy(&user(), "ebs").expect("deleted");
    through_volumes(&store).describe_key(&arn).expect_err("no more");
}

#[test]
fn r26_each_of_the_five_actions_is_needed_and_named_where_it_is_missing() {
    let (store, arn) = store_with_key();
    let wrapped =
        store.open().generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
    let admin = store.open_as(&owner()).expect("opened");
    for (missing, operation, named) in [
        ("kms:CreateGrant", "attach", "kms:CreateGrant"),
        ("kms:Decrypt", "attach", "kms:Decrypt"),
        ("kms:DescribeKey", "describe", "kms:DescribeKey"),
        ("kms:GenerateDataKeyWithoutPlainText", "create", "kms:GenerateDataKeyWithoutPlaintext"),
        ("kms:ReEncrypt", "restore", "kms:ReEncryptFrom"),
    ] {
        let left: Vec<_> = FIVE.into_iter().filter(|action| *action != missing).collect();
        admin.put_identity_policy(&user(), "ebs", &identity_policy(&left)).expect("put");
        for (name, outcome) in operations(&through_volumes(&store), &arn, &wrapped) {
            if name != operation {
                outcome.expect("it does not need the action");
                continue;
            }
            let error = outcome.expect_err(missing);
            assert_eq!(error.kind, KmsErrorKind::Denied, "{error}");
            let start = format!("User: {} is not authorized to perform: {named} on resource: {arn}", user());
            assert!(error.message.starts_with(&start), "{error}");
        }
    }
}

#[test]
fn r27_the_documented_policy_lets_a_volume_be_attached_and_no_grant_be_made_directly() {
    let (store, arn) = store_with_key();
    let wrapped =
        store.open().generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
    let admin = store.open_as(&owner()).expect("opened");
    let verbatim: Value = serde_json::from_str(include_str!("r27_policy.json")).expect("JSON");
    admin.put_identity_policy(&user(), "verbatim", &verbatim).expect("the document's policy loads");
    // The same for a key that exists here.
    let documented = verbatim["Statement"][0]["Resource"][0].as_str().expect("an ARN");
    let here = serde_json::from_str(&verbatim.to_string().replace(documented, &arn)).expect("JSON");
    admin.put_identity_policy(&user(), "grants", &here).expect("put");
    admin.put_identity_policy(&user(), "others", &identity_policy(&FIVE[1..])).expect("put");

    for (operation, outcome) in operations(&through_volumes(&store), &arn, &wrapped) {
        outcome.expect(operation);
    }
    let direct = store.open_as(&user()).expect("opened");
    let error = direct.create_grant(&attachment_grant(&arn, VOLUME)).expect_err("not directly");
    assert_eq!((error.kind, error.kind.code()), (KmsErrorKind::Denied, "AccessDeniedException"));
    assert!(error.message.contains("kms:CreateGrant") && error.message.contains(&arn), "{error}");
}

#[test]
fn a_key_policy_names_principals_and_conditions() {
    let (store, arn) = store_with_key();
    let admin = store.open_as(&owner()).expect("opened");
    let root = json!({ "AWS": "arn:aws:iam::000000000000:root" });
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [
            { "Effect": "Allow", "Principal": root, "Action": "kms:*", "Resource": "*" },
            {
                "Effect": "Allow",
                "Principal": { "AWS": user().0 },
                "Action": ["kms:Decrypt", "kms:GenerateDataKey*"],
                "Resource": "*",
                "Condition": { "StringLike": { "kms:EncryptionContext:aws:ebs:id": "vol-*def0" } },
            },
            {
                "Effect": "Deny",
                "Principal": "*",
                "Action": "kms:ScheduleKeyDeletion",
                "Condition": { "NumericLessThan": { "kms:ScheduleKeyDeletionPendingWindowInDays": 30 } },
            },
        ],
    });
    admin.put_key_policy(&arn, &policy).expect("put");
    assert_eq!(admin.get_key_policy(&arn).expect("told"), policy);
    let direct = store.open_as(&user()).expect("opened");
    let wrapped = direct.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("allowed");
    decrypt(&direct, &arn, &wrapped, VOLUME).expect("allowed");
    let other = direct.generate_data_key_without_plaintext(&arn, &context(OTHER_VOLUME));
    assert_eq!(other.expect_err("another volume").kind, KmsErrorKind::Denied);
    let error = admin.schedule_key_deletion(&arn, Some(7)).expect_err("denied to the owner too");
    assert!(error.message.contains("the key policy denies it explicitly"), "{error}");
    admin.schedule_key_deletion(&arn, Some(30)).expect("allowed");
}

#[test]
fn a_denial_beats_a_grant_and_the_owner_can_mend_any_policy() {
    let (store, arn) = store_with_key();
    let admin = store.open_as(&owner()).expect("opened");
    let wrapped = admin.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
    let grant = NewGrant {
        key: arn.clone(),
        grantee: user(),
        retiring: None,
        operations: vec![GrantOperation::Decrypt],
        constraints: GrantConstraints::default(),
        name: None,
    };
    admin.issue_grant(&grant).expect("granted");
    let direct = store.open_as(&user()).expect("opened");
    decrypt(&direct, &arn, &wrapped, VOLUME).expect("by the grant, without naming it");
    let deny =
        json!({ "Statement": { "Effect": "Deny", "Principal": "*", "Action": "kms:*", "Resource": "*" } });
    admin.put_key_policy(&arn, &deny).expect("put");
    for kms in [&direct, &admin] {
        assert_eq!(decrypt(kms, &arn, &wrapped, VOLUME).expect_err("denied").kind, KmsErrorKind::Denied);
    }
    let open = json!({ "Statement": { "Effect": "Allow", "Principal": "*", "Action": "kms:*" } });
    assert_eq!(direct.put_key_policy(&arn, &open).expect_err("not the owner").kind, KmsErrorKind::Denied);
    admin.put_key_policy(&arn, &open).expect("the owner may always");
    decrypt(&direct, &arn, &wrapped, VOLUME).expect("allowed to anyone");
}

#[test]
fn another_accounts_root_may_what_the_key_policy_says_and_only_what_crosses_accounts() {
    let (store, arn) = store_with_key();
    let admin = store.open_as(&owner()).expect("opened");
    let other = Principal("account:222222222222".to_owned());
    let theirs = store.open_as(&other).expect("opened").via_service();
    assert_eq!(theirs.describe_key(&arn).expect_err("not yet").kind, KmsErrorKind::Denied);
    let policy = json!({ "Statement": {
        "Effect": "Allow",
        "Principal": { "AWS": ["arn:aws:iam::222222222222:root", "arn:aws:iam::000000000000:root"] },
        "Action": "kms:*",
    } });
    admin.put_key_policy(&arn, &policy).expect("put");
    theirs.describe_key(&arn).expect("allowed");
    theirs.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("allowed");
    let error = theirs.disable_key(&arn).expect_err("not across accounts");
    assert!(error.message.contains("another account"), "{error}");
}

#[test]
fn a_malformed_policy_is_refused_and_changes_nothing() {
    let (store, arn) = store_with_key();
    let admin = store.open_as(&owner()).expect("opened");
    let before = admin.get_key_policy(&arn).expect("told");
    let identity = identity_policy(&FIVE);
    for outcome in [
        admin.put_key_policy(&arn, &identity),
        admin.put_identity_policy(&user(), "x", &before),
        admin.create_key_as(&NewKey { policy: Some(json!("x")), ..NewKey::default() }).map(drop),
    ] {
        assert_eq!(outcome.expect_err("malformed").kind, KmsErrorKind::MalformedPolicy);
    }
    assert_eq!(admin.get_key_policy(&arn).expect("told"), before);
    for (who, name) in [("nobody", "x"), ("uid:1", "a b"), ("uid:1", "")] {
        let outcome = admin.put_identity_policy(&Principal(who.to_owned()), name, &identity);
        assert_eq!(outcome.expect_err(who).kind, KmsErrorKind::InvalidRequest);
    }
    assert!(admin.list_identities().expect("listed").is_empty());
}
