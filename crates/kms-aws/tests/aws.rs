//! The AWS KMS provider through its helper program, against two emulators of the service.

mod emulator;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use emulator::{Emulator, REGION};
use sealblk_kms::helper::{HelperKms, HelperProgram, ProviderConfig};
use sealblk_kms::{
    DecryptRequest, EncryptionContext, GrantOperation, GrantRequest, KeyState, Kms, KmsError, KmsErrorKind,
    Principal, ReEncryptRequest, Unlock, WrappedKey,
};

const VOLUME: &str = "vol-0123456789abcdef0";
const OTHER: &str = "vol-0fedcba9876543210";

/// The provider at `url`, with credentials that emulators take.
fn helper(url: &str, timeout: Duration) -> HelperKms {
    let credentials = [("AWS_ACCESS_KEY_ID", "test"), ("AWS_SECRET_ACCESS_KEY", "test")];
    HelperKms {
        program: HelperProgram {
            path: env!("CARGO_BIN_EXE_sealblk-kms-aws").into(),
            args: Vec::new(),
            environment: credentials.iter().map(|(name, value)| (name.into(), value.into())).collect(),
        },
        provider: ProviderConfig::AwsKms {
            region: Some(REGION.to_owned()),
            endpoint_url: Some(url.to_owned()),
            profile: None,
            ca_file: None,
            attempt_ms: 10_000,
        },
        destination: None,
        unlock: Unlock::default(),
        timeout,
    }
}

fn context(id: &str) -> EncryptionContext {
    EncryptionContext::for_resource(id)
}

/// A server that takes connections and never answers. Ends with the test's process.
fn silent_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || BufReader::new(stream).lines().for_each(drop));
        }
    });
    url
}

fn kms_of(emulator: &Emulator) -> HelperKms {
    helper(&emulator.url, Duration::from_secs(30))
}

fn decrypt(kms: &dyn Kms, key: &str, wrapped: &WrappedKey, volume: &str) -> Result<[u8; 64], KmsError> {
    let context = context(volume);
    let request = DecryptRequest { wrapped, key, context: &context, grant: None };
    kms.decrypt(&request).map(|key| key.expose(|bytes| *bytes))
}

fn kind<T>(result: Result<T, KmsError>) -> KmsErrorKind {
    match result {
        Ok(_) => panic!("it should have been refused"),
        Err(error) => error.kind,
    }
}

#[test]
fn r14_r16_a_data_key_is_wrapped_and_unwrapped_under_its_context_only() {
    let aws = Emulator::moto();
    let (kms, key) = (kms_of(&aws), aws.key());
    let described = kms.describe_key(&key).expect("described");
    assert_eq!((described.arn.as_str(), described.key_state), (key.as_str(), KeyState::Enabled));
    assert_eq!(
        (described.key_spec.as_str(), described.key_usage.as_str()),
        ("SYMMETRIC_DEFAULT", "ENCRYPT_DECRYPT")
    );
    let wrapped = kms.generate_data_key_without_plaintext(&key, &context(VOLUME)).expect("generated");
    let plain = decrypt(&kms, &key, &wrapped, VOLUME).expect("unwrapped");
    assert_ne!(plain[..32], plain[32..], "two halves");
    assert_eq!(kind(decrypt(&kms, &key, &wrapped, OTHER)), KmsErrorKind::InvalidCiphertext);
    let mut damaged = wrapped.clone();
    *damaged.0.last_mut().expect("bytes") ^= 1;
    assert_eq!(kind(decrypt(&kms, &key, &damaged, VOLUME)), KmsErrorKind::InvalidCiphertext);
    let other = aws.key();
    // AWS says IncorrectKeyException, moto AccessDeniedException.
    let refused = kind(decrypt(&kms, &other, &wrapped, VOLUME));
    assert!(matches!(refused, KmsErrorKind::IncorrectKey | KmsErrorKind::Denied), "{refused:?}");
}

#[test]
fn re_encrypt_moves_a_data_key_to_another_key_and_context() {
    let aws = Emulator::moto();
    let (kms, from, to) = (kms_of(&aws), aws.key(), aws.key());
    let wrapped = kms.generate_data_key_without_plaintext(&from, &context(VOLUME)).expect("generated");
    let request = |volume| {
        let (from_context, to_context) = (context(volume), context(OTHER));
        kms.re_encrypt(&ReEncryptRequest {
            wrapped: &wrapped,
            from_key: &from,
            from_context: &from_context,
            to_key: &to,
            to_context: &to_context,
        })
    };
    let moved = request(VOLUME).expect("moved");
    let before = decrypt(&kms, &from, &wrapped, VOLUME).expect("unwrapped");
    assert_eq!(decrypt(&kms, &to, &moved, OTHER).expect("unwrapped"), before);
    assert_eq!(kind(request(OTHER)), KmsErrorKind::InvalidCiphertext, "the source's context is checked");
}

#[test]
fn r17_a_grant_allows_decrypt_for_one_volume_and_is_retired() {
    let aws = Emulator::moto();
    let (kms, key) = (kms_of(&aws), aws.key());
    let request = GrantRequest {
        key: key.clone(),
        grantee: Principal("host:here".to_owned()),
        operations: vec![GrantOperation::Decrypt],
        constraint: context(VOLUME),
        name: Some(VOLUME.to_owned()),
    };
    let grant = kms.create_grant(&request).expect("granted").id;
    let listed = "g = kms.list_grants(KeyId=key)['Grants']\n\
                  print([(x['GrantId'], x['Operations'], x['Constraints'], x['Name'], x['GranteePrincipal'].split(':')[:3]) for x in g])";
    let expected = format!(
        "[('{}', ['Decrypt'], {{'EncryptionContextSubset': {{'aws:ebs:id': '{VOLUME}'}}}}, '{VOLUME}', ['arn', 'aws', 'sts'])]",
        grant.0
    );
    assert_eq!(aws.boto3(&key, listed), expected);
    kms.retire_grant(&key, &grant).expect("retired");
    assert_eq!(aws.boto3(&key, listed), "[]");
}

#[test]
fn r32_what_was_wrapped_before_a_rotation_is_unwrapped_after_it() {
    let aws = Emulator::moto();
    let (kms, key) = (kms_of(&aws), aws.key());
    let wrapped = kms.generate_data_key_without_plaintext(&key, &context(VOLUME)).expect("generated");
    let before = decrypt(&kms, &key, &wrapped, VOLUME).expect("unwrapped");
    aws.boto3(&key, "kms.rotate_key_on_demand(KeyId=key)");
    assert_eq!(decrypt(&kms, &key, &wrapped, VOLUME).expect("unwrapped"), before);
}

#[test]
fn r19_a_disabled_key_is_named_with_its_state_and_works_again_when_enabled() {
    let aws = Emulator::roto();
    let (kms, key) = (kms_of(&aws), aws.key());
    let wrapped = kms.generate_data_key_without_plaintext(&key, &context(VOLUME)).expect("generated");
    aws.boto3(&key, "kms.disable_key(KeyId=key)");
    assert_eq!(kms.describe_key(&key).expect("described").key_state, KeyState::Disabled);
    let context = context(VOLUME);
    let request = DecryptRequest { wrapped: &wrapped, key: &key, context: &context, grant: None };
    let error = kms.decrypt(&request).expect_err("disabled");
    assert_eq!(
        (error.kind, error.operation, error.key.as_str()),
        (KmsErrorKind::Disabled, "Decrypt", key.as_str())
    );
    aws.boto3(&key, "kms.enable_key(KeyId=key)");
    kms.decrypt(&request).expect("enabled again");
}

#[test]
fn a_key_that_is_pending_deletion_is_told_with_its_date() {
    let aws = Emulator::roto();
    let (kms, key) = (kms_of(&aws), aws.key());
    let wrapped = kms.generate_data_key_without_plaintext(&key, &context(VOLUME)).expect("generated");
    aws.boto3(&key, "kms.schedule_key_deletion(KeyId=key, PendingWindowInDays=7)");
    let described = kms.describe_key(&key).expect("described");
    assert_eq!(described.key_state, KeyState::PendingDeletion);
    assert!(described.deletion_date.is_some(), "{described:?}");
    // AWS says KMSInvalidStateException, roto DisabledException.
    let refused = kind(decrypt(&kms, &key, &wrapped, VOLUME));
    assert!(matches!(refused, KmsErrorKind::PendingDeletion | KmsErrorKind::Disabled), "{refused:?}");
}

#[test]
fn a_service_without_grants_is_told_from_one_that_refuses() {
    let aws = Emulator::roto();
    let key = aws.key();
    let request = GrantRequest {
        key,
        grantee: Principal("host:here".to_owned()),
        operations: vec![GrantOperation::Decrypt],
        constraint: context(VOLUME),
        name: None,
    };
    assert_eq!(kind(kms_of(&aws).create_grant(&request)), KmsErrorKind::NoGrants);
}

#[test]
fn a_key_that_does_not_exist_is_not_found_by_id_arn_and_alias() {
    let aws = Emulator::moto();
    let id = "11111111-2222-3333-4444-555555555555";
    for key in [id, "alias/nobody", &format!("arn:aws:kms:eu-west-1:123456789012:key/{id}")] {
        assert_eq!(kind(kms_of(&aws).describe_key(key)), KmsErrorKind::NotFound, "{key}");
    }
}

#[test]
fn a_service_that_is_not_there_or_never_answers_is_unreachable() {
    let nobody = helper("http://127.0.0.1:9", Duration::from_secs(30));
    let error = nobody.describe_key("alias/any").expect_err("nobody listens");
    assert_eq!(error.kind, KmsErrorKind::Unreachable, "{error}");
    let begun = Instant::now();
    let error =
        helper(&silent_server(), Duration::from_secs(2)).describe_key("alias/any").expect_err("silence");
    assert_eq!((error.kind, error.operation), (KmsErrorKind::Unreachable, "DescribeKey"), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(20), "the helper is killed");
}

#[test]
fn without_credentials_the_error_says_so() {
    let mut kms = helper("http://127.0.0.1:9", Duration::from_secs(30));
    kms.program.environment =
        vec![("AWS_EC2_METADATA_DISABLED".into(), "true".into()), ("HOME".into(), "/nonexistent".into())];
    let error = kms.describe_key("alias/any").expect_err("no credentials");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{error}");
    assert!(error.message.contains("credentials"), "{error}");
}
