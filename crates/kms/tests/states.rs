//! Key states of the embedded store (ebs.md C.1, C.2): which verb works in which state, deletion, aliases, key kinds.

mod store;

use std::time::Duration;

use sealblk_kms::local::{KeySpec, KeyUsage, LocalKms, NewKey};
use sealblk_kms::{KeyState, Kms, KmsError, KmsErrorKind};
use store::{TestStore, VOLUME, attachment_grant, context, decrypt, default_key, owner, volume_key};

const DAY: Duration = Duration::from_secs(86_400);

fn kind<T>(outcome: Result<T, KmsError>) -> KmsErrorKind {
    match outcome {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.kind,
    }
}

/// What each verb of the table in C.1 answers for a key: `None` is "ok".
fn table(kms: &LocalKms, arn: &str, wrapped: &sealblk_kms::WrappedKey) -> [Option<KmsErrorKind>; 13] {
    fn told<T>(outcome: Result<T, KmsError>) -> Option<KmsErrorKind> {
        outcome.err().map(|error| error.kind)
    }
    let own = context(VOLUME);
    let grant = kms.list_grants(arn).expect("ListGrants works in every state").pop().expect("a grant");
    kms.describe_key(arn).expect("DescribeKey works in every state");
    kms.get_key_policy(arn).expect("GetKeyPolicy works in every state");
    kms.get_key_rotation_status(arn).expect("GetKeyRotationStatus works in every state");
    let again = kms.list_aliases(Some(arn)).expect("ListAliases works in every state").pop();
    kms.delete_alias(&again.expect("an alias").alias_name).expect("DeleteAlias works in every state");
    kms.retire_grant(arn, &grant.grant_id).expect("RetireGrant works in every state");
    [
        told(decrypt(kms, arn, wrapped, VOLUME)),
        told(kms.generate_data_key_without_plaintext(arn, &own)),
        told(store::re_encrypt(kms, wrapped, (arn, VOLUME), (arn, VOLUME))),
        told(kms.create_grant(&attachment_grant(arn, VOLUME))),
        told(kms.rotate_key_on_demand(arn)),
        told(kms.enable_key_rotation(arn, None)),
        told(kms.disable_key_rotation(arn)),
        told(kms.create_alias("alias/table", arn)),
        told(kms.update_alias("alias/other", arn)),
        told(kms.update_key_description(arn, "x")),
        told(kms.cancel_key_deletion(arn)),
        told(kms.schedule_key_deletion(arn, None)),
        told(kms.disable_key(arn)),
    ]
}

#[test]
fn r32_each_verb_answers_by_the_keys_state() {
    use KmsErrorKind::{Disabled, InvalidState, PendingDeletion};
    for (state, expected) in [
        (
            KeyState::Disabled,
            [
                Some(Disabled),
                Some(Disabled),
                Some(Disabled),
                Some(Disabled),
                Some(Disabled),
                Some(Disabled),
                Some(Disabled),
                None,
                None,
                None,
                Some(InvalidState),
                None,
                Some(PendingDeletion),
            ],
        ),
        (
            KeyState::PendingDeletion,
            [
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                Some(PendingDeletion),
                None,
                None,
                Some(PendingDeletion),
            ],
        ),
    ] {
        let store = TestStore::new();
        let kms = store.open();
        let request = NewKey { alias: Some("alias/mine".to_owned()), ..NewKey::default() };
        let arn = kms.create_key_as(&request).expect("created").arn;
        let other = kms.create_key("").expect("created").arn;
        kms.create_alias("alias/other", &other).expect("an alias");
        let wrapped = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key");
        kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("a grant");
        match state {
            KeyState::Disabled => kms.disable_key(&arn).expect("disabled"),
            _ => drop(kms.schedule_key_deletion(&arn, None).expect("scheduled")),
        }
        // CancelKeyDeletion, last but two, leaves the key disabled: the two after it find it so.
        assert_eq!(table(&kms, &arn, &wrapped), expected, "{state:?}");
    }
}

#[test]
fn a_key_that_waits_for_its_deletion_says_until_when() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    for days in [6, 31] {
        assert_eq!(kind(kms.schedule_key_deletion(&arn, Some(days))), KmsErrorKind::InvalidRequest);
    }
    let scheduled = kms.schedule_key_deletion(&arn, Some(8)).expect("scheduled");
    assert_eq!((scheduled.key_state, scheduled.pending_window_in_days), (KeyState::PendingDeletion, 8));
    let key = kms.describe_key(&arn).expect("described");
    assert_eq!(key.deletion_date, Some(scheduled.deletion_date));
    assert_eq!(key.pending_deletion_window_in_days, Some(8));
    assert!(!key.enabled);
    let until = (jiff::Timestamp::now() + DAY * 8).strftime("%Y-%m-%d").to_string();
    let error = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect_err("unusable");
    assert_eq!(error.message, format!("{arn} is pending deletion until {until}."));
    assert_eq!((error.operation, &error.key), ("GenerateDataKeyWithoutPlaintext", &arn));

    let kept = kms.cancel_key_deletion(&arn).expect("cancelled");
    assert_eq!((kept.key_state, kept.deletion_date), (KeyState::Disabled, None));
    kms.enable_key(&arn).expect("enabled");
    let later = store.open().with_clock_ahead(DAY * 60);
    later.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("cancelled is cancelled");
}

#[test]
fn after_its_date_a_key_is_gone_with_its_material_aliases_and_grants() {
    let store = TestStore::new();
    let kms = store.open();
    let request = NewKey { alias: Some("alias/mine".to_owned()), ..NewKey::default() };
    let key = kms.create_key_as(&request).expect("created");
    let other = kms.create_key("").expect("created").arn;
    let wrapped = kms.generate_data_key_without_plaintext(&key.arn, &context(VOLUME)).expect("a data key");
    kms.create_grant(&attachment_grant(&key.arn, VOLUME)).expect("a grant");
    kms.rotate_key_on_demand(&key.arn).expect("rotated, so that there is a previous generation");
    kms.schedule_key_deletion(&key.arn, Some(7)).expect("scheduled");

    let before = store.open().with_clock_ahead(DAY * 7 - Duration::from_secs(60));
    assert_eq!(before.describe_key(&key.arn).expect("still there").key_state, KeyState::PendingDeletion);
    let after = store.open().with_clock_ahead(DAY * 7 + Duration::from_secs(60));
    after.describe_key(&other).expect("any call destroys what is due");
    let left = |folder: &str| {
        let entries = std::fs::read_dir(store.dir().join(folder)).expect("listed");
        let names = entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text"));
        names.filter(|name| name.contains(&key.key_id)).collect::<Vec<_>>()
    };
    assert!(left("keys").is_empty() && left("grants").is_empty(), "{:?} {:?}", left("keys"), left("grants"));
    assert_eq!(kind(after.describe_key(&key.arn)), KmsErrorKind::NotFound);
    assert_eq!(kind(after.describe_key("alias/mine")), KmsErrorKind::NotFound);
    assert_eq!(kind(after.cancel_key_deletion(&key.arn)), KmsErrorKind::NotFound);
    assert_eq!(kind(decrypt(&after, &other, &wrapped, VOLUME)), KmsErrorKind::InvalidCiphertext);
    after.create_alias("alias/mine", &other).expect("the name is free again");
    assert_eq!(store.audit_of("DeleteKey").len(), 1);
    assert_eq!(store.audit_of("DeleteKey")[0]["userIdentity"]["principalId"], "kms.amazonaws.com");
}

#[test]
fn r29_names_below_alias_aws_are_reserved_and_others_follow_the_rules() {
    let store = TestStore::new();
    let kms = store.open();
    let listed = kms.list_aliases(None).expect("listed");
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].alias_name.as_str(), &listed[0].target_key_id), ("alias/aws/ebs", &None));
    let managed = default_key(&kms);
    assert_eq!(kms.list_aliases(None).expect("listed")[0].target_key_id, Some(managed.key_id.clone()));

    let (a, b) = (kms.create_key("").expect("created"), kms.create_key("").expect("created"));
    for outcome in [
        kms.create_alias("alias/aws/mine", &a.arn),
        kms.update_alias("alias/aws/ebs", &a.arn),
        kms.delete_alias("alias/aws/ebs"),
        kms.create_alias("alias/managed", &managed.arn),
    ] {
        assert_eq!(kind(outcome), KmsErrorKind::Denied);
    }
    for name in ["mine", "alias/", "alias/a b", &format!("alias/{}", "a".repeat(251))] {
        assert_eq!(kind(kms.create_alias(name, &a.arn)), KmsErrorKind::InvalidRequest, "{name}");
    }
    kms.create_alias("alias/mine", &a.arn).expect("created");
    assert_eq!(kind(kms.create_alias("alias/mine", &b.arn)), KmsErrorKind::AlreadyExists);
    assert_eq!(kind(kms.update_alias("alias/none", &b.arn)), KmsErrorKind::NotFound);
    assert_eq!(kms.describe_key("alias/mine").expect("described").arn, a.arn);
    kms.update_alias("alias/mine", &b.key_id).expect("moved");
    assert_eq!(kms.describe_key("alias/mine").expect("described").arn, b.arn);
    kms.update_alias("alias/mine", &managed.arn).expect_err("not to the managed key");
    let rsa = NewKey { spec: KeySpec::RSA_2048, usage: Some(KeyUsage::ENCRYPT_DECRYPT), ..NewKey::default() };
    let rsa = kms.create_key_as(&rsa).expect("created").arn;
    assert_eq!(kind(kms.update_alias("alias/mine", &rsa)), KmsErrorKind::InvalidRequest);
    kms.delete_alias("alias/mine").expect("deleted");
    assert_eq!(kind(kms.describe_key("alias/mine")), KmsErrorKind::NotFound);
}

#[test]
fn what_c3_says_takes_no_alias_takes_none() {
    let store = TestStore::new();
    let kms = store.open();
    let name = "alias/mine";
    kms.create_key_as(&NewKey { alias: Some(name.to_owned()), ..NewKey::default() }).expect("created");
    let id = sealblk_kms::GrantId("0".repeat(64));
    for outcome in [
        kms.enable_key(name),
        kms.disable_key(name),
        kms.schedule_key_deletion(name, None).map(drop),
        kms.cancel_key_deletion(name).map(drop),
        kms.rotate_key_on_demand(name),
        kms.enable_key_rotation(name, None),
        kms.disable_key_rotation(name),
        kms.get_key_rotation_status(name).map(drop),
        kms.list_key_rotations(name).map(drop),
        kms.get_key_policy(name).map(drop),
        kms.put_key_policy(name, &serde_json::json!({ "Statement": [] })),
        kms.create_grant(&attachment_grant(name, VOLUME)).map(drop),
        kms.list_grants(name).map(drop),
        kms.retire_grant(name, &id),
        kms.revoke_grant(name, &id),
        kms.create_alias("alias/second", name),
        kms.update_alias(name, name),
        kms.update_key_description(name, ""),
    ] {
        let error = outcome.expect_err("an alias");
        assert_eq!(
            (error.kind, error.message.as_str()),
            (KmsErrorKind::NotFound, "Invalid keyId 'alias/mine'")
        );
    }
}

#[test]
fn r32_the_managed_key_cannot_be_changed() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = default_key(&kms).arn;
    for outcome in [
        kms.disable_key(&arn),
        kms.enable_key(&arn),
        kms.schedule_key_deletion(&arn, None).map(drop),
        kms.rotate_key_on_demand(&arn),
        kms.enable_key_rotation(&arn, Some(90)),
        kms.disable_key_rotation(&arn),
        kms.put_key_policy(&arn, &serde_json::json!({ "Statement": [] })),
        kms.update_key_description(&arn, ""),
    ] {
        let error = outcome.expect_err("a managed key");
        assert_eq!(error.kind, KmsErrorKind::Denied, "{error}");
    }
    assert!(kms.get_key_rotation_status(&arn).expect("told").key_rotation_enabled);
}

#[test]
fn the_managed_key_serves_volumes_and_snapshots_only() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let direct = store.open_as(&owner()).expect("opened");
    direct.describe_key("alias/aws/ebs").expect("metadata is for everybody in the account's root");
    for outcome in [
        decrypt(&direct, &arn, &wrapped, VOLUME).map(drop),
        direct.generate_data_key_without_plaintext(&arn, &context(VOLUME)).map(drop),
        direct.create_grant(&attachment_grant(&arn, VOLUME)).map(drop),
    ] {
        let error = outcome.expect_err("not directly");
        assert_eq!(error.kind, KmsErrorKind::Denied);
        assert!(error.message.contains("through volumes and snapshots only"), "{error}");
    }
}

#[test]
fn r33_keys_of_other_kinds_exist_and_wrap_nothing() {
    let store = TestStore::new();
    let first = NewKey { spec: KeySpec::HMAC_512, ..NewKey::default() };
    store.open().create_key_as(&first).expect("as a store's first key, too");
    let kms = store.open();
    let (managed, wrapped) = volume_key(&kms);
    for (spec, usage, told) in [
        (KeySpec::RSA_2048, Some(KeyUsage::ENCRYPT_DECRYPT), "key spec is RSA_2048"),
        (KeySpec::RSA_4096, Some(KeyUsage::SIGN_VERIFY), "key usage is SIGN_VERIFY"),
        (KeySpec::ECC_NIST_P256, Some(KeyUsage::SIGN_VERIFY), "key usage is SIGN_VERIFY"),
        (KeySpec::ECC_NIST_P256, Some(KeyUsage::KEY_AGREEMENT), "key usage is KEY_AGREEMENT"),
        (KeySpec::HMAC_256, None, "key usage is GENERATE_VERIFY_MAC"),
    ] {
        let key = kms.create_key_as(&NewKey { spec, usage, ..NewKey::default() }).expect("created");
        assert_eq!((key.key_spec.as_str(), &key.customer_master_key_spec), (&*spec.name(), &key.key_spec));
        assert_eq!(key.current_key_material_id, None);
        let error = kms.generate_data_key_without_plaintext(&key.arn, &context(VOLUME)).expect_err("no");
        assert_eq!(error.kind, KmsErrorKind::InvalidKeyUsage);
        let expected = format!("{} {told} which is not valid for GenerateDataKeyWithoutPlaintext.", key.arn);
        assert_eq!(error.message, expected);
        let moved = store::re_encrypt(&kms, &wrapped, (&managed, VOLUME), (&key.arn, VOLUME));
        assert_eq!(kind(moved), KmsErrorKind::InvalidKeyUsage);
        assert_eq!(kind(kms.rotate_key_on_demand(&key.arn)), KmsErrorKind::Unsupported);
        assert_eq!(kind(kms.enable_key_rotation(&key.arn, None)), KmsErrorKind::Unsupported);
    }
    let refused = NewKey { spec: KeySpec::RSA_2048, ..NewKey::default() };
    assert_eq!(kind(kms.create_key_as(&refused)), KmsErrorKind::InvalidRequest, "RSA needs a usage");
    let refused = NewKey { usage: Some(KeyUsage::ENCRYPT_DECRYPT), spec: KeySpec::HMAC_224, ..refused };
    assert_eq!(kind(kms.create_key_as(&refused)), KmsErrorKind::InvalidRequest);
}

#[test]
fn describing_a_key_tells_all_that_kms_tells() {
    let store = TestStore::new();
    let key = serde_json::to_value(default_key(&store.open())).expect("JSON");
    for (name, value) in [
        ("AWSAccountId", "000000000000"),
        ("KeyUsage", "ENCRYPT_DECRYPT"),
        ("KeyState", "Enabled"),
        ("Origin", "AWS_KMS"),
        ("KeyManager", "AWS"),
        ("CustomerMasterKeySpec", "SYMMETRIC_DEFAULT"),
        ("KeySpec", "SYMMETRIC_DEFAULT"),
    ] {
        assert_eq!(key[name], value, "{name}");
    }
    assert_eq!(key["EncryptionAlgorithms"], serde_json::json!(["SYMMETRIC_DEFAULT"]));
    assert_eq!((&key["MultiRegion"], &key["Enabled"]), (&false.into(), &true.into()));
    assert_eq!(key["CurrentKeyMaterialId"].as_str().map(str::len), Some(64));
    assert!(key["CreationDate"].is_f64() && key.get("DeletionDate").is_none());
}
