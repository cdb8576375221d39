//! The audit log of the embedded store: one record for every call, and no secret in any.

mod store;

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sealblk_kms::{DecryptRequest, Kms, KmsErrorKind};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::{
    OTHER_VOLUME, TestStore, VOLUME, attachment, attachment_grant, context, decrypt, owner, volume_key,
};

#[test]
fn r14_a_created_data_key_is_one_record_and_no_decrypt() {
    let store = TestStore::new();
    let (arn, wrapped) = volume_key(&store.open());
    let records = store.audit_of("GenerateDataKeyWithoutPlaintext");
    assert_eq!(records.len(), 1);
    let record = &records[0];
    assert_eq!(record["requestParameters"]["numberOfBytes"], 64);
    assert_eq!(record["requestParameters"]["encryptionContext"], json!({ "aws:ebs:id": VOLUME }));
    assert_eq!(record["requestParameters"]["keyId"], arn);
    assert_eq!(
        record["resources"],
        json!([{ "ARN": arn, "accountId": "000000000000", "type": "AWS::KMS::Key" }])
    );
    assert_eq!(record["responseElements"], Value::Null);
    assert_eq!(record["readOnly"], true);
    assert_eq!(record["additionalEventData"]["ciphertextSha256"], sha256_hex(&wrapped.0), "r15");
    assert!(store.audit_of("Decrypt").is_empty());
}

#[test]
fn r16_an_attachment_is_create_grant_decrypt_retire_grant() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let before = store.audit().len();
    let grant = kms.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    let (me, own) = (attachment(), context(VOLUME));
    let request = DecryptRequest { wrapped: &wrapped, key: &arn, context: &own, grant: Some((&grant, &me)) };
    kms.decrypt(&request).expect("decrypted");
    kms.retire_grant(&arn, &grant).expect("retired");

    let records = &store.audit()[before..];
    let names: Vec<_> = records.iter().map(|record| record["eventName"].as_str().expect("a name")).collect();
    assert_eq!(names, ["CreateGrant", "Decrypt", "RetireGrant"]);
    assert_eq!(records[0]["responseElements"], json!({ "grantId": grant.0, "keyId": arn }));
    assert_eq!(records[0]["readOnly"], false);
    assert_eq!(records[1]["userIdentity"]["principalId"], me.0);
    assert_eq!(records[1]["userIdentity"]["invokedBy"], owner().0);
    assert_eq!(records[1]["requestParameters"]["grantId"], grant.0);
    assert_eq!(records[2]["requestParameters"], json!({ "keyId": arn, "grantId": grant.0 }));
}

#[test]
fn every_record_has_cloudtrails_fields() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    decrypt(&kms, &arn, &wrapped, VOLUME).expect("decrypted");
    for record in store.audit() {
        assert_eq!(record["eventSource"], "kms.amazonaws.com");
        assert_eq!(record["awsRegion"], "local");
        assert_eq!(record["userIdentity"]["principalId"], owner().0);
        assert_eq!(record["requestID"].as_str().map(str::len), Some(36));
        assert_eq!(record["eventID"].as_str().map(str::len), Some(36));
        let time: jiff::Timestamp = record["eventTime"].as_str().expect("a time").parse().expect("ISO 8601");
        assert!(time <= jiff::Timestamp::now());
        assert!(record.get("errorCode").is_none());
    }
    let material = |operation| store.audit_of(operation)[0]["additionalEventData"]["keyMaterialId"].clone();
    assert_eq!(material("Decrypt"), material("GenerateDataKeyWithoutPlaintext"));
    assert_eq!(material("Decrypt").as_str().map(str::len), Some(64));
}

#[test]
fn a_failed_call_is_recorded_under_the_request_id_of_its_error() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let error = decrypt(&kms, &arn, &wrapped, OTHER_VOLUME).expect_err("another volume");
    let record = store.audit().pop().expect("a record");
    assert_eq!(record["eventName"], "Decrypt");
    assert_eq!(record["errorCode"], "InvalidCiphertextException");
    assert_eq!(record["errorMessage"], error.message);
    assert_eq!(record["requestID"], error.request_id);
    assert_eq!(record["requestParameters"]["encryptionContext"]["aws:ebs:id"], OTHER_VOLUME);
}

#[test]
fn every_verb_leaves_one_record() {
    let store = TestStore::new();
    let kms = store.open();
    let arn = kms.create_key("").expect("created").arn;
    kms.describe_key(&arn).expect("described");
    kms.list_keys().expect("listed");
    let wrapped = kms.generate_data_key_without_plaintext(&arn, &context(VOLUME)).expect("generated");
    store::re_encrypt(&kms, &wrapped, (&arn, VOLUME), (&arn, OTHER_VOLUME)).expect("re-encrypted");
    kms.disable_key(&arn).expect("disabled");
    kms.enable_key(&arn).expect("enabled");
    kms.list_grants(&arn).expect("listed");
    let records = store.audit();
    let names: Vec<_> = records.iter().map(|record| record["eventName"].as_str().expect("a name")).collect();
    let expected = [
        "CreateKey",
        "DescribeKey",
        "ListKeys",
        "GenerateDataKeyWithoutPlaintext",
        "ReEncrypt",
        "DisableKey",
        "EnableKey",
        "ListGrants",
    ];
    assert_eq!(names, expected);
}

#[test]
fn a_call_whose_record_cannot_be_written_fails_and_does_nothing() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let log = store.dir().join("audit.log");
    std::fs::rename(&log, log.with_extension("kept")).expect("renamed");
    std::fs::create_dir(&log).expect("a directory where the log should be");

    let error = decrypt(&kms, &arn, &wrapped, VOLUME).expect_err("no record, no key");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains("audit.log"), "{error}");
    kms.create_grant(&attachment_grant(&arn, VOLUME)).expect_err("no record, no grant");

    std::fs::remove_dir(&log).expect("removed");
    assert!(kms.list_grants(&arn).expect("listed").is_empty());
}

#[test]
fn a_full_disk_under_the_log_fails_the_call() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let log = store.dir().join("audit.log");
    std::fs::remove_file(&log).expect("removed");
    std::os::unix::fs::symlink("/dev/full", &log).expect("a log that takes nothing");
    let error = decrypt(&kms, &arn, &wrapped, VOLUME).expect_err("no record, no key");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
}

#[test]
fn r12_no_file_of_the_store_holds_a_key_in_any_form() {
    let store = TestStore::new();
    let kms = store.open();
    let (arn, wrapped) = volume_key(&kms);
    let data_key = decrypt(&kms, &arn, &wrapped, VOLUME).expect("decrypted");
    let root_key = std::fs::read(store.dir().join("root.key")).expect("the root key");
    let text = std::fs::read(store.dir().join("audit.log")).expect("the log");
    assert!(holds(&text, b"GenerateDataKeyWithoutPlaintext"), "the search finds what is there");

    for secret in [&data_key[..], &data_key[..32], &data_key[32..], &root_key] {
        for file in files(&store.dir()) {
            let content = std::fs::read(&file).expect("a file of the store");
            let its_place = secret == root_key && file.ends_with("root.key");
            let found = forms(secret).iter().any(|form| holds(&content, form));
            assert_eq!(found, its_place, "{} bytes of secret in {}", secret.len(), file.display());
        }
    }
    assert!(!forms(&wrapped.0).iter().any(|form| holds(&text, form)), "the log holds no wrapped key either");
}

fn sha256_hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Raw, hex in both cases, base64 without the characters that depend on what follows.
fn forms(secret: &[u8]) -> [Vec<u8>; 4] {
    let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut base64 = STANDARD.encode(secret);
    base64.truncate(secret.len() / 3 * 4);
    [secret.to_vec(), hex.to_uppercase().into_bytes(), hex.into_bytes(), base64.into_bytes()]
}

fn holds(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
