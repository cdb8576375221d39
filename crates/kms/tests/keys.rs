//! Keys of the embedded store: the managed default key, customer keys, their states and their names.

mod store;

use sealblk_kms::local::{LocalKms, Scope};
use sealblk_kms::{KeyState, Kms, KmsErrorKind};
use store::{TestStore, VOLUME, context, decrypt, default_key, owner, volume_key};

#[test]
fn r01_a_fresh_directory_answers_with_nothing_configured() {
    let store = TestStore::new();
    let key = default_key(&store.open());
    assert_eq!(key.key_manager, "AWS");
    assert_eq!(key.description, "Default key that protects my EBS volumes when no other key is defined");
    assert_eq!(key.key_state, KeyState::Enabled);
    assert!(key.enabled);
    assert_eq!(key.arn, format!("arn:aws:kms:local:000000000000:key/{}", key.key_id));
}

#[test]
fn r28_the_default_key_is_made_once_and_is_the_same_after_a_restart() {
    let store = TestStore::new();
    assert!(store.open().list_keys().expect("listed").is_empty(), "not before its first use");
    let first = default_key(&store.open());
    assert_eq!(default_key(&store.open()), first);
    assert_eq!(store.open().list_keys().expect("listed"), [first]);
}

#[test]
fn r28_two_regions_have_two_default_keys() {
    let store = TestStore::new();
    let scope = Scope { region: "eu-north-1".to_owned(), ..Scope::default() };
    let elsewhere =
        LocalKms::open(&store.dir().with_file_name("eu"), scope, owner()).expect("opened").via_service();
    let (here, there) = (default_key(&store.open()), default_key(&elsewhere));
    assert_ne!(here.key_id, there.key_id);
    assert_eq!(there.arn, format!("arn:aws:kms:eu-north-1:000000000000:key/{}", there.key_id));
    let foreign = store.open().describe_key(&there.arn).expect_err("another region's ARN");
    assert_eq!((foreign.kind, foreign.message.as_str()), (KmsErrorKind::NotFound, "Invalid arn eu-north-1"));
}

#[test]
fn r29_the_default_key_goes_by_id_arn_alias_and_alias_arn() {
    let store = TestStore::new();
    let kms = store.open();
    let key = default_key(&kms);
    for name in [&key.key_id, &key.arn, "alias/aws/ebs", "arn:aws:kms:local:000000000000:alias/aws/ebs"] {
        assert_eq!(kms.describe_key(name).expect(name), key);
    }
}

#[test]
fn r30_a_data_key_comes_from_the_default_key_by_its_alias() {
    let store = TestStore::new();
    let kms = store.open();
    let wrapped =
        kms.generate_data_key_without_plaintext("alias/aws/ebs", &context(VOLUME)).expect("generated");
    decrypt(&kms, &default_key(&kms).arn, &wrapped, VOLUME).expect("the default key wrapped it");
}

#[test]
fn r32_a_customer_key_is_created_disabled_and_enabled() {
    let store = TestStore::new();
    let kms = store.open();
    let key = kms.create_key("databases").expect("created");
    assert_eq!((key.key_manager.as_str(), key.description.as_str()), ("CUSTOMER", "databases"));
    kms.disable_key(&key.key_id).expect("disabled by id");
    let state = |kms: &LocalKms| kms.describe_key(&key.arn).expect("described").key_state;
    assert_eq!(state(&store.open()), KeyState::Disabled);
    kms.enable_key(&key.arn).expect("enabled by ARN");
    assert_eq!(state(&store.open()), KeyState::Enabled);
}

#[test]
fn r32_the_default_key_cannot_be_disabled() {
    let store = TestStore::new();
    let kms = store.open();
    let key = default_key(&kms);
    let error = kms.disable_key(&key.arn).expect_err("a managed key");
    assert_eq!(error.kind, KmsErrorKind::Denied);
    assert!(error.message.contains("kms:DisableKey") && error.message.contains(&key.arn), "{error}");
    assert_eq!(default_key(&kms).key_state, KeyState::Enabled);
}

#[test]
fn a_disabled_key_neither_wraps_nor_unwraps_until_it_is_enabled() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    let wrapped = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("generated");
    let before = decrypt(&kms, &arn, &wrapped, VOLUME).expect("decrypted");
    kms.disable_key(&arn).expect("disabled");

    let grant = store::attachment_grant(&arn, VOLUME);
    let errors = [
        kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).map(drop),
        decrypt(&kms, &arn, &wrapped, VOLUME).map(drop),
        store::re_encrypt(&kms, &wrapped, (&arn, VOLUME), ("alias/aws/ebs", VOLUME)).map(drop),
        kms.create_grant(&grant).map(drop),
    ];
    for error in errors.map(|outcome| outcome.expect_err("the key is disabled")) {
        assert_eq!(error.kind, KmsErrorKind::Disabled, "{error}");
        assert_eq!(error.message, format!("{arn} is disabled."));
        assert_eq!(error.key, arn);
    }
    kms.describe_key(&arn).expect("describing needs no enabled key");

    kms.enable_key(&arn).expect("enabled");
    assert_eq!(decrypt(&kms, &arn, &wrapped, VOLUME).expect("usable again"), before);
}

#[test]
fn keys_that_do_not_exist_are_not_found_in_the_words_of_kms() {
    let store = TestStore::new();
    let kms = store.open();
    let absent = "arn:aws:kms:local:000000000000:key/1234abcd-12ab-34cd-56ef-1234567890ab";
    for (name, message) in [
        (absent, format!("Key '{absent}' does not exist")),
        ("nonsense", "Invalid keyId 'nonsense'".to_owned()),
        ("alias/mine", "Alias arn:aws:kms:local:000000000000:alias/mine is not found.".to_owned()),
    ] {
        let error = kms.describe_key(name).expect_err(name);
        assert_eq!((error.kind, error.message), (KmsErrorKind::NotFound, message));
    }
    assert_eq!(kms.describe_key("").expect_err("empty").kind, KmsErrorKind::InvalidRequest);
    assert_eq!(kms.describe_key(&"k".repeat(4096)).expect_err("long").kind, KmsErrorKind::InvalidRequest);
}

#[test]
fn what_changes_a_key_takes_no_alias() {
    let store = TestStore::new();
    let kms = store.open();
    let (_, _) = volume_key(&kms);
    for outcome in [
        kms.disable_key("alias/aws/ebs"),
        kms.create_grant(&store::attachment_grant("alias/aws/ebs", VOLUME)).map(drop),
        kms.list_grants("alias/aws/ebs").map(drop),
    ] {
        let error = outcome.expect_err("an alias");
        assert_eq!(
            (error.kind, error.message.as_str()),
            (KmsErrorKind::NotFound, "Invalid keyId 'alias/aws/ebs'")
        );
    }
}

#[test]
fn a_managed_key_that_lost_its_alias_in_a_crash_is_taken_up_again() {
    let store = TestStore::new();
    let key = default_key(&store.open());
    std::fs::remove_file(store.dir().join("aliases.json")).expect("as if never written");
    assert_eq!(default_key(&store.open()), key);
}
