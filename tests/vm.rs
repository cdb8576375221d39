//! A stock Linux kernel as the client, in a virtual machine: the kernel's own NBD driver and ext4 on an attached
//! volume, and its dm-crypt on the raw data file. dm-crypt is the independent judge of the format (docs/FORMAT.md),
//! and the documented way to the data without Sealblk.
//!
//! Each boot runs the steps that the test names (`tests/vm/init` is what they are written in) and says PASS or FAIL
//! for each on its console.

#[path = "vm/boot.rs"]
mod boot;
#[path = "vm/qmp.rs"]
mod qmp;
mod support;

use boot::Boot;
use qmp::Qmp;
use serde_json::json;
use support::{Attachment, MIB, Pool, certificates, data_key_hex};

/// Big enough for ext4 and 40 MB of files, small enough to be written out whole.
const SIZE: &str = "96MiB";
const SECTORS: u64 = (96 << 20) / 512;

/// Attaches a volume where the guest can reach it.
fn serve(pool: &Pool, volume: &str) -> Attachment {
    pool.attach(volume, &["--listen", "127.0.0.1:0"])
}

/// Connections of the kernel's client; it uses as many of them as it has processors.
const CONNECTIONS: u32 = 4;

/// First boot: the kernel's client puts a file system with files on each volume, over one connection and over several.
fn write_through_the_kernel(pool: &Pool, volumes: &[&str]) {
    let attached: Vec<Attachment> = volumes.iter().map(|volume| serve(pool, volume)).collect();
    let mut boot = Boot::new(pool);
    boot.processors = CONNECTIONS;
    for (attachment, (block, connections)) in attached.iter().zip([(512, 1), (4096, CONNECTIONS)]) {
        let (port, export) = (attachment.port(), attachment.volume());
        boot.step(&format!("attach /dev/nbd0 {port} {export} {block} {connections}"));
        boot.step(&format!("has_queues nbd0 {connections}"));
        boot.step("mkfs.ext4 -q -b 4096 /dev/nbd0").step("mount -t ext4 /dev/nbd0 /mnt");
        boot.step(&format!("fill {export}")).step("free_and_trim").step("compare");
        boot.step("umount /mnt");
        // What was written through one connection is there through each other one.
        boot.step("same_on_every_processor /dev/nbd0").step("nbd-client -d /dev/nbd0");
    }
    boot.run();
    attached.into_iter().for_each(Attachment::terminate);
}

/// Later boot: the same over a new attachment.
fn read_through_the_kernel(pool: &Pool, volumes: &[&str]) {
    let attached: Vec<Attachment> = volumes.iter().map(|volume| serve(pool, volume)).collect();
    let mut boot = Boot::new(pool);
    for attachment in &attached {
        let (port, export) = (attachment.port(), attachment.volume());
        boot.step(&format!("attach /dev/nbd0 {port} {export} 4096"));
        boot.step("e2fsck -fn /dev/nbd0").step("mount -t ext4 -o ro /dev/nbd0 /mnt").step("compare");
        boot.step("umount /mnt").step("nbd-client -d /dev/nbd0");
    }
    boot.run();
    attached.into_iter().for_each(Attachment::terminate);
}

/// The raw data files as dm-crypt decrypts them, given the data keys and nothing else; and that a wrong key is
/// noticed, so that this test can fail.
fn read_through_dm_crypt(pool: &Pool, volumes: &[&str]) {
    let mut boot = Boot::new(pool);
    for (volume, disk) in volumes.iter().zip(["/dev/vda", "/dev/vdb"]) {
        let key = data_key_hex(pool, volume);
        let wrong = format!("{}{}", if key.starts_with('0') { "1" } else { "0" }, &key[1..]);
        boot.disk(pool.data(volume));
        boot.named("dm-crypt opens the data file", &format!("decrypt d {disk} {SECTORS} {key}"));
        boot.step("e2fsck -fn /dev/mapper/d").step("mount -t ext4 -o ro,noload /dev/mapper/d /mnt");
        boot.step("compare").step("umount /mnt").step("dmsetup remove d");
        boot.named("dm-crypt takes a wrong key", &format!("decrypt w {disk} {SECTORS} {wrong}"));
        boot.step("refused mount -t ext4 -o ro,noload /dev/mapper/w /mnt").step("dmsetup remove w");
    }
    boot.run();
}

#[test]
fn r23_a_linux_kernel_uses_volumes_and_dm_crypt_opens_their_data() {
    let pool = Pool::new();
    let kept = pool.create(&["--encrypted", "--no-discard", "--size", SIZE]);
    let trimmed = pool.create(&["--encrypted", "--size", SIZE]);
    let volumes = [kept.as_str(), trimmed.as_str()];

    write_through_the_kernel(&pool, &volumes);
    read_through_the_kernel(&pool, &volumes);
    pool.run(&["volume", "materialize", &trimmed]).ok();
    read_through_dm_crypt(&pool, &volumes);
    // What was materialized is still the same volume.
    read_through_the_kernel(&pool, &[&trimmed]);
}

/// What a volume of [`SIZE`] grows to.
const GROWN: u64 = 192 * MIB;

fn grow(pool: &Pool, volume: &str) {
    pool.run(&["volume", "modify", volume, "--size", &GROWN.to_string()]).ok();
}

/// The steps that show a file system of the old size on a device of the new one made larger, filled and sound.
fn use_what_is_new(boot: &mut Boot<'_>, device: &str) {
    boot.step(&format!("resize2fs {device}")).step("has_room_for 130000");
    boot.step("compare").step("fill_more").step("compare").step("umount /mnt");
    boot.step(&format!("e2fsck -fn {device}"));
}

#[test]
fn a_linux_kernel_that_connects_again_sees_the_new_size_and_keeps_its_files() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", SIZE]);
    let attachment = serve(&pool, &volume);
    let attach = format!("attach /dev/nbd0 {} {volume} 4096 2", attachment.port());
    let mut boot = Boot::new(&pool);
    boot.processors = 2;
    boot.step(&attach).step("mkfs.ext4 -q -b 4096 /dev/nbd0").step("mount -t ext4 /dev/nbd0 /mnt");
    boot.step("fill before").ask("grow");
    // The connections that are open go on as they were.
    boot.step(&format!("has_size /dev/nbd0 {}", SECTORS * 512)).step("fill after").step("compare");
    // docs/NBD.md, "A volume that grows".
    boot.step("umount /mnt").step("nbd-client -d /dev/nbd0").step(&attach);
    boot.step(&format!("has_size /dev/nbd0 {GROWN}")).step("mount -t ext4 /dev/nbd0 /mnt");
    use_what_is_new(&mut boot, "/dev/nbd0");
    boot.step("nbd-client -d /dev/nbd0");
    boot.run_with(|word| {
        assert_eq!(word, "grow");
        grow(&pool, &volume);
    });
    attachment.terminate();
    assert_eq!(pool.describe(&volume)["SizeBytes"].as_u64(), Some(GROWN));
}

#[test]
fn a_guest_of_qemu_sees_the_new_size_of_its_disk_while_it_is_mounted() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", SIZE]);
    let attachment = pool.attach(&volume, &[]);
    let monitor = pool.root().join("qmp.sock");
    let socket = attachment.socket().to_owned();
    let node = |name: &str| {
        json!({
            "driver": "nbd", "node-name": name, "export": volume,
            "server": { "type": "unix", "path": socket },
        })
    };
    let mut boot = Boot::new(&pool);
    boot.processors = 2;
    boot.qemu("-qmp", format!("unix:{},server=on,wait=off", monitor.display()));
    boot.qemu("-blockdev", node("connection").to_string());
    boot.qemu("-blockdev", json!({ "driver": "raw", "node-name": "disk", "file": "connection" }).to_string());
    boot.qemu("-device", "virtio-blk-pci,drive=disk".to_owned());
    boot.step("mkfs.ext4 -q -b 4096 /dev/vda").step("mount -t ext4 /dev/vda /mnt");
    boot.step("fill before").step("begin_writing").ask("grow").step("end_writing");
    boot.step(&format!("comes_to_size vda {GROWN}")).step("compare");
    use_what_is_new(&mut boot, "/dev/vda");
    boot.run_with(|word| {
        assert_eq!(word, "grow");
        grow(&pool, &volume);
        // docs/NBD.md, "A volume that grows".
        let mut qmp = Qmp::connect(&monitor);
        let resize = json!({ "node-name": "disk", "size": GROWN });
        qmp.ask("block_resize", resize.clone()).expect_err("the open connection keeps its size");
        qmp.execute("blockdev-add", node("again"));
        let disk = json!({ "driver": "raw", "node-name": "disk", "file": "again" });
        qmp.execute("blockdev-reopen", json!({ "options": [disk] }));
        qmp.execute("block_resize", resize);
        qmp.execute("blockdev-del", json!({ "node-name": "connection" }));
    });
    attachment.terminate();
}

#[test]
fn a_linux_kernel_keeps_a_file_system_on_a_volume_behind_tls() {
    let pool = Pool::new();
    let authority = certificates(pool.root(), "pki", &["guest"]);
    let volume = pool.create(&["--encrypted", "--size", SIZE]);
    let directory = authority.to_str().expect("temporary paths are text");
    let tls = ["--listen", "127.0.0.1:0", "--tls-certificates", directory, "--tls-allow-name", "guest"];
    let attachment = pool.attach(&volume, &tls);
    let port = attachment.tls_port();
    let attach = format!("attach_tls /dev/nbd0 {port} {volume} 2");
    let mut boot = Boot::new(&pool);
    boot.processors = 2;
    for file in ["client-cert.pem", "client-key.pem", "ca-cert.pem"] {
        boot.file(authority.join("guest").join(file));
    }
    boot.step(&format!("refused attach /dev/nbd0 {port} {volume} 4096"));
    boot.step(&attach).step("mkfs.ext4 -q -b 4096 /dev/nbd0").step("mount -t ext4 /dev/nbd0 /mnt");
    boot.step("fill tls").step("free_and_trim").step("compare").step("umount /mnt");
    boot.step("same_on_every_processor /dev/nbd0").step("nbd-client -d /dev/nbd0");
    boot.step(&attach).step("e2fsck -fn /dev/nbd0").step("mount -t ext4 -o ro /dev/nbd0 /mnt");
    boot.step("compare").step("umount /mnt").step("nbd-client -d /dev/nbd0");
    boot.run();
    attachment.terminate();
}
