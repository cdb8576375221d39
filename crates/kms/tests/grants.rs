//! Grants of the embedded store: an attachment may unwrap the key of its own volume, while it is attached.

mod store;

use sealblk_kms::{
    DecryptRequest, GrantId, GrantOperation, Kms, KmsError, KmsErrorKind, Principal, WrappedKey,
};
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
    assert_eq!(listed[0].constraints.encryption_context_subset, context(VOLUME));

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
    let (arn, wrapped) = volume_key(&kms);
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    let outsider = store.open_as(&attachment()).expect("opened");
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
    ] {
        let error = outcome.expect_err("not the owner");
        assert_eq!(error.kind, KmsErrorKind::Denied, "{error}");
        assert!(error.message.starts_with(&format!("User: {} is not authorized", attachment())), "{error}");
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
