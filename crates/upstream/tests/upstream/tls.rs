//! TLS: against nbdkit with `--tls=require` and client certificates, and what is refused.

use std::fs;
use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use sealblk_block::{BlockDevice, Durability};
use sealblk_upstream::{ExportUri, UpstreamDevice, UpstreamError, UpstreamOptions};

use crate::foreign::Nbdkit;
use crate::rig::{filled, read_all, run, write};

/// Writes an authority's, a server's and a client's certificates as libnbd and nbdkit name them.
fn certificates(directory: &Path) {
    fs::create_dir_all(directory).expect("a directory");
    let store = |name: &str, text: String| fs::write(directory.join(name), text).expect("a file");
    let authority_key = KeyPair::generate().expect("a key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = authority.self_signed(&authority_key).expect("a certificate");
    store("ca-cert.pem", own.pem());
    let issuer = Issuer::new(authority, authority_key);
    for who in ["server", "client"] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        store(&format!("{who}-cert.pem"), params.signed_by(&key, &issuer).expect("a certificate").pem());
        store(&format!("{who}-key.pem"), key.serialize_pem());
    }
}

fn open(uri: &str) -> Result<UpstreamDevice, UpstreamError> {
    UpstreamDevice::open(&uri.parse::<ExportUri>().expect("a URI"), &UpstreamOptions::default())
}

#[test]
fn a_server_that_requires_tls_is_reached_by_it_and_only_by_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, pki, other) =
        (directory.path().join("s"), directory.path().join("pki"), directory.path().join("other"));
    certificates(&pki);
    certificates(&other);
    let tls = format!("--tls-certificates={}", pki.display());
    let _server = Nbdkit::start(&socket, &["--tls=require", &tls, "--tls-verify-peer", "memory", "1M"]);
    let place = |pki: &Path, more: &str| {
        format!("nbds+unix:///?socket={}&tls-certificates={}{more}", socket.display(), pki.display())
    };

    let device = open(&place(&pki, "")).expect("the right certificates");
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 0, filled(256 << 10, 5), Durability::Durable).await;
        assert_eq!(read_all(&lane, 256 << 10).await, vec![5; 256 << 10]);
    });

    let plain = open(&format!("nbd+unix:///?socket={}", socket.display())).expect_err("it wants TLS");
    assert!(plain.to_string().contains("it wants TLS (nbds)"), "{plain}");
    let stranger = open(&place(&other, "")).expect_err("another authority");
    assert!(matches!(stranger, UpstreamError::Tls(_)), "{stranger}");
    let name = open(&place(&pki, "&tls-hostname=elsewhere")).expect_err("another name");
    assert!(matches!(name, UpstreamError::Tls(_)), "{name}");
    let nothing = open(&place(&directory.path().join("none"), "")).expect_err("no certificates");
    assert!(matches!(nothing, UpstreamError::Certificates { .. }), "{nothing}");
}

#[test]
fn tls_is_never_done_without() {
    let directory = tempfile::tempdir().expect("a directory");
    let (socket, pki) = (directory.path().join("s"), directory.path().join("pki"));
    certificates(&pki);
    let _server = Nbdkit::start(&socket, &["--tls=off", "memory", "1M"]);
    let uri = format!("nbds+unix:///?socket={}&tls-certificates={}", socket.display(), pki.display());
    let refused = open(&uri).expect_err("it has no TLS");
    assert!(matches!(refused, UpstreamError::Refused { what: "TLS", .. }), "{refused}");
}
