//! Wrapped data keys: what unwraps them, and that nothing else does.

mod store;

use proptest::prelude::*;
use sealblk_kms::{EncryptionContext, Kms, KmsErrorKind, WrappedKey};
use store::{OTHER_VOLUME, TestStore, VOLUME, decrypt, volume_key};

#[test]
fn r11_the_wrapped_key_gives_the_same_64_bytes_in_every_process_that_has_the_store() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let key = decrypt(&store.open(), &arn, &wrapped, VOLUME).expect("decrypted");
    assert_eq!(decrypt(&store.open(), &arn, &wrapped, VOLUME).expect("decrypted again"), key);
    assert_ne!(key, [0; 64]);
}

#[test]
fn r10_a_data_key_has_two_different_halves() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let key = decrypt(&store.open(), &arn, &wrapped, VOLUME).expect("decrypted");
    assert_ne!(key[..32], key[32..]);
}

#[test]
fn r11_another_volume_id_is_invalid_ciphertext() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let error = decrypt(&kms, &arn, &wrapped, OTHER_VOLUME).expect_err("another volume");
    assert_eq!((error.kind, error.operation, &error.key), (KmsErrorKind::InvalidCiphertext, "Decrypt", &arn));
}

#[test]
fn a_flipped_bit_in_any_byte_is_invalid_ciphertext() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    for position in 0..wrapped.0.len() {
        let mut damaged = wrapped.clone();
        damaged.0[position] ^= 1 << (position % 8);
        let error = decrypt(&kms, &arn, &damaged, VOLUME).expect_err("damaged");
        assert_eq!(error.kind, KmsErrorKind::InvalidCiphertext, "byte {position}: {error}");
    }
}

#[test]
fn another_key_than_the_one_that_wrapped_is_refused() {
    let store = TestStore::new();
    let kms = store.open();
    let (_, wrapped) = volume_key(&kms);
    let other = kms.create_key("").expect("created").arn;
    let error = decrypt(&kms, &other, &wrapped, VOLUME).expect_err("the other key did not wrap it");
    assert_eq!(error.kind, KmsErrorKind::IncorrectKey);
}

#[test]
fn a_key_wrapped_by_another_store_is_refused() {
    let (here, there) = (TestStore::new(), TestStore::new());
    let (_, wrapped) = volume_key(&there.open());
    let (arn, _) = volume_key(&here.open());
    let error = decrypt(&here.open(), &arn, &wrapped, VOLUME).expect_err("foreign");
    assert_eq!(error.kind, KmsErrorKind::InvalidCiphertext);
    let again = store::re_encrypt(&here.open(), &wrapped, (&arn, VOLUME), (&arn, VOLUME));
    assert_eq!(again.expect_err("foreign").kind, KmsErrorKind::InvalidCiphertext);
}

#[test]
fn two_wrappings_of_one_volume_share_neither_key_nor_nonce() {
    let store = TestStore::new();
    let kms = store.open();
    let ((arn, first), (_, second)) = (volume_key(&kms), volume_key(&kms));
    assert_ne!(first.0[56..88], second.0[56..88], "nonce");
    let keys = [&first, &second].map(|wrapped| decrypt(&kms, &arn, wrapped, VOLUME).expect("decrypted"));
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn r13_re_encrypting_keeps_the_data_key_and_binds_it_to_the_new_context_and_key() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let to = kms.create_key("").expect("created").arn;
    let moved = store::re_encrypt(&kms, &wrapped, (&arn, VOLUME), (&to, OTHER_VOLUME)).expect("moved");
    let (before, after) = (decrypt(&kms, &arn, &wrapped, VOLUME), decrypt(&kms, &to, &moved, OTHER_VOLUME));
    assert_eq!(before.expect("the old one still opens"), after.expect("the new one opens"));
    let old_context = decrypt(&kms, &to, &moved, VOLUME).expect_err("the old context");
    assert_eq!(old_context.kind, KmsErrorKind::InvalidCiphertext);
    let wrong = store::re_encrypt(&kms, &wrapped, (&arn, OTHER_VOLUME), (&to, VOLUME));
    assert_eq!(wrong.expect_err("wrong source context").kind, KmsErrorKind::InvalidCiphertext);
}

#[test]
fn an_empty_or_oversized_context_is_refused() {
    let store = TestStore::new();
    let kms = store.open();
    let empty = EncryptionContext::from_iter([]);
    let huge = EncryptionContext::from_iter([("name".to_owned(), "v".repeat(8192))]);
    for context in [empty, huge] {
        let error = kms.generate_data_key_without_plaintext("alias/aws/ebs", &context).expect_err("refused");
        assert_eq!(error.kind, KmsErrorKind::InvalidRequest);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Pairs that concatenate to the same text are different contexts all the same.
    #[test]
    fn only_an_equal_context_unwraps(
        bound in prop::collection::btree_map("[ab=:]{0,3}", "[ab=:]{0,3}", 1..3),
        given in prop::collection::btree_map("[ab=:]{0,3}", "[ab=:]{0,3}", 1..3),
    ) {
        let store = TestStore::new();
        let kms = store.open();
        let (arn, _) = volume_key(&kms);
        let bound = EncryptionContext::from_iter(bound);
        let given = EncryptionContext::from_iter(given);
        let wrapped = kms.generate_data_key_without_plaintext(&arn, &bound).expect("generated");
        let ask = |context| {
            let request = sealblk_kms::DecryptRequest { wrapped: &wrapped, key: &arn, context, grant: None };
            kms.decrypt(&request).map(drop).map_err(|error| error.kind)
        };
        prop_assert_eq!(ask(&bound), Ok(()));
        let expected = if bound == given { Ok(()) } else { Err(KmsErrorKind::InvalidCiphertext) };
        prop_assert_eq!(ask(&given), expected);
    }

    /// Bytes from anywhere are refused, not a panic.
    #[test]
    fn arbitrary_bytes_are_invalid_ciphertext(bytes in prop::collection::vec(any::<u8>(), 0..400), ours in any::<bool>()) {
        let store = TestStore::new();
        let kms = store.open();
        let (arn, wrapped) = volume_key(&kms);
        let mut blob = if ours { wrapped.0[..24].to_vec() } else { Vec::new() };
        blob.extend(bytes);
        let error = decrypt(&kms, &arn, &WrappedKey(blob), VOLUME).expect_err("not a wrapped key");
        prop_assert_eq!(error.kind, KmsErrorKind::InvalidCiphertext);
    }
}
