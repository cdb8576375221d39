//! Against nbdkit, with its filters as fault injectors. It is one of the tools that scripts/install-tools installs.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use sealblk_block::{BlockDevice, BlockLane, Buffer, Durability, Lba};
use sealblk_upstream::UpstreamDevice;

use crate::rig::{PATIENCE, filled, open, read_all, run, write};
use crate::shadow::{SECTORS, exercise};

/// A running nbdkit; killed when dropped.
pub(crate) struct Nbdkit(Child);

impl Nbdkit {
    /// Starts it at `socket`; it can be reached when this returns, for that is when nbdkit writes its pid file.
    pub(crate) fn start(socket: &Path, arguments: &[&str]) -> Self {
        let pid_file = socket.with_extension("pid");
        for old in [socket, &pid_file] {
            // The first time there is none.
            let _ = std::fs::remove_file(old);
        }
        let mut command = Command::new("nbdkit");
        command.arg("-f").arg("-U").arg(socket).arg("-P").arg(&pid_file).args(arguments);
        let mut nbdkit = Self(command.spawn().expect("nbdkit, which scripts/install-tools installs"));
        while !std::fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n')) {
            let ended = nbdkit.0.try_wait().expect("a child can be asked");
            assert!(ended.is_none(), "nbdkit {arguments:?}: {ended:?}");
            std::thread::sleep(Duration::from_millis(2));
        }
        nbdkit
    }

    /// kill -9, at any moment.
    pub(crate) fn kill(self) {}
}

impl Drop for Nbdkit {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn image(directory: &tempfile::TempDir) -> PathBuf {
    let image = directory.path().join("image");
    std::fs::File::create(&image).and_then(|file| file.set_len(SECTORS * 512)).expect("a file");
    image
}

#[test]
fn delays_limits_and_several_connections_agree_with_a_shadow() {
    for (lanes, arguments) in [
        (1, &["--filter=delay", "--filter=blocksize-policy"][..]),
        (3, &["--filter=blocksize-policy", "--filter=delay"][..]),
        (2, &["--filter=multi-conn", "--filter=blocksize-policy", "--filter=delay"][..]),
    ] {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let image = format!("file={}", image(&directory).display());
        let mut arguments = arguments.to_vec();
        arguments.extend(["file", &image, "rdelay=1ms", "wdelay=1ms"]);
        // READ and WRITE of more than 8 KiB are refused: the client has to split them.
        arguments.extend(["blocksize-maximum=8192", "blocksize-preferred=4096", "blocksize-minimum=512"]);
        arguments.push("blocksize-error-policy=error");
        if arguments.contains(&"--filter=multi-conn") {
            arguments.push("multi-conn-mode=disable");
        }
        let _server = Nbdkit::start(&socket, &arguments);
        exercise(&open(&socket, PATIENCE), lanes, 60, 21, std::future::ready(()));
    }
}

#[test]
fn a_minimum_block_size_becomes_the_unit() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let policy = [
        "--filter=blocksize-policy",
        "memory",
        "1M",
        "blocksize-minimum=4096",
        "blocksize-error-policy=error",
    ];
    let _server = Nbdkit::start(&socket, &policy);
    let device = open(&socket, PATIENCE);
    assert_eq!(device.geometry().unit_bytes, 4096);
    run(async {
        let lane = device.open_lane().expect("a lane");
        write(&lane, 8, filled(4096, 1), Durability::Durable).await;
        let found = read_all(&lane, 8192).await;
        assert!(found[..4096].iter().all(|byte| *byte == 0) && found[4096..].iter().all(|byte| *byte == 1));
    });
}

#[test]
fn a_server_killed_and_started_anew_under_load_loses_nothing() {
    for lanes in [1, 3] {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("s");
        let image = format!("file={}", image(&directory).display());
        let start = {
            let socket = socket.clone();
            move || Nbdkit::start(&socket, &["--filter=delay", "file", &image, "wdelay=1ms", "rdelay=1ms"])
        };
        let first = start();
        let device = open(&socket, PATIENCE);
        let killed = std::rc::Rc::new(std::cell::RefCell::new((Some(first), 0)));
        let killing = std::rc::Rc::clone(&killed);
        exercise(&device, lanes, 150, 5, async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let mut state = killing.borrow_mut();
                state.0.take().expect("it runs").kill();
                *state = (Some(start()), state.1 + 1);
            }
        });
        assert!(killed.borrow().1 > 0, "it was killed");
    }
}

#[test]
fn errors_of_a_faulty_store_are_errors_and_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let socket = directory.path().join("s");
    let arguments = [
        "--filter=error",
        "memory",
        "1M",
        "error-pread=EIO",
        "error-pread-rate=100%",
        "error-pwrite=ENOSPC",
        "error-pwrite-rate=100%",
    ];
    let _server = Nbdkit::start(&socket, &arguments);
    let device: UpstreamDevice = open(&socket, PATIENCE);
    run(async {
        let lane = device.open_lane().expect("a lane");
        assert!(lane.read(Lba(0), Buffer::new(512)).await.0.is_err());
        let full = lane.write(Lba(0), filled(512, 1), Durability::Volatile).await.0;
        assert!(matches!(full, Err(sealblk_block::BlockError::NoSpace { .. })), "{full:?}");
        lane.flush().await.expect("a flush is no read and no write");
    });
}
