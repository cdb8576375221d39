//! A stock Linux kernel as the client, in a virtual machine: the kernel's own NBD driver and ext4 on an attached
//! volume, and its dm-crypt on the raw data file. dm-crypt is the independent judge of the format (docs/FORMAT.md),
//! and the documented way to the data without Sealblk.
//!
//! Each boot runs the steps that the test names (`tests/vm/init` is what they are written in) and says PASS or FAIL
//! for each on its console.

mod support;

use std::fmt::Write as _;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use support::{Attachment, Pool, data_key_hex, foreign, run};

/// Big enough for ext4 and 40 MB of files, small enough to be written out whole.
const SIZE: &str = "96MiB";
const SECTORS: u64 = (96 << 20) / 512;

/// The directory with the guest's kernel and initramfs, built at its first use.
fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm");
        run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/build")).arg(&dir)).ok();
        dir
    })
}

/// One boot: a shell script of steps, and disks.
struct Boot<'a> {
    pool: &'a Pool,
    task: String,
    disks: Vec<PathBuf>,
    processors: u32,
}

impl<'a> Boot<'a> {
    fn new(pool: &'a Pool) -> Self {
        Self { pool, task: String::from("step network network\n"), disks: Vec::new(), processors: 1 }
    }

    /// A step, named by its command.
    fn step(&mut self, command: &str) -> &mut Self {
        writeln!(self.task, "step '{}' {command}", command.chars().take(48).collect::<String>())
            .expect("a string takes anything");
        self
    }

    /// A step whose command holds something that must not be in the console's output.
    fn named(&mut self, name: &str, command: &str) -> &mut Self {
        writeln!(self.task, "step '{name}' {command}").expect("a string takes anything");
        self
    }

    /// A file as a read-only virtio disk: the first is /dev/vda.
    fn disk(&mut self, data: PathBuf) -> &mut Self {
        self.disks.push(data);
        self
    }

    /// Boots, and fails unless every step passed.
    #[track_caller]
    fn run(&self) {
        let initrd = self.initrd();
        let mut qemu = foreign("qemu-system-x86_64");
        qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-m", "512"]);
        qemu.arg("-smp").arg(self.processors.to_string());
        qemu.args(["-nographic", "-no-reboot", "-append", "console=ttyS0 quiet panic=-1"]);
        qemu.args(["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="]);
        qemu.arg("-kernel").arg(guest().join("vmlinuz")).arg("-initrd").arg(&initrd);
        for disk in &self.disks {
            qemu.arg("-drive").arg(format!("file={},format=raw,if=virtio,readonly=on", disk.display()));
        }
        let console = run(&mut qemu).ok().replace('\r', "");
        let steps = self.task.lines().count();
        let passed = console.lines().filter(|line| line.contains("PASS ")).count();
        assert!(!console.contains("FAIL ") && console.contains("DONE"), "the guest's console:\n{console}");
        assert_eq!(passed, steps, "every step says so:\n{console}");
    }

    /// The guest's initramfs with the task behind it: the kernel unpacks one archive after the other.
    fn initrd(&self) -> PathBuf {
        std::fs::write(self.pool.root().join("task.sh"), &self.task).expect("the task is written");
        let path = self.pool.root().join("initrd");
        std::fs::copy(guest().join("initramfs.cpio"), &path).expect("the initramfs is there");
        let archive = File::options().append(true).open(&path).expect("it can be appended to");
        let mut cpio = foreign("cpio");
        cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(self.pool.root()).stdout(archive);
        let list = File::open(self.list()).expect("the list was written");
        let status = cpio.stdin(list).status().expect("cpio runs");
        assert!(status.success(), "cpio: {status}");
        path
    }

    fn list(&self) -> PathBuf {
        let path = self.pool.root().join("list");
        std::fs::write(&path, "task.sh\n").expect("the list is written");
        path
    }
}

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
