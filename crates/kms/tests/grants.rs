//! Grants of the embedded store: an attachment may unwrap the key of its own volume, while it is attached.

mod store;

use sealblk_kms::local::{GrantConstraints, NewGrant};
use sealblk_kms::{
    DecryptRequest, GrantId, GrantOperation, Kms, KmsError, KmsErrorKind, Principal, WrappedKey,
};
use serde_json::json;
use store::{OTHER_VOLUME, TestStore, VOLUME, attachment, attachment_grant, context, owner, volume_key};

fn decrypt_under(
    store: &TestStore,
    (grant, grantee): (&GrantId, &Principal),
    (key, wrapped): (&str, &WrappedKey),
    resource: &str,
) -> Result<[u8; 64], KmsError> {
    let context = context(resource);
    let request = DecryptRequest { wrapped, key, context: &context, grant: Some((grant, grantee)) };
    Ok(store.open().decrypt(&request)?.expose(|bytes| *bytes))
}

#[test]
fn r17_an_attachment_decrypts_under_its_grant_and_no_other_volumes_key() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let other = kms.generate_data_key_without_plaintext(&arn, &context(OTHER_VOLUME)).expect("generated");
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    let me = attachment();
    let key = decrypt_under(&store, (&grant, &me), (&arn, &wrapped), VOLUME).expect("its own volume");
    assert_eq!(key, store::decrypt(&kms, &arn, &wrapped, VOLUME).expect("as the owner"));

    let error =
        decrypt_under(&store, (&grant, &me), (&arn, &other), OTHER_VOLUME).expect_err("another volume");
    assert_eq!(error.kind, KmsErrorKind::Denied);
    for part in ["kms:Decrypt", &me.0, &arn, &grant.0, "another encryption context"] {
        assert!(error.message.contains(part), "{part} in {error}");
    }
}

#[test]
fn r17_the_grant_is_listed_with_its_constraint_and_gone_after_it_is_retired() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    let listed = kms.list_grants(&arn).expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].grant_id, grant);
    assert_eq!(listed[0].grantee_principal, attachment());
    assert_eq!(listed[0].operations, [GrantOperation::Decrypt]);
    assert_eq!(listed[0].constraints, GrantConstraints::subset(context(VOLUME)));
    assert_eq!(listed[0].retiring_principal, Some(Principal("ec2.local.amazonaws.com".to_owned())));

    kms.retire_grant(&arn, &grant).expect("retired");
    assert!(kms.list_grants(&arn).expect("listed").is_empty());
    let error =
        decrypt_under(&store, (&grant, &attachment()), (&arn, &wrapped), VOLUME).expect_err("retired");
    assert_eq!(error.kind, KmsErrorKind::Denied);
    assert_eq!(kms.retire_grant(&arn, &grant).expect_err("gone already").kind, KmsErrorKind::NotFound);
}

#[test]
fn a_grant_serves_its_grantee_only() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let grant = store.open().create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    for other in [Principal("host:test/vol-ffffffffffffffff0".to_owned()), owner()] {
        let error =
            decrypt_under(&store, (&grant, &other), (&arn, &wrapped), VOLUME).expect_err("not the grantee");
        assert_eq!(error.kind, KmsErrorKind::Denied);
    }
}

#[test]
fn a_grant_is_for_one_key() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, _) = volume_key(&kms);
    let other = kms.create_key("").expect("created").arn;
    let wrapped = kms.generate_data_key_without_plaintext(&other, &context(VOLUME)).expect("generated");
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    let error =
        decrypt_under(&store, (&grant, &attachment()), (&other, &wrapped), VOLUME).expect_err("other key");
    assert_eq!(error.kind, KmsErrorKind::Denied);
}

#[test]
fn a_disabled_key_is_disabled_for_a_grantee_too() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    let wrapped = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("generated");
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    kms.disable_key(&arn).expect("disabled");
    let error =
        decrypt_under(&store, (&grant, &attachment()), (&arn, &wrapped), VOLUME).expect_err("disabled");
    assert_eq!(error.kind, KmsErrorKind::Disabled);
    kms.retire_grant(&arn, &grant).expect("a detach works whatever the key's state");
}

#[test]
fn the_same_request_under_the_same_name_is_the_same_grant() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, _) = volume_key(&kms);
    let request = attachment_grant(&arn, VOLUME);
    let first = kms.create_grant(&request).expect("granted").id;
    assert_eq!(store.open().create_grant(&request).expect("again").id, first);

    let mut other_constraint = request.clone();
    other_constraint.constraint = context(OTHER_VOLUME);
    let mut unnamed = request.clone();
    unnamed.name = None;
    for request in [other_constraint, unnamed.clone(), unnamed] {
        kms.create_grant(&request).expect("a grant of its own");
    }
    let ids: Vec<_> =
        kms.list_grants(&arn).expect("listed").into_iter().map(|grant| grant.grant_id.0).collect();
    assert_eq!(ids.len(), 4);
    assert!(ids.iter().all(|id| id.len() == 64 && id.bytes().all(|c| c.is_ascii_hexdigit())));
}

#[test]
fn without_a_grant_only_the_owner_may_do_anything() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    let wrapped = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("generated");
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    let stranger = Principal("uid:4000000000".to_owned());
    let outsider = store.open_as(&stranger).expect("opened");
    let own = context(VOLUME);
    for outcome in [
        outsider.describe_key(&arn).map(drop),
        outsider.generate_data_key_without_plaintext(&arn, &own).map(drop),
        store::decrypt(&outsider, &arn, &wrapped, VOLUME).map(drop),
        store::re_encrypt(&outsider, &wrapped, (&arn, VOLUME), (&arn, VOLUME)).map(drop),
        outsider.create_grant(&attachment_grant(&arn, VOLUME)).map(drop),
        outsider.retire_grant(&arn, &grant),
        outsider.create_key("").map(drop),
        outsider.list_keys().map(drop),
        outsider.list_grants(&arn).map(drop),
        outsider.disable_key(&arn),
        outsider.enable_key(&arn),
        outsider.put_key_policy(&arn, &json!({ "Statement": [] })),
        outsider.schedule_key_deletion(&arn, None).map(drop),
        outsider.create_alias("alias/x", &arn),
        outsider.rotate_key_on_demand(&arn),
    ] {
        let error = outcome.expect_err("not the owner");
        assert_eq!(error.kind, KmsErrorKind::Denied, "{error}");
        assert!(error.message.starts_with("User: uid:4000000000 is not authorized"), "{error}");
    }
}

#[test]
fn a_grant_without_operations_constraint_or_a_legal_name_is_refused() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, _) = volume_key(&kms);
    let good = attachment_grant(&arn, VOLUME);
    let mut requests = vec![good.clone(), good.clone(), good.clone(), good];
    requests[0].operations.clear();
    requests[1].constraint = sealblk_kms::EncryptionContext::from_iter([]);
    requests[2].name = Some("a name".to_owned());
    requests[3].grantee = Principal(String::new());
    for request in requests {
        let error = kms.create_grant(&request).expect_err("refused");
        assert_eq!(error.kind, KmsErrorKind::InvalidRequest, "{request:?}");
    }
    assert!(kms.list_grants(&arn).expect("listed").is_empty());
}

fn user(uid: u32) -> Principal {
    Principal(format!("uid:{uid}"))
}

/// A grant on a new key's ARN for `uid:4000000001`.
fn new_grant(key: &str, operations: &[GrantOperation], constraints: GrantConstraints) -> NewGrant {
    NewGrant {
        key: key.to_owned(),
        grantee: user(4_000_000_001),
        retiring: None,
        operations: operations.to_vec(),
        constraints,
        name: None,
    }
}

#[test]
fn constraints_hold_for_what_carries_a_context_and_for_nothing_else() {
    let store = TestStore::new();
    let admin = store.open_as(&owner()).expect("opened");
    let arn = admin.create_key("").expect("created").arn;
    let wrapped = admin.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
    let operations = [GrantOperation::Decrypt, GrantOperation::DescribeKey];
    for constraints in [GrantConstraints::equals(context(VOLUME)), GrantConstraints::subset(context(VOLUME))]
    {
        let grant = admin.issue_grant(&new_grant(&arn, &operations, constraints)).expect("granted").grant_id;
        let grantee = store.open_as(&user(4_000_000_001)).expect("opened");
        grantee.describe_key(&arn).expect("no context, no constraint");
        store::decrypt(&grantee, &arn, &wrapped, VOLUME).expect("its context");
        let error = store::decrypt(&grantee, &arn, &wrapped, OTHER_VOLUME).expect_err("another context");
        assert_eq!(error.kind, KmsErrorKind::Denied);
        let error =
            grantee.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect_err("not granted");
        assert_eq!(error.kind, KmsErrorKind::Denied);
        admin.revoke_grant(&arn, &grant).expect("revoked");
        store::decrypt(&grantee, &arn, &wrapped, VOLUME).expect_err("revoked at once");
    }
}

#[test]
fn a_grantee_passes_on_no_more_than_it_has() {
    let store = TestStore::new();
    let admin = store.open_as(&owner()).expect("opened");
    let arn = admin.create_key("").expect("created").arn;
    let own = GrantConstraints::subset(context(VOLUME));
    let operations = [GrantOperation::CreateGrant, GrantOperation::Decrypt];
    admin.issue_grant(&new_grant(&arn, &operations, own.clone())).expect("granted");
    let grantee = store.open_as(&user(4_000_000_001)).expect("opened");
    let to_friend = |operations: &[GrantOperation], constraints: &GrantConstraints| {
        let grant = new_grant(&arn, operations, constraints.clone());
        grantee.issue_grant(&NewGrant { grantee: user(4_000_000_002), ..grant })
    };
    to_friend(&[GrantOperation::Decrypt], &own).expect("the same");
    to_friend(&[GrantOperation::Decrypt], &GrantConstraints::equals(context(VOLUME))).expect("stricter");
    for outcome in [
        to_friend(&[GrantOperation::Encrypt], &own),
        to_friend(&[GrantOperation::Decrypt], &GrantConstraints::default()),
        to_friend(&[GrantOperation::Decrypt], &GrantConstraints::subset(context(OTHER_VOLUME))),
    ] {
        assert_eq!(outcome.expect_err("more than it has").kind, KmsErrorKind::Denied);
    }
}

#[test]
fn grants_are_retired_by_those_named_and_by_token() {
    let store = TestStore::new();
    let admin = store.open_as(&owner()).expect("opened");
    let arn = admin.create_key("").expect("created").arn;
    let retiring = user(4_000_000_003);
    let mut request = new_grant(&arn, &[GrantOperation::Decrypt], GrantConstraints::default());
    request.retiring = Some(retiring.clone());
    request.name = Some("one".to_owned());
    let first = admin.issue_grant(&request).expect("granted");
    let again = admin.issue_grant(&request).expect("granted");
    assert_eq!(first.grant_id, again.grant_id);
    assert_ne!(first.grant_token, again.grant_token, "a new token each time");

    let theirs = store.open_as(&retiring).expect("opened");
    let retirable = theirs.list_retirable_grants(&retiring).expect("listed");
    assert_eq!(retirable.iter().map(|grant| &grant.grant_id).collect::<Vec<_>>(), [&first.grant_id]);
    let grantee = store.open_as(&user(4_000_000_001)).expect("opened");
    let error = grantee.retire_grant(&arn, &first.grant_id).expect_err("it lacks RetireGrant");
    assert_eq!(error.kind, KmsErrorKind::Denied);
    assert_eq!(theirs.revoke_grant(&arn, &first.grant_id).expect_err("no").kind, KmsErrorKind::Denied);
    theirs.retire_grant_by_token(&first.grant_token).expect("retired");
    let gone = theirs.retire_grant_by_token(&again.grant_token).expect_err("gone");
    assert_eq!(gone.kind, KmsErrorKind::NotFound);
    assert_eq!(theirs.retire_grant_by_token("x").expect_err("no token").kind, KmsErrorKind::InvalidRequest);

    request.operations = vec![GrantOperation::Decrypt, GrantOperation::RetireGrant];
    let second = admin.issue_grant(&request).expect("granted").grant_id;
    grantee.retire_grant(&arn, &second).expect("the grantee may, if the grant says so");
}

#[test]
fn a_grant_of_what_the_key_cannot_do_is_refused() {
    let store = TestStore::new();
    let admin = store.open_as(&owner()).expect("opened");
    let arn = admin.create_key("").expect("created").arn;
    let sign = admin.issue_grant(&new_grant(&arn, &[GrantOperation::Sign], GrantConstraints::default()));
    assert_eq!(sign.expect_err("not a signing key").kind, KmsErrorKind::InvalidRequest);
    let both = GrantConstraints {
        encryption_context_equals: Some(context(VOLUME)),
        ..GrantConstraints::subset(context(VOLUME))
    };
    let both = admin.issue_grant(&new_grant(&arn, &[GrantOperation::Decrypt], both));
    assert_eq!(both.expect_err("one constraint at most").kind, KmsErrorKind::InvalidRequest);
}
