//! Volumes under keys of a real OpenBao server: what is bound to what, what each refusal of the server becomes, and a
//! server that is sealed, hangs, or speaks TLS with a private authority.

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use support::services::{Bao, assert_key_only_in_locked_memory, private_file, unwrap, volume_key};
use support::{Pool, exit, noise};

const UPDATE: &str = "update";
/// Longer than any command takes that waits for nobody.
const PATIENCE: Duration = Duration::from_secs(60);

fn create(pool: &Pool, key: &str) -> String {
    pool.create(&["--encrypted", "--size", "4MiB", "--kms-key-id", key])
}

/// No second attempt: what refuses is told at once. What answers has time for it.
fn impatient(pool: &Pool) {
    pool.run(&["kms", "configure", "patience", "--timeout", "30", "--deadline", "0"]).ok();
}

#[test]
fn r10_a_volume_under_a_transit_key_keeps_its_data_and_its_key_out_of_sight() {
    let (pool, bao) = (Pool::new(), Bao::start());
    bao.configure(&pool, "root");
    let volume = create(&pool, &bao.key("ebs"));
    let described = pool.describe(&volume);
    assert_eq!(described["KmsKeyId"].as_str(), Some(bao.key("ebs").as_str()));
    assert_key_only_in_locked_memory(&pool, &volume);
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(700, 10_000).expect("a read") == noise(5, 10_000));
    attachment.terminate();
}

#[test]
fn the_server_itself_unwraps_what_it_wrapped_for_the_volume_and_only_with_its_context() {
    let (pool, bao) = (Pool::new(), Bao::start());
    bao.configure(&pool, "root");
    bao.cli(&["write", "transit/keys/derived", "derived=true"]).ok();
    for name in ["ebs", "derived"] {
        let volume = create(&pool, &bao.key(name));
        let described = pool.describe(&volume);
        let wrapped = described["WrappedKey"].as_str().expect("base64");
        let ciphertext = String::from_utf8(STANDARD.decode(wrapped).expect("base64")).expect("text");
        let mut canonical = Vec::new();
        sealblk_kms::EncryptionContext::for_resource(&volume).append_canonical(&mut canonical);
        let context = STANDARD.encode(&canonical);
        let path = format!("transit/decrypt/{name}");
        let ask = |context: &str| {
            let context = [format!("associated_data={context}"), format!("context={context}")];
            let ciphertext = format!("ciphertext={ciphertext}");
            bao.cli(&["write", "-field=plaintext", &path, &ciphertext, &context[0], &context[1]])
        };
        assert_eq!(ask(&context).ok().trim(), STANDARD.encode(volume_key(&pool, &volume)), "{name}");
        ask(&STANDARD.encode("another")).failed();
    }
}

#[test]
fn r11_a_wrapped_key_of_another_volume_is_refused() {
    let (pool, bao) = (Pool::new(), Bao::start());
    bao.configure(&pool, "root");
    let (one, other) = (create(&pool, &bao.key("ebs")), create(&pool, &bao.key("ebs")));
    let wrapped = pool.describe(&other)["WrappedKey"].as_str().expect("base64").to_owned();
    let error = unwrap(&pool, &one, &bao.key("ebs"), &wrapped).expect_err("another context");
    assert_eq!(error.kind, sealblk_kms::KmsErrorKind::InvalidCiphertext, "{error}");
    assert!(error.to_string().contains("another encryption context"), "{error}");
}

#[test]
fn what_the_server_refuses_is_told_with_what_is_missing() {
    let (pool, bao) = (Pool::new(), Bao::start());
    impatient(&pool);
    bao.configure(&pool, "root");
    let volume = create(&pool, &bao.key("ebs"));
    let create =
        |key: &str| pool.run(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", key]);
    create(&bao.key("nope")).refused(exit::NOT_FOUND);
    bao.cli(&["write", "transit/keys/rsa", "type=rsa-2048"]).ok();
    assert!(create(&bao.key("rsa")).refused(exit::DENIED).contains("only symmetric"));

    // A policy that allows to create volumes and not to attach them.
    let paths = [("transit/keys/ebs", "read"), ("transit/datakey/wrapped/ebs", UPDATE)];
    let token = bao.token(pool.root(), &paths, &[]);
    bao.configure(&pool, &token);
    create(&bao.key("ebs")).ok();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    let wanted = "path \"transit/decrypt/ebs\" { capabilities = [\"update\"] }";
    assert!(refusal.contains(wanted), "{refusal}");
    bao.cli(&["token", "revoke", &token]).ok();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    assert!(refusal.contains("the token is not valid"), "{refusal}");
    assert!(!refusal.contains(&token), "{refusal}");

    bao.configure(&pool, "root");
    bao.cli(&["write", "-f", "transit/keys/ebs/rotate"]).ok();
    pool.attach(&volume, &[]).terminate();
    bao.cli(&["write", "transit/keys/ebs/config", "min_decryption_version=2"]).ok();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    assert!(refusal.contains("min_decryption_version"), "{refusal}");
}

#[test]
fn a_token_is_sent_only_to_the_server_it_is_listed_for() {
    let pool = Pool::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("its address"));
    let key = format!("transit:{address}/transit/keys/ebs");
    let refusal = pool.run(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", &key]);
    assert!(refusal.refused(exit::FAILED).contains("kms configure transit"));
    listener.set_nonblocking(true).expect("its mode");
    assert_eq!(listener.accept().expect_err("nobody came").kind(), std::io::ErrorKind::WouldBlock);
}

#[test]
fn an_app_role_logs_in_for_each_call_and_leaves_no_token() {
    let (pool, bao) = (Pool::new(), Bao::start());
    let paths = [
        ("transit/keys/ebs", "read"),
        ("transit/datakey/wrapped/ebs", UPDATE),
        ("transit/decrypt/ebs", UPDATE),
    ];
    bao.token(pool.root(), &paths, &[]);
    bao.cli(&["auth", "enable", "approle"]).ok();
    bao.cli(&["write", "auth/approle/role/host", "token_policies=volumes"]).ok();
    let role = bao.cli(&["read", "-field=role_id", "auth/approle/role/host/role-id"]).ok();
    let secret = bao.cli(&["write", "-f", "-field=secret_id", "auth/approle/role/host/secret-id"]).ok();
    let role = private_file(&pool.root().join("role"), role.trim());
    let secret = private_file(&pool.root().join("secret"), secret.trim());
    let (role, text) = (role.to_str().expect("text"), secret.to_str().expect("text"));
    let configure = ["kms", "configure", "transit", "--address", &bao.address, "--role-id-file", role];
    pool.run(&[&configure[..], &["--secret-id-file", text]].concat()).ok();
    let tokens = || bao.cli(&["list", "-format=json", "auth/token/accessors"]).ok().lines().count();
    let before = tokens();
    let volume = create(&pool, &bao.key("ebs"));
    pool.attach(&volume, &[]).terminate();
    assert_eq!(tokens(), before, "every login's token is revoked");
    private_file(&secret, "00000000-0000-0000-0000-000000000000");
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::DENIED);
    assert!(refusal.contains("the AppRole login failed"), "{refusal}");
    // A secret that everybody may read is none.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("its mode");
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::FAILED);
    assert!(refusal.contains("open to everybody"), "{refusal}");
}

#[test]
fn a_server_that_hangs_times_out_and_holds_up_nothing_that_needs_no_key() {
    let (pool, bao) = (Pool::new(), Bao::start());
    bao.configure(&pool, "root");
    let volume = create(&pool, &bao.key("ebs"));
    let attached = create(&pool, &bao.key("ebs"));
    let attachment = pool.attach(&attached, &[]);
    // From now on it takes connections and says nothing.
    bao.stop();
    pool.run(&["kms", "configure", "patience", "--timeout", "1", "--deadline", "0"]).ok();
    let started = Instant::now();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::UNREACHABLE);
    assert!(refusal.contains(&bao.address), "{refusal}");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    let started = Instant::now();
    pool.run(&["volume", "list"]).ok();
    pool.run(&["volume", "stats", &attached]).ok();
    pool.run(&["volume", "detach", &attached]).ok();
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
    drop(attachment);
    bao.go_on();
    impatient(&pool);
    pool.attach(&volume, &[]).terminate();
}

#[test]
fn a_sealed_server_is_unreachable_and_one_of_another_authority_is_not_believed() {
    let pool = Pool::new();
    impatient(&pool);
    let dir = pool.root();
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let other = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).expect("a certificate");
    let certificate = private_file(&dir.join("server.pem"), &made.cert.pem());
    let key = private_file(&dir.join("server.key"), &made.signing_key.serialize_pem());
    let stranger = private_file(&dir.join("other.pem"), &other.cert.pem());
    let bao = Bao::start_stored(dir, &certificate, &key);
    let keys = bao.cli(&["operator", "init", "-key-shares=1", "-key-threshold=1", "-format=json"]).ok();
    let keys: serde_json::Value = serde_json::from_str(&keys).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let (unseal, root) = (text(&keys["unseal_keys_b64"][0]), text(&keys["root_token"]));
    let token = private_file(&dir.join("token"), &root);
    let configure = |authority: &std::path::Path| {
        let (authority, token) = (authority.to_str().expect("text"), token.to_str().expect("text"));
        let server = ["kms", "configure", "transit", "--address", &bao.address, "--token-file", token];
        pool.run(&[&server[..], &["--ca-file", authority]].concat()).ok();
    };
    let name = bao.key("ebs");
    let create = || pool.run(&["volume", "create", "--size", "1MiB", "--encrypted", "--kms-key-id", &name]);
    configure(&certificate);
    let refusal = create().refused(exit::UNREACHABLE);
    assert!(refusal.contains("sealed"), "{refusal}");

    bao.cli(&["operator", "unseal", &unseal]).ok();
    // Raft elects itself first; a server without a leader refuses to write.
    let deadline = Instant::now() + Duration::from_secs(60);
    while !bao.cli_as(&root, &["secrets", "enable", "transit"]).status.success() {
        assert!(Instant::now() < deadline, "the server has no leader");
    }
    bao.cli_as(&root, &["write", "-f", "transit/keys/ebs"]).ok();
    create().ok();
    configure(&stranger);
    let refusal = create().refused(exit::FAILED);
    assert!(refusal.contains("certificate"), "{refusal}");
}
