//! A volume whose data is behind an NBD export: created, attached, and served on while nbdkit is killed and started anew.

mod support;

use std::path::{Path, PathBuf};

use support::{Nbdkit, Pool};

/// The export's size, a little more than the volume's.
const IMAGE_BYTES: u64 = 17 << 20;

/// nbdkit over the image, slow enough to be met at work.
fn nbdkit_over(directory: &Path) -> Nbdkit {
    let file = format!("file={}", image(directory).display());
    let args = ["--filter=delay", "file", &file, "rdelay=1ms", "wdelay=1ms"];
    Nbdkit::start(&directory.join("s"), &directory.join("pid"), &args.map(AsRef::as_ref))
}

fn image(directory: &Path) -> PathBuf {
    directory.join("image")
}

/// A directory with a sparse image, an nbdkit that exports it, and the export's URI.
fn export() -> (tempfile::TempDir, Nbdkit, String) {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::File::create(image(directory.path()))
        .and_then(|file| file.set_len(IMAGE_BYTES))
        .expect("a file");
    let nbdkit = nbdkit_over(directory.path());
    let uri = format!("nbd+unix:///?socket={}", directory.path().join("s").display());
    (directory, nbdkit, uri)
}

/// 64 KiB that tell one step from another.
fn pattern(step: u8) -> Vec<u8> {
    (0..64 << 10).map(|at| (at as u8).wrapping_mul(31) ^ step).collect()
}

#[test]
fn a_volume_on_an_export_outlives_its_server_again_and_again() {
    let (directory, mut nbdkit, uri) = export();
    let pool = Pool::new();
    let volume = pool.create(&["--size", "16MiB", "--encrypted", "--backing", &uri]);
    let described = pool.describe(&volume);
    assert_eq!(described["Backing"].as_str(), Some(uri.as_str()));
    assert_eq!(described["BackingIsOwn"].as_bool(), Some(false));

    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    for step in 0..6_u8 {
        client.write(u64::from(step) << 20, &pattern(step)).expect("a write");
        if step % 2 == 0 {
            client.flush().expect("a flush");
        }
        drop(nbdkit);
        nbdkit = nbdkit_over(directory.path());
        let all = (0..=step)
            .all(|step| client.read(u64::from(step) << 20, 64 << 10).expect("a read") == pattern(step));
        assert!(all, "after restart {step}");
    }
    client.flush().expect("a flush");
    drop(client);
    attachment.terminate();

    // Flushed data is in the image, as ciphertext, and the next attachment reads it.
    let stored = std::fs::read(image(directory.path())).expect("the image");
    assert!(stored[..64 << 10] != pattern(0) && stored[..64 << 10].iter().any(|byte| *byte != 0));
    let attachment = pool.attach(&volume, &["--read-only"]);
    let mut client = attachment.client();
    for step in 0..6_u8 {
        assert_eq!(client.read(u64::from(step) << 20, 64 << 10).expect("a read"), pattern(step));
    }
    drop(client);
    attachment.terminate();

    let deleted = pool.json(&["volume", "delete", &volume]);
    assert_eq!(deleted["BackingLeft"].as_str(), Some(uri.as_str()));
    assert_eq!(std::fs::read(image(directory.path())).expect("the image"), stored, "left as it was");
}

#[test]
fn an_export_with_data_is_refused_by_name_and_erased_by_permission() {
    let (directory, _nbdkit, uri) = export();
    let mut bytes = vec![0; 4096];
    bytes[..4].copy_from_slice(b"XFSB");
    let path = image(directory.path());
    let file = std::fs::OpenOptions::new().write(true).open(&path).expect("the image");
    std::os::unix::fs::FileExt::write_all_at(&file, &bytes, 0).expect("a file system's magic number");
    let pool = Pool::new();
    let create = ["volume", "create", "--size", "16MiB", "--encrypted", "--backing", &uri];
    let refused = pool.run(&create).refused(4);
    assert!(refused.contains("XFS file system") && refused.contains("--erase"), "{refused}");
    let small = pool.run(&["volume", "create", "--size", "18MiB", "--backing", &uri]).refused(2);
    assert!(small.contains("the volume needs"), "{small}");
    pool.run(&[&create[..], &["--erase"]].concat()).ok();
    assert!(std::fs::read(&path).expect("the image").iter().all(|byte| *byte == 0));
    let taken = pool.run(&create).refused(4);
    assert!(taken.contains("holds the data of vol-"), "{taken}");
}

#[test]
fn an_export_that_is_not_there_is_unreachable_and_a_wrong_uri_is_usage() {
    let pool = Pool::new();
    let create = |uri: &str| pool.run(&["volume", "create", "--size", "16MiB", "--backing", uri]);
    create("nbd+unix:///?socket=/nonexistent/s").refused(6);
    assert!(create("nbd://user@host/").refused(2).contains("the user"));
    assert!(create("nbds://host/").refused(2).contains("tls-certificates"));
    let listed = pool.json(&["volume", "list"]);
    assert_eq!(listed["Volumes"].as_array().map(Vec::len), Some(0), "nothing is left");
}
