//! Rotation in the embedded store: old wrappings open for ever, new ones use the newest material.

mod store;

use std::time::Duration;

use sealblk_kms::local::RotationType;
use sealblk_kms::{Kms, KmsErrorKind};
use store::{TestStore, VOLUME, context, decrypt, default_key, re_encrypt};

const DAY: Duration = Duration::from_secs(86_400);

/// The material that a wrapped key names (docs/FORMAT.md).
fn material_of(wrapped: &sealblk_kms::WrappedKey) -> String {
    wrapped.0[24..56].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn r32_what_was_wrapped_before_a_rotation_opens_after_it_and_new_wrappings_use_new_material() {
    let store = TestStore::new();
    let kms = store.open();
    let key = kms.create_key("").expect("created");
    let old = kms.generate_data_key_without_plaintext(&key.arn, &context(VOLUME)).expect("a data key");
    let plain = decrypt(&kms, &key.arn, &old, VOLUME).expect("decrypted");
    assert_eq!(Some(material_of(&old)), key.current_key_material_id);

    kms.rotate_key_on_demand(&key.arn).expect("rotated");
    let rotated = kms.describe_key(&key.arn).expect("described");
    assert_ne!(rotated.current_key_material_id, key.current_key_material_id);
    assert_eq!(decrypt(&kms, &key.arn, &old, VOLUME).expect("under old material"), plain);
    let new = kms.generate_data_key_without_plaintext(&key.arn, &context(VOLUME)).expect("a data key");
    assert_eq!(Some(material_of(&new)), rotated.current_key_material_id);
    let moved = re_encrypt(&kms, &old, (&key.arn, VOLUME), (&key.arn, VOLUME)).expect("moved");
    assert_eq!(Some(material_of(&moved)), rotated.current_key_material_id, "ReEncrypt moves to new material");
    assert_eq!(decrypt(&kms, &key.arn, &moved, VOLUME).expect("decrypted"), plain);

    let rotations = kms.list_key_rotations(&key.arn).expect("listed");
    let told: Vec<_> =
        rotations.iter().map(|entry| (entry.key_material_state, entry.rotation_type)).collect();
    assert_eq!(told, [("NON_CURRENT", None), ("CURRENT", Some(RotationType::OnDemand))]);
    assert_eq!(rotations[0].key_material_id, material_of(&old));
}

#[test]
fn the_twenty_sixth_rotation_on_demand_is_refused() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    for _ in 0..25 {
        kms.rotate_key_on_demand(&arn).expect("rotated");
    }
    let error = kms.rotate_key_on_demand(&arn).expect_err("enough");
    assert_eq!(error.kind, KmsErrorKind::LimitExceeded);
    assert!(error.message.starts_with("The on-demand rotations limit has been reached"), "{error}");
    assert_eq!(kms.list_key_rotations(&arn).expect("listed").len(), 26);
}

#[test]
fn a_schedule_rotates_at_the_first_use_from_its_date_on() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    assert!(!kms.get_key_rotation_status(&arn).expect("told").key_rotation_enabled, "off unless asked for");
    for days in [89, 2561] {
        let error = kms.enable_key_rotation(&arn, Some(days)).expect_err("out of range");
        assert_eq!(error.kind, KmsErrorKind::InvalidRequest);
    }
    kms.enable_key_rotation(&arn, Some(90)).expect("enabled");
    let status = kms.get_key_rotation_status(&arn).expect("told");
    assert_eq!((status.key_rotation_enabled, status.rotation_period_in_days), (true, Some(90)));

    let wrap = |days: u32| {
        let kms = store.open().with_clock_ahead(DAY * days);
        material_of(&kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key"))
    };
    let first = wrap(0);
    assert_eq!(wrap(89), first);
    let second = wrap(91);
    assert_ne!(second, first);
    assert_eq!(wrap(92), second);
    // Three dates pass unused: one rotation, and the next a period after it.
    let third = wrap(91 + 3 * 90);
    assert_ne!(third, second);
    assert_eq!(wrap(91 + 3 * 90 + 89), third);
    let entries = store.open().list_key_rotations(&arn).expect("listed");
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[2].rotation_type, Some(RotationType::Automatic));
    assert_eq!(store.audit_of("RotateKey").len(), 2);

    kms.disable_key_rotation(&arn).expect("disabled");
    assert_eq!(wrap(5000), third);
}

#[test]
fn a_disabled_key_is_not_rotated_before_it_is_enabled() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    kms.enable_key_rotation(&arn, None).expect("enabled");
    kms.disable_key(&arn).expect("disabled");
    let later = store.open().with_clock_ahead(DAY * 400);
    assert_eq!(later.list_key_rotations(&arn).expect("listed").len(), 1);
    later.enable_key(&arn).expect("enabled");
    assert_eq!(later.list_key_rotations(&arn).expect("listed").len(), 2);
}

#[test]
fn the_managed_key_is_rotated_yearly() {
    let store = TestStore::new();
    let arn = default_key(&store.open()).arn;
    let status = store.open().get_key_rotation_status(&arn).expect("told");
    assert_eq!(status.rotation_period_in_days, Some(365));
    let wrap = |days: u32| {
        let kms = store.open().with_clock_ahead(DAY * days);
        material_of(&kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key"))
    };
    let first = wrap(364);
    assert_ne!(wrap(366), first);
}

#[test]
fn two_who_find_a_rotation_due_rotate_once() {
    let store = TestStore::new();
    let arn = store.open().create_key("").expect("created").arn;
    store.open().enable_key_rotation(&arn, Some(90)).expect("enabled");
    let materials: Vec<String> = std::thread::scope(|scope| {
        let wrap = || {
            let kms = store.open().with_clock_ahead(DAY * 100);
            material_of(&kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("a data key"))
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(wrap)).collect();
        threads.into_iter().map(|thread| thread.join().expect("wrapped")).collect()
    });
    assert!(materials.iter().all(|material| *material == materials[0]), "{materials:?}");
    assert_eq!(store.open().list_key_rotations(&arn).expect("listed").len(), 2);
}
