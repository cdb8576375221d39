//! One boot of the guest: what it does, step by step, with which disks, and what it may ask of the test meanwhile.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use super::support::{Pool, foreign, run};

/// The directory with the guest's kernel and initramfs, built at its first use.
fn guest() -> &'static Path {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST.get_or_init(|| {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/vm");
        run(Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/vm/build")).arg(&dir)).ok();
        dir
    })
}

/// Every processor of a guest is a busy one of ours.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// One boot: a shell script of steps, disks, and whom it may ask for something in the middle of it.
pub(crate) struct Boot<'a> {
    pool: &'a Pool,
    task: String,
    disks: Vec<PathBuf>,
    /// More files for the guest's root directory.
    files: Vec<PathBuf>,
    /// Further arguments of QEMU's.
    arguments: Vec<String>,
    pub(crate) processors: u32,
    listener: TcpListener,
}

impl<'a> Boot<'a> {
    pub(crate) fn new(pool: &'a Pool) -> Self {
        Self {
            pool,
            task: String::from("step network network\n"),
            disks: Vec::new(),
            files: Vec::new(),
            arguments: Vec::new(),
            processors: 1,
            listener: TcpListener::bind("127.0.0.1:0").expect("a free port"),
        }
    }

    /// A step, named by its command.
    pub(crate) fn step(&mut self, command: &str) -> &mut Self {
        writeln!(self.task, "step '{}' {command}", command.chars().take(48).collect::<String>())
            .expect("a string takes anything");
        self
    }

    /// A step whose command holds something that must not be in the console's output.
    pub(crate) fn named(&mut self, name: &str, command: &str) -> &mut Self {
        writeln!(self.task, "step '{name}' {command}").expect("a string takes anything");
        self
    }

    /// A file as a read-only virtio disk: the first is /dev/vda.
    pub(crate) fn disk(&mut self, data: PathBuf) -> &mut Self {
        self.disks.push(data);
        self
    }

    /// A file for the guest's root directory, under its own name.
    pub(crate) fn file(&mut self, path: PathBuf) -> &mut Self {
        self.files.push(path);
        self
    }

    /// Two arguments more for QEMU.
    pub(crate) fn qemu(&mut self, option: &str, value: String) -> &mut Self {
        self.arguments.extend([option.to_owned(), value]);
        self
    }

    /// A step that is done here, outside the guest, by what [`Self::run_with`] is given.
    pub(crate) fn ask(&mut self, word: &str) -> &mut Self {
        let port = self.listener.local_addr().expect("its address").port();
        self.step(&format!("host {port} {word}"))
    }

    /// Boots, and fails unless every step passed.
    #[track_caller]
    pub(crate) fn run(&self) {
        self.run_with(|word| panic!("nobody here knows how to {word}"));
    }

    /// Boots, does with `host` what the guest asks for, and fails unless every step passed.
    #[track_caller]
    pub(crate) fn run_with(&self, host: impl FnMut(&str) + Send) {
        let address = self.listener.local_addr().expect("its address");
        std::thread::scope(|scope| {
            let helper = scope.spawn(|| answer(&self.listener, host));
            let end = NoMore(address);
            let console = self.console();
            drop(end);
            helper.join().unwrap_or_else(|_| panic!("what was asked of the host failed:\n{console}"));
            let steps = self.task.lines().count();
            let passed = console.lines().filter(|line| line.contains("PASS ")).count();
            assert!(
                !console.contains("FAIL ") && console.contains("DONE"),
                "the guest's console:\n{console}"
            );
            assert_eq!(passed, steps, "every step says so:\n{console}");
        });
    }

    /// Boots, and gives what the guest wrote until it went off.
    #[track_caller]
    fn console(&self) -> String {
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
        qemu.args(&self.arguments);
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        run(&mut qemu).ok().replace('\r', "")
    }

    /// The guest's initramfs with the task behind it: the kernel unpacks one archive after the other.
    fn initrd(&self) -> PathBuf {
        let path = self.pool.root().join("initrd");
        std::fs::copy(guest().join("initramfs.cpio"), &path).expect("the initramfs is there");
        let archive = File::options().append(true).open(&path).expect("it can be appended to");
        let mut cpio = foreign("cpio");
        let directory = self.pool.root().join("for-the-guest");
        cpio.args(["--quiet", "-o", "-H", "newc"]).current_dir(&directory).stdout(archive);
        let list = File::open(self.collected(&directory)).expect("the list was written");
        let status = cpio.stdin(list).status().expect("cpio runs");
        assert!(status.success(), "cpio: {status}");
        path
    }

    /// Puts the task and the files into `directory`, and their names into the file that is returned.
    fn collected(&self, directory: &Path) -> PathBuf {
        std::fs::create_dir_all(directory).expect("a directory for the guest's files");
        std::fs::write(directory.join("task.sh"), &self.task).expect("the task is written");
        let mut names = String::from("task.sh\n");
        for file in &self.files {
            let name = file.file_name().and_then(|name| name.to_str()).expect("a name that is text");
            std::fs::copy(file, directory.join(name)).expect("the file is there");
            writeln!(names, "{name}").expect("a string takes anything");
        }
        let path = self.pool.root().join("list");
        std::fs::write(&path, names).expect("the list is written");
        path
    }
}

/// Does what each connection asks for in a line, and says so, until one asks for nothing.
fn answer(listener: &TcpListener, mut host: impl FnMut(&str)) {
    loop {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("what is asked for");
        match line.trim_end() {
            "" => return,
            word => host(word),
        }
        // A guest that did not wait for it has said FAIL.
        let _ = stream.write_all(b"done\n");
    }
}

/// Ends [`answer`] when it is dropped, which is when the guest is off.
struct NoMore(SocketAddr);

impl Drop for NoMore {
    fn drop(&mut self) {
        // If nobody listens, it has ended.
        let _ = TcpStream::connect(self.0);
    }
}
