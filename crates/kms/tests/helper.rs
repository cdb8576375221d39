//! Key calls through a helper process: they answer as direct ones do, and a helper that misbehaves is an error that
//! names it. The good helper is this test's own binary; the bad ones are shell scripts.

mod store;

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sealblk_keymem::DataKey;
use sealblk_kms::helper::{HelperKms, HelperProgram, ProviderConfig, serve_helper};
use sealblk_kms::local::NewProtection;
use sealblk_kms::{
    DecryptRequest, EncryptionContext, GrantId, Kms, KmsError, KmsErrorKind, Passphrase, PassphraseSource,
    Unlock, WrappedKey,
};
use store::{
    OTHER_VOLUME, PATIENCE, TestStore, VOLUME, attachment, attachment_grant, context, default_key, helper,
    helper_with, volume_key,
};

/// The reply before a data key, as printf(1) writes it.
const KEY_FOLLOWS: &str = r#"printf '\020\000\000\000{"Ok":"DataKey"}'"#;

/// Not a test: the helper process. The harness's own output goes elsewhere; the reply goes to descriptor 3.
#[test]
#[ignore = "run by the other tests as their helper"]
fn helper_process() {
    let Ok(stdout) = File::options().write(true).open("/proc/self/fd/3") else { return };
    serve_helper(std::io::stdin(), stdout, ProviderConfig::open).expect("served");
}

fn misbehaving(script: &str) -> HelperKms {
    let args: Vec<OsString> = vec!["-c".into(), script.into()];
    let kms = helper(&TestStore::new());
    HelperKms { program: HelperProgram { args, ..kms.program.clone() }, timeout: PATIENCE, ..kms }
}

fn decrypt_with(kms: &HelperKms) -> Result<DataKey, KmsError> {
    let context = context(VOLUME);
    let wrapped = WrappedKey(vec![1; 168]);
    kms.decrypt(&DecryptRequest { wrapped: &wrapped, key: "alias/aws/ebs", context: &context, grant: None })
}

/// The error of a decryption with a helper that runs `script`.
fn fault(script: &str) -> KmsError {
    let error = decrypt_with(&misbehaving(script)).expect_err(script);
    assert_eq!((error.operation, error.key.as_str()), ("Decrypt", "alias/aws/ebs"));
    assert!(error.message.contains("the key helper /bin/sh"), "{error}");
    error
}

#[test]
fn the_six_verbs_answer_through_a_helper_as_they_do_directly() {
    let store = TestStore::new();
    let (helper, direct) = (helper(&store), store.open());
    let key = helper.describe_key("alias/aws/ebs").expect("described");
    assert_eq!(key, default_key(&direct));
    let own = context(VOLUME);
    let wrapped = helper.generate_data_key_without_plaintext(&key.arn, &own).expect("generated");
    let grant = helper.create_grant(&attachment_grant(&key.arn, VOLUME)).expect("granted").id;
    let me = attachment();
    let under = Some((&grant, &me));
    let request = DecryptRequest { wrapped: &wrapped, key: &key.arn, context: &own, grant: under };
    let through_helper = helper.decrypt(&request).expect("decrypted").expose(|bytes| *bytes);
    assert_eq!(through_helper, direct.decrypt(&request).expect("decrypted").expose(|bytes| *bytes));
    let moved =
        store::re_encrypt(&helper, &wrapped, (&key.arn, VOLUME), (&key.arn, OTHER_VOLUME)).expect("moved");
    assert_eq!(store::decrypt(&direct, &key.arn, &moved, OTHER_VOLUME).expect("opens"), through_helper);
    helper.retire_grant(&key.arn, &grant).expect("retired");
    assert!(direct.list_grants(&key.arn).expect("listed").is_empty());
}

#[test]
fn a_providers_error_arrives_as_it_was_raised() {
    let store = TestStore::new();
    let (direct, helper) = (store.open(), helper(&store));
    let outsider = helper_with(&store, attachment());
    let (arn, wrapped) = volume_key(&direct);
    let disabled = direct.create_key("").expect("created").arn;
    direct.disable_key(&disabled).expect("disabled");
    let (own, empty) = (context(VOLUME), EncryptionContext::from_iter([]));
    let retired = GrantId("0".repeat(64));
    let errors = [
        (helper.describe_key("nonsense").map(drop), KmsErrorKind::NotFound, "DescribeKey"),
        (outsider.describe_key(&disabled).map(drop), KmsErrorKind::Denied, "DescribeKey"),
        (
            helper.generate_data_key_without_plaintext(&disabled, &own).map(drop),
            KmsErrorKind::Disabled,
            "GenerateDataKeyWithoutPlaintext",
        ),
        (
            store::re_encrypt(&helper, &wrapped, (&arn, OTHER_VOLUME), (&arn, VOLUME)).map(drop),
            KmsErrorKind::InvalidCiphertext,
            "ReEncrypt",
        ),
        (
            helper.generate_data_key_without_plaintext(&arn, &empty).map(drop),
            KmsErrorKind::InvalidRequest,
            "GenerateDataKeyWithoutPlaintext",
        ),
        (helper.retire_grant(&arn, &retired), KmsErrorKind::NotFound, "RetireGrant"),
    ];
    for (outcome, kind, operation) in errors {
        let error = outcome.expect_err(operation);
        assert_eq!((error.kind, error.operation), (kind, operation), "{error}");
        let record = store.audit().into_iter().find(|record| record["requestID"] == error.request_id);
        assert_eq!(record.expect("the call is in the audit log")["errorMessage"], error.message);
    }
}

#[test]
fn a_key_store_that_does_not_open_is_the_providers_error() {
    let store = TestStore::new();
    volume_key(&store.open());
    std::fs::remove_file(store.dir().join("root.key")).expect("removed");
    let error = helper(&store).describe_key("alias/aws/ebs").expect_err("no root key");
    assert_eq!((error.kind, error.operation), (KmsErrorKind::Misconfigured, "OpenKeyStore"));
    assert!(error.message.contains("root.key"), "{error}");
}

#[test]
fn processes_at_once_lose_no_grant() {
    const CALLERS: usize = 8;
    let store = TestStore::new();
    let arn = default_key(&store.open()).arn;
    std::thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (helper, mut request) = (helper(&store), attachment_grant(&arn, VOLUME));
            request.name = Some(caller.to_string());
            scope.spawn(move || helper.create_grant(&request).expect("granted"));
        }
    });
    assert_eq!(store.open().list_grants(&arn).expect("listed").len(), CALLERS);
}

#[test]
fn processes_at_once_make_one_unbroken_chain_of_all_their_calls() {
    const PROCESSES: usize = 6;
    const CALLS_EACH: usize = 5;
    let store = TestStore::new();
    let arn = default_key(&store.open()).arn;
    let before = store.audit().len();
    std::thread::scope(|scope| {
        for _ in 0..PROCESSES {
            let (helper, arn) = (helper(&store), &arn);
            scope.spawn(move || {
                for _ in 0..CALLS_EACH {
                    helper.describe_key(arn).expect("described");
                }
            });
        }
    });
    let report = store.open().verify_audit(1, true).expect("the log is readable");
    assert!(report.is_clean(), "{:?}", report.findings);
    let expected = u64::try_from(before + PROCESSES * CALLS_EACH).expect("few");
    assert_eq!((report.records, report.sealed_sequence), (expected, Some(expected)));
}

#[test]
fn a_passphrase_reaches_the_helper_and_only_for_calls_that_need_it() {
    let store = TestStore::new();
    let passphrase = |text: &str| {
        let made = Passphrase::init(|bytes| {
            bytes[..text.len()].copy_from_slice(text.as_bytes());
            Ok(text.len())
        });
        made.expect("a passphrase")
    };
    let protected = NewProtection::Passphrase(&passphrase("right"));
    store.open().create_root_key(protected).expect("a root key under a passphrase");
    let with = |text: &str| {
        let source = Some(Arc::new(PassphraseSource::holding(passphrase(text))));
        HelperKms { unlock: Unlock { passphrase: source, credentials: None }, ..helper(&store) }
    };
    let (right, wrong, none) = (with("right"), with("wrong"), helper(&store));
    let arn = right.describe_key("alias/aws/ebs").expect("the default key is made").arn;
    let own = context(VOLUME);
    let wrapped = right.generate_data_key_without_plaintext(&arn, &own).expect("generated");
    let request = DecryptRequest { wrapped: &wrapped, key: &arn, context: &own, grant: None };
    right.decrypt(&request).expect("decrypted");
    for (kms, words) in [(&wrong, "the passphrase is wrong"), (&none, "none was given")] {
        let error = kms.decrypt(&request).expect_err(words);
        assert_eq!(error.kind, KmsErrorKind::Denied, "{error}");
        assert!(error.message.contains(words), "{error}");
    }
    // What happens at a detach needs no key: a serving process has forgotten the passphrase by then.
    let grant = none.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    none.retire_grant(&arn, &grant).expect("retired");
    let never = PassphraseSource::new(|| panic!("nobody is to be asked"));
    let unlock = Unlock { passphrase: Some(Arc::new(never)), credentials: None };
    let silent = HelperKms { unlock, ..helper(&store) };
    let grant = silent.create_grant(&attachment_grant(&arn, VOLUME)).expect("granted").id;
    silent.retire_grant(&arn, &grant).expect("retired");
}

#[test]
fn a_script_that_writes_64_bytes_is_believed() {
    let script = format!("{KEY_FOLLOWS}; head -c 64 /dev/zero");
    decrypt_with(&misbehaving(&script)).expect("a key").expose(|bytes| assert_eq!(*bytes, [0; 64]));
}

#[test]
fn a_helper_that_writes_63_bytes_is_an_error() {
    let error = fault(&format!("{KEY_FOLLOWS}; head -c 63 /dev/zero"));
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains("63 bytes of key instead of 64"), "{error}");
}

#[test]
fn a_helper_that_writes_65_bytes_is_an_error() {
    let error = fault(&format!("{KEY_FOLLOWS}; head -c 65 /dev/zero"));
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains("after the end of its reply"), "{error}");
}

#[test]
fn a_helper_that_hangs_is_killed_with_what_it_started_and_is_unreachable() {
    let before = format!("{KEY_FOLLOWS}; head -c 64 /dev/zero");
    for script in [
        "sleep 60".to_owned(),
        "sleep 60; true".into(),
        format!("{before}; sleep 60"),
        format!("{before}; exec >&-; sleep 60"),
    ] {
        let started = Instant::now();
        let kms = HelperKms { timeout: Duration::from_millis(300), ..misbehaving(&script) };
        let error = decrypt_with(&kms).expect_err("it hangs");
        assert_eq!(error.kind, KmsErrorKind::Unreachable, "{error}");
        assert!(error.message.contains("/bin/sh") && error.message.contains("300 ms"), "{error}");
        assert!(started.elapsed() < PATIENCE, "{script}");
    }
}

#[test]
fn nothing_that_a_hanging_helper_started_outlives_the_call() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let fifo = dir.path().join("alive");
    // The sleeper inherits descriptor 9. The reply's length is refused at once, so the helper is killed.
    let script =
        format!("mkfifo {0}; exec 9<>{0}; sleep 60 & printf '\\377\\377\\377\\377'; wait", fifo.display());
    fault(&script);
    // A pipe without a reader cannot be opened for writing without waiting: the sleeper is gone.
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::NONBLOCK;
    let open = || rustix::fs::open(&fifo, flags, rustix::fs::Mode::empty());
    let deadline = Instant::now() + PATIENCE;
    while open().err() != Some(rustix::io::Errno::NXIO) {
        assert!(Instant::now() < deadline, "the sleeper is still there");
        std::thread::yield_now();
    }
}

#[test]
fn a_helper_that_dies_is_an_error_that_says_how() {
    let error = fault("echo 'no memory' >&2; kill -9 $$");
    assert!(error.message.contains("killed by signal 9") && error.message.contains("no memory"), "{error}");
    let error = fault("echo 'broken\tconfiguration' >&2; exit 3");
    assert!(error.message.contains("exit status 3"), "{error}");
    assert!(error.message.contains(r"broken\tconfiguration"), "control characters are escaped: {error}");
    let error = fault("printf '\\020\\000\\000\\000{\"Ok\"'; exit 3");
    assert!(error.message.contains("in the middle of its reply"), "{error}");
    let error = fault(&format!("{KEY_FOLLOWS}; head -c 64 /dev/zero; exit 1"));
    assert!(error.message.contains("replied, but then failed (exit status 1"), "{error}");
}

#[test]
fn garbage_is_an_error_that_does_not_repeat_it() {
    for script in [
        r"printf '\006\000\000\000SECRET'",
        r#"printf '\010\000\000\000"SECRET"'"#,
        r#"printf '\015\000\000\000{"SECRET":{}}'"#,
        r#"printf '\027\000\000\000{"Ok":{"SECRET":"key"}}'"#,
    ] {
        let error = fault(script);
        assert_eq!(error.kind, KmsErrorKind::Misconfigured, "{error}");
        assert!(error.message.contains("not a reply"), "{error}");
        assert!(!error.to_string().contains("SECRET"), "{error}");
    }
}

#[test]
fn a_reply_of_more_than_a_mebibyte_is_not_waited_for() {
    let error = fault(r"printf '\001\000\020\000'; sleep 60");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains("more than 1 MiB"), "{error}");
}

#[test]
fn the_answer_to_another_question_is_an_error() {
    let error = fault(r#"printf '\020\000\000\000{"Ok":"Retired"}'"#);
    assert!(error.message.contains("another question"), "{error}");
    let kms = misbehaving(&format!("{KEY_FOLLOWS}; head -c 64 /dev/zero"));
    kms.describe_key("alias/aws/ebs").expect_err("a data key is not a description");
}

#[test]
fn a_program_that_does_not_exist_is_named() {
    let kms = misbehaving("");
    let kms = HelperKms {
        program: HelperProgram { path: PathBuf::from("/nonexistent/sealblk"), ..kms.program.clone() },
        ..kms
    };
    let error = decrypt_with(&kms).expect_err("no such program");
    assert_eq!(error.kind, KmsErrorKind::Misconfigured);
    assert!(error.message.contains("/nonexistent/sealblk could not be started"), "{error}");
}

#[test]
fn a_helper_that_floods_standard_error_does_not_block_the_call() {
    let script = format!("head -c 1000000 /dev/zero >&2; {KEY_FOLLOWS}; head -c 64 /dev/zero");
    decrypt_with(&misbehaving(&script)).expect("a key");
}

#[test]
fn a_helper_that_does_not_read_its_request_does_not_block_the_call() {
    let request_of_700_kb = |kms: &HelperKms| {
        let (wrapped, context) = (WrappedKey(vec![1; 500_000]), context(VOLUME));
        kms.decrypt(&DecryptRequest {
            wrapped: &wrapped,
            key: "alias/aws/ebs",
            context: &context,
            grant: None,
        })
    };
    let hanging = HelperKms { timeout: Duration::from_millis(300), ..misbehaving("sleep 60") };
    assert_eq!(request_of_700_kb(&hanging).expect_err("it hangs").kind, KmsErrorKind::Unreachable);
    let replying = misbehaving(&format!("{KEY_FOLLOWS}; head -c 64 /dev/zero"));
    request_of_700_kb(&replying).expect("a key");
}

#[test]
fn the_helper_gets_no_environment() {
    let kms = misbehaving("exec >&2; tr '\\0' '\\n' </proc/self/environ; exit 3");
    let error = decrypt_with(&kms).expect_err("no reply");
    for name in ["HOME", "CARGO", "USER"] {
        assert!(!error.message.contains(name), "{error}");
    }
}
