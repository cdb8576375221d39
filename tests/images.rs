//! `volume import` and `volume export` through the binary: what is in a volume made of an image, what is not in the pool,
//! and what an image cannot make them do.

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::{MIB, Pool, STEPS, exit, foreign, found, killed_at, noise, run};

const SIZE: u64 = 24 * MIB;
const MARKER: &[u8] = b"a sentence that must never be found in a pool";

/// A sparse raw image: noise in two places, a marker in one, and not a whole number of sectors.
fn raw_image(pool: &Pool) -> (PathBuf, Vec<u8>) {
    let path = pool.root().join("disk.img");
    let file = File::create(&path).expect("a file");
    let length = SIZE - 100;
    let mut content = vec![0; SIZE as usize];
    for (at, bytes) in
        [(0, noise(1, 100_000)), (9 * MIB + 4321, noise(2, 3_000_000)), (SIZE - 5000, MARKER.to_vec())]
    {
        file.write_all_at(&bytes, at).expect("written");
        content[at as usize..][..bytes.len()].copy_from_slice(&bytes);
    }
    file.set_len(length).expect("its length");
    (path, content)
}

fn path(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

fn import(pool: &Pool, image: &Path, args: &[&str]) -> String {
    let made = pool.json(&[&["volume", "import", path(image)], args].concat());
    made["VolumeId"].as_str().expect("an id").to_owned()
}

/// All that a client reads of a volume.
fn content(pool: &Pool, volume: &str) -> Vec<u8> {
    let attachment = pool.attach(volume, &["--read-only"]);
    let mut client = attachment.client();
    let size = client.size();
    let pieces = (0..size / MIB).map(|at| client.read(at * MIB, MIB as usize).expect("read"));
    let bytes = pieces.collect::<Vec<_>>().concat();
    drop(client);
    attachment.terminate();
    bytes
}

fn nothing_in_the_pool_is_plaintext(pool: &Pool) {
    let needles = [MARKER.to_vec(), noise(2, 64)];
    for file in pool.files().iter().filter(|file| file.starts_with(pool.path())) {
        let bytes = fs::read(file).expect("a file of the pool");
        assert_eq!(found(&bytes, &needles), [0; 0], "{}", file.display());
    }
}

fn nothing_is_left(pool: &Pool) {
    let left = fs::read_dir(pool.path().join("importing")).expect("the directory");
    let names: Vec<_> = left.map(|entry| entry.expect("an entry").file_name()).collect();
    assert!(names.iter().all(|name| name == ".lock"), "{names:?}");
}

#[test]
fn r55_a_raw_image_becomes_an_encrypted_volume_and_stays_sparse() {
    let pool = Pool::new();
    let (image, expected) = raw_image(&pool);
    let volume = import(&pool, &image, &["--encrypted", "--name", "imported"]);
    let described = pool.describe(&volume);
    assert_eq!(
        (described["Encrypted"].as_bool(), described["Name"].as_str()),
        (Some(true), Some("imported"))
    );
    assert_eq!(described["SizeBytes"].as_u64(), Some(SIZE));
    assert!(described["AllocatedBytes"].as_u64().expect("a file") < 5 * MIB, "{described}");
    nothing_in_the_pool_is_plaintext(&pool);
    nothing_is_left(&pool);
    assert!(content(&pool, &volume) == expected);
}

#[test]
fn r55_a_qcow2_image_becomes_an_encrypted_volume() {
    let pool = Pool::new();
    let (image, expected) = raw_image(&pool);
    let disk = pool.root().join("disk.qcow2");
    let convert = ["convert", "-f", "raw", "-O", "qcow2", path(&image), path(&disk)];
    run(foreign("qemu-img").args(convert)).ok();
    let volume = import(&pool, &disk, &["--encrypted", "--size", "32MiB"]);
    let described = pool.describe(&volume);
    assert_eq!(described["SizeBytes"].as_u64(), Some(32 * MIB));
    assert!(described["AllocatedBytes"].as_u64().expect("a file") < 8 * MIB, "{described}");
    nothing_in_the_pool_is_plaintext(&pool);
    let found = content(&pool, &volume);
    assert!(found[..SIZE as usize] == expected && found[SIZE as usize..].iter().all(|&byte| byte == 0));
}

#[test]
fn r55_images_of_other_hypervisors_become_encrypted_volumes() {
    let pool = Pool::new();
    let (image, expected) = raw_image(&pool);
    let kinds: [(&str, &str, &[&str]); 7] = [
        ("vdi", "vdi", &[]),
        ("vhdx", "vhdx", &[]),
        ("vmdk", "vmdk", &[]),
        ("vmdk", "vmdk", &["-o", "subformat=streamOptimized"]),
        ("vpc", "vhd", &[]),
        ("vpc", "vpc", &["-o", "subformat=fixed"]),
        ("vpc", "vhd", &["-o", "force_size=on"]),
    ];
    for (number, (format, extension, options)) in kinds.into_iter().enumerate() {
        let what = format!("{format} {options:?}");
        let disk = pool.root().join(format!("disk-{number}.{extension}"));
        let convert =
            [&["convert", "-f", "raw", "-O", format], options, &[path(&image), path(&disk)]].concat();
        run(foreign("qemu-img").args(convert)).ok();
        let given: &[&str] = if number % 2 == 0 { &[] } else { &["--format", format] };
        let volume = import(&pool, &disk, &[&["--encrypted"], given].concat());
        let described = pool.describe(&volume);
        // A virtual PC's disk has the next size that cylinders and heads can tell.
        let size = described["SizeBytes"].as_u64().expect("a size");
        assert!(size == SIZE || format == "vpc" && (SIZE..SIZE + 2 * MIB).contains(&size), "{what}: {size}");
        assert!(described["AllocatedBytes"].as_u64().expect("a file") < 8 * MIB, "{what}: {described}");
        let found = content(&pool, &volume);
        assert!(found[..SIZE as usize] == expected, "{what}");
        assert!(found[SIZE as usize..].iter().all(|&byte| byte == 0), "{what}");
        nothing_in_the_pool_is_plaintext(&pool);
        pool.run(&["volume", "delete", &volume]).ok();
    }
    nothing_is_left(&pool);
}

#[test]
fn a_volume_that_must_not_show_what_is_in_use_is_filled_whole() {
    let pool = Pool::new();
    let (image, expected) = raw_image(&pool);
    let volume = import(&pool, &image, &["--encrypted", "--no-discard"]);
    let allocated = fs::metadata(pool.data(&volume)).expect("its data").blocks() * 512;
    assert!(allocated >= SIZE, "{allocated}");
    assert!(content(&pool, &volume) == expected);
}

#[test]
fn r66_an_export_is_the_volumes_plaintext_sparse_private_and_whole() {
    let pool = Pool::new();
    let (image, expected) = raw_image(&pool);
    let volume = import(&pool, &image, &["--encrypted"]);
    let raw = pool.root().join("out.img");
    let exported = pool.run(&["volume", "export", &volume, path(&raw)]);
    assert!(exported.stderr.contains("plaintext"), "{exported}");
    exported.ok();
    assert!(fs::read(&raw).expect("the image") == expected);
    let metadata = fs::metadata(&raw).expect("the image");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    assert!(metadata.blocks() * 512 < 5 * MIB, "{metadata:?}");
    pool.run(&["volume", "export", &volume, path(&raw)]).refused(exit::WRONG_STATE);
    pool.run(&["volume", "export", &volume, path(&raw), "--force"]).ok();
    let disk = pool.root().join("out.qcow2");
    pool.run(&["volume", "export", &volume, path(&disk), "--format", "qcow2"]).ok();
    assert_eq!(fs::metadata(&disk).expect("the image").permissions().mode() & 0o777, 0o600);
    let same = ["compare", "-f", "raw", "-F", "qcow2", path(&raw), path(&disk)];
    run(foreign("qemu-img").args(same)).ok();
    // And back: the way from an encrypted volume to an unencrypted one is open to who may read it.
    let plain = import(&pool, &disk, &["--no-encrypted"]);
    assert!(content(&pool, &plain) == expected);
    let stray: Vec<_> = fs::read_dir(pool.root())
        .expect("listed")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert!(stray.iter().all(|name| !name.to_string_lossy().contains(".partial-")), "{stray:?}");
}

#[test]
fn an_export_to_standard_output_is_every_byte() {
    let pool = Pool::new();
    let (image, expected) = raw_image(&pool);
    let volume = import(&pool, &image, &["--encrypted"]);
    let out = pool.root().join("streamed");
    let to = File::create(&out).expect("a file");
    let ended = pool.command(&["volume", "export", &volume, "-"]).stdout(Stdio::from(to)).status();
    assert!(ended.expect("it runs").success());
    assert!(fs::read(&out).expect("the image") == expected);
}

#[test]
fn an_attached_volume_is_not_exported() {
    let pool = Pool::new();
    let volume = pool.create(&["--size", "1MiB", "--encrypted"]);
    let attachment = pool.attach(&volume, &[]);
    let out = pool.root().join("out.img");
    pool.run(&["volume", "export", &volume, path(&out)]).refused(exit::WRONG_STATE);
    assert!(!out.exists());
    attachment.terminate();
}

#[test]
fn an_image_cannot_make_an_import_read_other_files() {
    let pool = Pool::new();
    let secret = pool.root().join("secret.img");
    fs::write(&secret, noise(9, MIB as usize)).expect("written");
    let disk = pool.root().join("disk.qcow2");
    let backed = ["create", "-f", "qcow2", "-b", path(&secret), "-F", "raw", path(&disk)];
    run(foreign("qemu-img").args(backed)).ok();
    let error = pool.run(&["volume", "import", path(&disk), "--encrypted"]).refused(exit::USAGE);
    assert!(error.contains("backing file"), "{error}");
    let external = pool.root().join("external.qcow2");
    let option = format!("data_file={}", path(&secret));
    run(foreign("qemu-img").args(["create", "-f", "qcow2", "-o", &option, path(&external), "1M"])).ok();
    let error = pool.run(&["volume", "import", path(&external), "--encrypted"]).refused(exit::USAGE);
    assert!(error.contains("external data file"), "{error}");
    // A guest's raw disk that begins like an image: never read as one because of that.
    let disguised = pool.root().join("guest.img");
    fs::copy(&disk, &disguised).expect("copied");
    File::options().write(true).open(&disguised).expect("opened").set_len(MIB).expect("its length");
    let error = pool.run(&["volume", "import", path(&disguised), "--encrypted"]).refused(exit::USAGE);
    assert!(error.contains("--format"), "{error}");
    let volume = import(&pool, &disguised, &["--encrypted", "--format", "raw"]);
    assert!(content(&pool, &volume) == fs::read(&disguised).expect("the image"));
}

#[test]
fn what_cannot_be_imported_leaves_nothing() {
    let pool = Pool::new();
    let (image, _) = raw_image(&pool);
    pool.run(&["volume", "import", path(&image), "--encrypted", "--size", "1MiB"]).refused(exit::USAGE);
    pool.run(&["volume", "import", "/nowhere/disk.img"]).refused(exit::NOT_FOUND);
    pool.run(&["volume", "import", path(&image), "--format", "qcow2"]).refused(exit::USAGE);
    pool.run(&["volume", "import", path(&image), "--encrypted", "--kms-key-id", "alias/none"])
        .refused(exit::NOT_FOUND);
    assert_eq!(pool.json(&["volume", "list"])["Volumes"].as_array().expect("a list").len(), 0);
}

#[test]
fn r47_an_import_that_is_killed_at_any_step_leaves_no_half_volume_and_no_plaintext() {
    let pool = Pool::new();
    let image = pool.root().join("small.img");
    let mut expected = vec![0; MIB as usize];
    expected[70_000..][..MARKER.len()].copy_from_slice(MARKER);
    fs::write(&image, &expected).expect("an image");
    let command = ["volume", "import", path(&image), "--encrypted"];
    let mut step = 1;
    loop {
        let through = killed_at(&pool, STEPS, step, &command);
        let what = format!("killed at step {step}");
        nothing_in_the_pool_is_plaintext(&pool);
        let listed = pool.json(&["volume", "list"]);
        let volumes = listed["Volumes"].as_array().expect("a list");
        assert!(volumes.len() <= 1, "{what}: {listed}");
        for volume in volumes {
            let volume = volume["VolumeId"].as_str().expect("an id");
            assert!(content(&pool, volume) == expected, "{what}");
            pool.run(&["volume", "delete", volume]).ok();
        }
        if through {
            break;
        }
        step += 1;
        assert!(step < 100, "it never gets through");
    }
    assert!(step > 5, "{step} steps");
    let volume = import(&pool, &image, &["--encrypted"]);
    nothing_is_left(&pool);
    assert!(content(&pool, &volume) == expected);
}
