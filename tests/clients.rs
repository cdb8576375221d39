//! Clients that are not ours, each used as its own manual says, on encrypted and unencrypted volumes alike: the same
//! command lines, the same exports, nothing for the client to know (r22, r23).

mod support;

use std::path::Path;

use serde_json::Value;
use support::{Attachment, MIB, Pool, Snapshots, foreign, noise, run};

/// Runs a test on an encrypted volume and on one that is not, each with `args` for `volume create`.
fn on_both(args: &[&str], test: impl Fn(&Pool, &str, &Attachment)) {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[&[encryption], args].concat());
        let attachment = pool.attach(&volume, &[]);
        test(&pool, &volume, &attachment);
        attachment.terminate();
    }
}

/// Runs a foreign program on what its arguments name.
#[track_caller]
fn with(program: &str, args: &[&str]) -> String {
    run(foreign(program).args(args)).ok()
}

/// A file of `len` bytes of noise in which a stretch is zero, as disk images have them.
fn image(pool: &Pool, name: &str, len: usize) -> std::path::PathBuf {
    let mut bytes = noise(7, len);
    bytes[len / 4..len / 2].fill(0);
    let path = pool.root().join(name);
    std::fs::write(&path, bytes).expect("the image is written");
    path
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// The export as nbdinfo shows it, without what differs by nature: the name, and the address with it.
fn export(uri: &str) -> Value {
    let shown = with("nbdinfo", &["--json", "--no-content", uri]);
    let shown: Value = serde_json::from_str(&shown).expect("nbdinfo prints JSON");
    let mut export = shown["exports"][0].clone();
    for name in ["export-name", "uri", "description"] {
        export.as_object_mut().expect("an export is an object").remove(name);
    }
    export
}

#[test]
fn r22_an_encrypted_export_looks_like_an_unencrypted_one() {
    let pool = Pool::new();
    let encrypted = pool.create(&["--encrypted", "--size", "100MiB"]);
    let plain = pool.create(&["--no-encrypted", "--size", "100MiB"]);
    let (first, second) = (pool.attach(&encrypted, &[]), pool.attach(&plain, &[]));
    let shape = export(first.uri());
    assert_eq!(shape, export(second.uri()));
    assert_eq!(shape["export-size"], 100 * MIB);
    for able in
        ["can_cache", "can_fast_zero", "can_flush", "can_fua", "can_multi_conn", "can_trim", "can_zero"]
    {
        assert_eq!(shape[able], true, "{able} in {shape}");
    }
    assert_eq!(
        (&shape["is_read_only"], &shape["block_size_minimum"]),
        (&Value::from(false), &Value::from(1)),
        "{shape}"
    );
}

#[test]
fn nbdinfo_lists_the_one_export_and_the_empty_name_means_it_too() {
    on_both(&["--size", "5MiB"], |_, volume, attachment| {
        let listed = with("nbdinfo", &["--list", "--json", &unnamed(attachment)]);
        let listed: Value = serde_json::from_str(&listed).expect("nbdinfo prints JSON");
        let names: Vec<&Value> =
            listed["exports"].as_array().expect("a list").iter().map(|e| &e["export-name"]).collect();
        assert_eq!(names, [volume]);
        assert_eq!(with("nbdinfo", &["--size", attachment.uri()]).trim(), "5242880");
        assert_eq!(with("nbdinfo", &["--size", &unnamed(attachment)]).trim(), "5242880");
        run(foreign("nbdinfo").args(["--size", &attachment.uri().replace("vol-", "lov-")])).failed();
    });
}

/// The attachment's URI without the export's name.
fn unnamed(attachment: &Attachment) -> String {
    format!("nbd+unix:///?socket={}", text(attachment.socket()))
}

#[test]
fn nbd_client_lists_the_export_over_tcp() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "1MiB"]);
        let attachment = pool.attach(&volume, &["--listen", "127.0.0.1:0"]);
        let port = attachment.port().to_string();
        let listed = with("nbd-client", &["-l", "127.0.0.1", &port]);
        assert!(listed.lines().any(|line| line.trim() == volume), "{listed}");
        attachment.terminate();
    }
}

#[test]
fn r23_nbdcopy_in_and_out_gives_the_same_bytes_before_and_after_a_detach() {
    on_both(&["--size", "64MiB"], |pool, volume, attachment| {
        let (image, back) = (image(pool, "image", 64 << 20), pool.root().join("back"));
        with("nbdcopy", &["--connections=4", "--flush", text(&image), attachment.uri()]);
        with("nbdcopy", &["--connections=4", attachment.uri(), text(&back)]);
        assert!(std::fs::read(&image).expect("in") == std::fs::read(&back).expect("out"), "while attached");
        with("nbdcopy", &["--allocated", text(&image), attachment.uri()]);
        assert_eq!(pool.describe(volume)["State"], "in-use");
    });
}

#[test]
fn nbdcopy_reads_back_after_another_attach_what_it_wrote_before() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "16MiB"]);
        let (image, back) = (image(&pool, "image", 16 << 20), pool.root().join("back"));
        let attachment = pool.attach(&volume, &[]);
        with("nbdcopy", &[text(&image), attachment.uri()]);
        attachment.terminate();
        let attachment = pool.attach(&volume, &["--read-only"]);
        with("nbdcopy", &[attachment.uri(), text(&back)]);
        assert!(std::fs::read(&image).expect("in") == std::fs::read(&back).expect("out"), "{encryption}");
        run(foreign("nbdcopy").args([text(&image), attachment.uri()])).failed();
    }
}

/// Runs a Python script of ours in libnbd's shell; it finds the address in its environment.
#[track_caller]
fn nbdsh(attachment: &Attachment, script: &str) {
    run(foreign("nbdsh").env("SEALBLK_URI", attachment.uri()).args(["-c", script])).ok();
}

/// Every command with the flags it may carry, at odd offsets, against a model of the volume in the script itself.
#[test]
fn nbdsh_finds_any_byte_range_right_with_every_command() {
    on_both(&["--size", "8MiB"], |_, _, attachment| {
        nbdsh(attachment, include_str!("nbdsh/any_byte_range.py"));
    });
}

#[test]
fn nbdsh_is_told_the_right_errors() {
    on_both(&["--size", "1MiB"], |_, _, attachment| {
        nbdsh(attachment, include_str!("nbdsh/errors.py"));
    });
}

#[test]
fn nbdsh_is_told_extents_and_chunks_exactly() {
    on_both(&["--size", "8MiB"], |_, _, attachment| {
        nbdsh(attachment, include_str!("nbdsh/block_status.py"));
    });
}

/// Where data is written in the tests of maps: offset and length.
const DATA: [(u64, usize); 3] = [(MIB, 1 << 20), (5 * MIB, 64 << 10), (8 * MIB - 4096, 4096)];

/// What a map of that must say: offset, length, whether there is data.
fn expected_map() -> Vec<(u64, u64, bool)> {
    let (mut map, mut at) = (Vec::new(), 0);
    for (offset, len) in DATA {
        map.push((at, offset - at, false));
        map.push((offset, len as u64, true));
        at = offset + len as u64;
    }
    map
}

/// A sparse image of 8 MiB with noise where [`DATA`] says.
fn sparse_image(pool: &Pool) -> std::path::PathBuf {
    let mut bytes = vec![0; 8 << 20];
    for (offset, len) in DATA {
        bytes[offset as usize..][..len].copy_from_slice(&noise(offset, len));
    }
    let path = pool.root().join("sparse-image");
    std::fs::write(&path, bytes).expect("the image is written");
    path
}

/// How much of a file has space of its own.
fn allocated_bytes(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).expect("the file is there").blocks() * 512
}

/// The map of an export as nbdinfo prints it.
fn nbdinfo_map(uri: &str) -> Vec<(u64, u64, bool)> {
    let map: Value = serde_json::from_str(&with("nbdinfo", &["--map", "--json", uri])).expect("JSON");
    let number = |extent: &Value, name: &str| extent[name].as_u64().expect("a number");
    let extent = |extent: &Value| {
        let kind = number(extent, "type");
        assert!(kind == 0 || kind == 3, "data, or a hole that reads as zeros: {extent}");
        (number(extent, "offset"), number(extent, "length"), kind == 0)
    };
    map.as_array().expect("a list").iter().map(extent).collect()
}

#[test]
fn maps_of_a_volume_show_its_data_and_its_holes_exactly() {
    on_both(&["--size", "8MiB"], |_, _, attachment| {
        let size = 8 * MIB;
        assert_eq!(nbdinfo_map(attachment.uri()), [(0, size, false)]);
        let mut client = attachment.client();
        for (offset, len) in DATA {
            client.write(offset, &noise(offset, len)).expect("the write is taken");
        }
        assert_eq!(nbdinfo_map(attachment.uri()), expected_map());
        let map = with("qemu-img", &["map", "-f", "raw", "--output=json", attachment.uri()]);
        let map: Value = serde_json::from_str(&map).expect("qemu-img prints JSON");
        let extent = |extent: &Value| {
            let data = extent["data"].as_bool().expect("a flag");
            assert_eq!(extent["zero"], Value::from(!data), "{extent}");
            let number = |name: &str| extent[name].as_u64().expect("a number");
            (number("start"), number("length"), data)
        };
        let seen: Vec<_> = map.as_array().expect("a list").iter().map(extent).collect();
        assert_eq!(seen, expected_map());
        client.trim(0, 8 << 20).expect("the trim is answered");
        assert_eq!(nbdinfo_map(attachment.uri()), [(0, size, false)]);
    });
}

#[test]
fn sparse_copies_in_and_out_stay_sparse() {
    on_both(&["--size", "8MiB"], |pool, _, attachment| {
        let image = sparse_image(pool);
        let space: u64 = DATA.iter().map(|(_, len)| *len as u64).sum();
        with("nbdcopy", &[text(&image), attachment.uri()]);
        assert_eq!(nbdinfo_map(attachment.uri()), expected_map());
        let (by_nbdcopy, by_qemu) = (pool.root().join("nbdcopy"), pool.root().join("qemu-img"));
        with("nbdcopy", &[attachment.uri(), text(&by_nbdcopy)]);
        with("qemu-img", &["convert", "-f", "raw", "-O", "raw", attachment.uri(), text(&by_qemu)]);
        let original = std::fs::read(&image).expect("in");
        for copy in [by_nbdcopy, by_qemu] {
            assert!(std::fs::read(&copy).expect("out") == original, "{}", copy.display());
            // A file system may count a block of its own map.
            let allocated = allocated_bytes(&copy);
            assert!((space..=space + 65536).contains(&allocated), "{}: {allocated} bytes", copy.display());
        }
    });
}

#[test]
fn qemu_img_converts_compares_and_tells_the_size() {
    on_both(&["--size", "32MiB"], |pool, _, attachment| {
        let (image, back) = (image(pool, "image", 32 << 20), pool.root().join("back.qcow2"));
        let info = with("qemu-img", &["info", "--output=json", attachment.uri()]);
        let info: Value = serde_json::from_str(&info).expect("qemu-img prints JSON");
        assert_eq!(info["virtual-size"], 32 * MIB);
        with(
            "qemu-img",
            &["convert", "-n", "-f", "raw", "-O", "raw", "-W", "-m", "8", text(&image), attachment.uri()],
        );
        with("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&image), attachment.uri()]);
        with("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", attachment.uri(), text(&back)]);
        with("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", text(&image), text(&back)]);
        // The comparison can fail: one byte makes it.
        attachment.client().write(12_345_678, b"?").expect("a byte is written");
        run(foreign("qemu-img").args(["compare", "-f", "raw", "-F", "raw", text(&image), attachment.uri()]))
            .refused(1);
    });
}

#[test]
fn qemu_io_verifies_its_patterns() {
    on_both(&["--size", "16MiB"], |_, _, attachment| {
        let io = |commands: &[&str]| {
            let mut command = foreign("qemu-io");
            command.args(["-f", "raw", "-t", "none"]);
            commands.iter().for_each(|one| _ = command.args(["-c", one]));
            let text = run(command.arg(attachment.uri())).ok();
            assert!(!text.contains("failed") && !text.contains("error"), "{text}");
        };
        io(&[
            "write -P 0xa5 0 4M",
            "write -P 0x5a 1000 3001",
            "read -P 0xa5 0 1000",
            "read -P 0x5a 1000 3001",
            "flush",
        ]);
        io(&["read -P 0xa5 4001 1M", "write -f -P 7 5M 64k", "read -P 7 5M 64k"]);
        io(&["write -z 1M 1M", "read -P 0 1M 1M", "write -z -u 2M 512k", "read -P 0 2M 512k"]);
        io(&["discard 3M 1M", "read -P 0 3M 1M", "read -P 0xa5 2560k 512k", "read -P 0 8M 8M"]);
        let wrong = run(foreign("qemu-io").args(["-f", "raw", "-c", "read -P 1 0 512", attachment.uri()]));
        assert!(wrong.stdout.contains("Pattern verification failed"), "a wrong pattern is found: {wrong}");
    });
}

#[test]
fn the_nbd_crate_reads_what_it_wrote_at_odd_offsets() {
    on_both(&["--size", "3MiB"], |_, _, attachment| {
        let mut client = attachment.client();
        assert_eq!((client.size(), client.read_only()), (3 * MIB, false));
        for (at, len) in [(0, 1), (511, 2), (1_000_001, 70_001), (3 * MIB - 513, 513)] {
            let bytes = noise(at, len);
            client.write(at, &bytes).expect("the write is taken");
            assert!(client.read(at, len).expect("the read is answered") == bytes, "{len} bytes at {at}");
        }
        client.flush().expect("the flush is answered");
        client.trim(0, 4096).expect("the trim is answered");
        assert!(client.read(0, 4096).expect("the read is answered").iter().all(|&byte| byte == 0));
        let mut second = attachment.client();
        assert!(second.read(1_000_001, 70_001).expect("another connection") == noise(1_000_001, 70_001));
    });
}

#[test]
fn fio_verifies_checksums_on_four_connections() {
    on_both(&["--size", "64MiB"], |pool, _, attachment| {
        let uri = format!("--uri={}", attachment.uri());
        let mixed =
            ["--name=verify", "--rw=randwrite", "--bsrange=512-128k", "--bs_unaligned", "--iodepth=16"];
        let shape = [
            "--thread",
            "--numjobs=4",
            "--size=16m",
            "--offset_increment=16m",
            "--ioengine=nbd",
            "--randrepeat=1",
        ];
        let check =
            ["--verify=crc32c", "--verify_fatal=1", "--do_verify=1", "--fsync=64", "--output-format=terse"];
        let out =
            run(foreign("fio").current_dir(pool.root()).args(mixed).args(shape).args(check).arg(&uri)).ok();
        assert_eq!(out.lines().filter(|line| line.starts_with("3;fio")).count(), 4, "four jobs: {out}");
        // The check can fail: a byte that fio did not write is found by a second, read-only pass.
        attachment.client().write(20 << 20, &noise(1, 65536)).expect("bytes are written");
        let again = ["--verify_only=1", "--verify_fatal=1", "--verify=crc32c"];
        run(foreign("fio").current_dir(pool.root()).args(mixed).args(shape).args(again).arg(&uri)).failed();
    });
}

/// Runs of blocks of 512 KiB as `nbdinfo` shows them: how many, and whether they are the volume's own.
fn restored_runs(attachment: &Attachment) -> Vec<(u64, u64)> {
    let mut nbdinfo = foreign("nbdinfo");
    nbdinfo.args(["--json", "--map=x-sealblk:restored", attachment.uri()]);
    let told: Value = serde_json::from_str(&run(&mut nbdinfo).ok()).expect("JSON");
    let number = |extent: &Value, field: &str| extent[field].as_u64().expect("a number");
    let extents = told.as_array().expect("a list").iter();
    extents.map(|extent| (number(extent, "length") >> 19, number(extent, "type"))).collect()
}

#[test]
fn libnbd_shows_which_blocks_of_a_volume_from_a_snapshot_are_here() {
    let pool = Pool::new();
    let first = pool.create(&["--encrypted", "--size", "4MiB"]);
    let attachment = pool.attach(&first, &[]);
    for block in [1_u64, 2, 7] {
        attachment.client().write(block << 19, &noise(block, 512 << 10)).expect("a write");
    }
    let nbdinfo = run(foreign("nbdinfo").arg(attachment.uri())).ok();
    assert!(!nbdinfo.contains("x-sealblk"), "this one came from nowhere: {nbdinfo}");
    attachment.terminate();
    let snapshots = Snapshots::of(&pool);
    let snapshot = snapshots.create(&first);
    let second = pool.create(&["--snapshot-id", &snapshot]);

    // What is not there is not restored, for as long as that.
    let files = [1, 2, 7].map(|block| snapshots.block_file(&snapshot, block));
    let aside = |file: &Path| file.with_extension("aside");
    files.iter().for_each(|file| std::fs::rename(file, aside(file)).expect("a block's file"));
    let attachment = pool.attach(&second, &[]);
    assert_eq!(restored_runs(&attachment), [(1, 1), (2, 0), (4, 1), (1, 0)]);
    let map = run(foreign("nbdinfo").args(["--map", attachment.uri()])).ok();
    assert!(map.contains("hole,zero"), "the other context is there too: {map}");
    attachment.terminate();

    files.iter().for_each(|file| std::fs::rename(aside(file), file).expect("and back"));
    pool.run(&["volume", "restore", &second]).ok();
    let attachment = pool.attach(&second, &[]);
    assert_eq!(restored_runs(&attachment), [(8, 1)]);
    assert!(attachment.client().read(1 << 19, 512 << 10).expect("a read") == noise(1, 512 << 10));
    attachment.terminate();
}
