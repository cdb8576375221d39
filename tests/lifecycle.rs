//! The life of an attachment: what may be attached, what a second one is told, how one ends, and what it leaves.

mod support;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use rustix::process::Signal;
use sealblk_kms::{EncryptionContext, GrantOperation};
use support::{Attachment, Client, LoopDevice, Pool, exit, foreign, grants, noise, run};

#[test]
fn r4_encrypted_and_unencrypted_volumes_are_used_at_once() {
    let pool = Pool::new();
    let volumes: Vec<String> = ["--encrypted", "--no-encrypted", "--encrypted"]
        .iter()
        .map(|encryption| pool.create(&[encryption, "--size", "32MiB"]))
        .collect();
    let attached: Vec<Attachment> = volumes.iter().map(|volume| pool.attach(volume, &[])).collect();
    let mut fio = foreign("fio");
    fio.current_dir(pool.root()).args(["--output-format=terse", "--ioengine=nbd", "--thread", "--rw=randrw"]);
    fio.args([
        "--bs=8k",
        "--iodepth=8",
        "--size=32m",
        "--io_size=24m",
        "--verify=crc32c",
        "--verify_fatal=1",
    ]);
    for (number, attachment) in attached.iter().enumerate() {
        fio.arg(format!("--name=job{number}")).arg(format!("--uri={}", attachment.uri()));
    }
    let out = run(&mut fio).ok();
    assert_eq!(out.lines().filter(|line| line.starts_with("3;fio")).count(), 3, "{out}");
    let listed = pool.json(&["volume", "list"]);
    let states = listed["Volumes"].as_array().expect("a list").iter().map(|volume| &volume["State"]);
    assert!(states.clone().count() == 3 && states.into_iter().all(|state| state == "in-use"), "{listed}");
    attached.into_iter().for_each(Attachment::terminate);
}

#[test]
fn r17_a_grant_is_there_while_attached_and_gone_after_detach() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    assert_eq!(grants(&pool, &volume), []);
    for _ in 0..2 {
        let attachment = pool.attach(&volume, &[]);
        let [grant] = &grants(&pool, &volume)[..] else { panic!("one grant: {:?}", grants(&pool, &volume)) };
        assert_eq!(grant.operations, [GrantOperation::Decrypt]);
        let own = EncryptionContext::for_resource(&volume);
        assert_eq!(grant.constraints.encryption_context_subset, Some(own));
        assert!(grant.grantee_principal.0.contains(&volume), "{grant:?}");
        attachment.terminate();
        assert_eq!(grants(&pool, &volume), []);
    }
    // A killed server's grant goes with the next attach, which has its own; a delete takes the last.
    pool.attach(&volume, &[]).kill();
    assert_eq!(grants(&pool, &volume).len(), 1);
    pool.attach(&volume, &[]).terminate();
    assert_eq!(grants(&pool, &volume), []);
}

#[test]
fn detach_ends_the_server_with_success_and_frees_the_volume() {
    for encryption in ["--encrypted", "--no-encrypted"] {
        let pool = Pool::new();
        let volume = pool.create(&[encryption, "--size", "4MiB"]);
        let mut attachment = pool.attach(&volume, &[]);
        let mut client = attachment.client();
        client.write(5, &noise(1, 100_000)).expect("a write");
        pool.run(&["volume", "detach", &volume]).ok();
        let status = attachment.wait();
        attachment.must_have_ended_well(status);
        assert!(client.read(0, 512).is_err(), "the connection has ended");
        assert_eq!(pool.describe(&volume)["State"], "available");
        pool.run(&["volume", "detach", &volume]).refused(exit::WRONG_STATE);
        let attachment = pool.attach(&volume, &["--read-only"]);
        let mut client = attachment.client();
        assert!(client.read_only());
        assert!(
            client.read(5, 100_000).expect("a read") == noise(1, 100_000),
            "without a flush by the client"
        );
        assert_eq!(
            client.write(0, b"x").expect_err("read-only").kind(),
            std::io::ErrorKind::PermissionDenied
        );
        attachment.terminate();
    }
}

/// Writes ever new blocks; tells each that was acknowledged; ends with the connection.
fn write_until_closed(socket: &Path, volume: &str, region: u64, done: &Sender<(u64, u64)>) {
    let mut client = Client::connect(socket, volume);
    for number in 0.. {
        let at = region * (8 << 20) + number % 512 * 16384;
        if client.write(at, &noise(at ^ number << 40, 16384)).is_err() || done.send((at, number)).is_err() {
            return;
        }
    }
}

#[test]
fn sigterm_with_requests_in_flight_keeps_every_acknowledged_write() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "32MiB"]);
    for signal in [Signal::TERM, Signal::INT] {
        let mut attachment = pool.attach(&volume, &[]);
        let (done, acknowledged) = channel();
        let writers: Vec<_> = (0..4)
            .map(|region| {
                let (socket, volume, done) = (attachment.socket().to_owned(), volume.clone(), done.clone());
                std::thread::spawn(move || write_until_closed(&socket, &volume, region, &done))
            })
            .collect();
        drop(done);
        let wait = Duration::from_secs(60);
        let mut last: Vec<(u64, u64)> =
            (0..200).map(|_| acknowledged.recv_timeout(wait).expect("writes are acknowledged")).collect();
        attachment.signal(signal);
        let status = attachment.wait();
        attachment.must_have_ended_well(status);
        writers.into_iter().for_each(|writer| writer.join().expect("a writer ends with the server"));
        last.extend(acknowledged.iter());

        let attachment = pool.attach(&volume, &[]);
        let mut client = attachment.client();
        let newest: std::collections::BTreeMap<u64, u64> = last.into_iter().collect();
        for (at, number) in newest {
            // The write after the last acknowledged one may have been done too.
            let bytes = client.read(at, 16384).expect("a read");
            let fits = |number: u64| bytes == noise(at ^ number << 40, 16384);
            assert!(fits(number) || fits(number + 512), "the block at {at}, number {number}");
        }
        attachment.terminate();
    }
}

#[test]
fn a_server_whose_clients_stay_connected_and_silent_still_ends() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &["--listen", "127.0.0.1:0"]);
    let idle = attachment.client();
    let mute = std::os::unix::net::UnixStream::connect(attachment.socket()).expect("a connection");
    let mut half = std::net::TcpStream::connect(("127.0.0.1", attachment.port())).expect("a connection");
    half.write_all(&[0, 0]).expect("half of the client's flags");
    attachment.terminate();
    drop((idle, mute, half));
}

#[test]
fn a_second_attach_and_a_delete_are_refused_while_attached() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &[]);
    let pid = attachment.pid().to_string();
    let refusal = pool.run(&["volume", "attach", &volume]).refused(exit::WRONG_STATE);
    assert!(refusal.contains(&volume) && refusal.contains(&pid), "it names volume and holder: {refusal}");
    pool.run(&["volume", "delete", &volume]).refused(exit::WRONG_STATE);
    pool.run(&["volume", "materialize", &volume]).refused(exit::WRONG_STATE);
    attachment.client().write(0, b"still served").expect("the first attachment goes on");
    assert_eq!(grants(&pool, &volume).len(), 1, "the refused attach left no grant");
    attachment.terminate();
    pool.run(&["volume", "delete", &volume]).ok();
    pool.run(&["volume", "describe", &volume]).refused(exit::NOT_FOUND);
    assert!(!pool.volume_dir(&volume).exists(), "nothing of it is left");
}

#[test]
fn an_unknown_volume_is_not_found_and_a_malformed_id_is_a_usage_error() {
    let pool = Pool::new();
    pool.create(&["--size", "1MiB", "--encrypted"]);
    for verb in ["attach", "detach", "describe", "delete", "materialize"] {
        let refusal = pool.run(&["volume", verb, "vol-00000000000000000"]).refused(exit::NOT_FOUND);
        assert!(refusal.contains("vol-00000000000000000"), "{verb}: {refusal}");
        pool.run(&["volume", verb, "../../etc"]).refused(exit::USAGE);
    }
}

/// A volume that was attached and written once, with noise in its first MiB.
fn used_volume(pool: &Pool) -> String {
    let volume = pool.create(&["--encrypted", "--size", "2MiB"]);
    let attachment = pool.attach(&volume, &[]);
    attachment.client().write(0, &noise(9, 1 << 20)).expect("a write");
    attachment.terminate();
    volume
}

/// Attach fails with `code` and these words, and nothing was served, granted or changed.
#[track_caller]
fn attach_refused(pool: &Pool, volume: &str, code: i32, words: &[&str]) {
    let ended = pool.run(&["volume", "attach", volume]);
    assert_eq!(ended.stdout, "", "nothing is ready");
    let refusal = ended.refused(code);
    assert!(words.iter().all(|word| refusal.contains(word)), "{words:?} in: {refusal}");
}

/// Replaces text in a record, and makes its checksum right again: what somebody who means it can do.
fn forge(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("the record");
    assert!(text.contains(from), "{from} is in {text}");
    std::fs::write(path, text.replacen(from, to, 1)).expect("the forged record");
    let sum = Command::new("sh")
        .arg("-c")
        .arg("head -n -2 \"$0\" | sha256sum")
        .arg(path)
        .output()
        .expect("sha256sum");
    let sum = String::from_utf8(sum.stdout).expect("hexadecimal digits");
    let forged = std::fs::read_to_string(path).expect("the record");
    let (body, checksum) = forged.split_at(forged.find("sha256:").expect("a checksum") + "sha256:".len());
    let forged = format!("{body}{}{}", &sum[..64], &checksum[64..]);
    std::fs::write(path, forged).expect("the forged record");
}

#[test]
fn a_truncated_data_file_is_refused_at_attach() {
    let pool = Pool::new();
    let volume = used_volume(&pool);
    let data = std::fs::File::options().write(true).open(pool.data(&volume)).expect("the data file");
    data.set_len((2 << 20) - 512).expect("it is cut");
    attach_refused(&pool, &volume, exit::FAILED, &["2096640", "2097152"]);
    assert_eq!(
        std::fs::metadata(pool.data(&volume)).expect("it").len(),
        (2 << 20) - 512,
        "it is not repaired"
    );
    data.set_len(2 << 20).expect("it is restored");
    pool.attach(&volume, &[]).terminate();
    std::fs::remove_file(pool.data(&volume)).expect("it is removed");
    attach_refused(&pool, &volume, exit::FAILED, &["data"]);
    assert!(!pool.data(&volume).exists(), "attach does not make a new one");
}

#[test]
fn a_damaged_record_is_refused_and_named() {
    let pool = Pool::new();
    let volume = used_volume(&pool);
    let record = pool.volume_dir(&volume).join("volume.json");
    let whole = std::fs::read(&record).expect("the record");
    for (what, damaged) in [
        ("one digit", String::from_utf8_lossy(&whole).replace("2097152", "3097152").into_bytes()),
        ("half", whole[..whole.len() / 2].to_vec()),
        ("nothing", Vec::new()),
    ] {
        assert!(damaged != whole, "{what} is damage");
        std::fs::write(&record, damaged).expect("damage");
        attach_refused(&pool, &volume, exit::FAILED, &["volume.json"]);
    }
    std::fs::write(&record, &whole).expect("repair");
    pool.attach(&volume, &[]).terminate();
}

#[test]
fn an_unknown_version_and_an_unknown_field_are_refused() {
    let pool = Pool::new();
    let volume = used_volume(&pool);
    let record = pool.volume_dir(&volume).join("volume.json");
    let whole = std::fs::read(&record).expect("the record");
    forge(&record, "\"Version\": 2", "\"Version\": 2");
    assert_eq!(std::fs::read(&record).expect("the record"), whole, "a forged record is well made");
    forge(&record, "\"Version\": 2", "\"Version\": 3");
    attach_refused(&pool, &volume, exit::FAILED, &["volume.json", "ersion 3"]);
    std::fs::write(&record, &whole).expect("repair");
    forge(&record, "\"Version\": 2,", "\"Version\": 2,\n  \"Compression\": \"lz4\",");
    attach_refused(&pool, &volume, exit::FAILED, &["volume.json", "Compression"]);
}

#[test]
fn r11_a_wrapped_key_of_another_volume_or_a_forged_record_is_refused() {
    let pool = Pool::new();
    let (volume, other) = (used_volume(&pool), used_volume(&pool));
    let record = pool.volume_dir(&volume).join("volume.json");
    let whole = std::fs::read(&record).expect("the record");
    let wrapped = |volume: &str| pool.describe(volume)["WrappedKey"].as_str().expect("text").to_owned();
    forge(&record, &wrapped(&volume), &wrapped(&other));
    attach_refused(&pool, &volume, exit::DENIED, &[&volume]);
    std::fs::write(&record, &whole).expect("repair");
    // The seal covers what decides the meaning of the bytes, against somebody who can write the record.
    for (from, to) in
        [("\"Discard\": true", "\"Discard\": false"), ("\"SizeBytes\": 2097152", "\"SizeBytes\": 1048576")]
    {
        forge(&record, from, to);
        attach_refused(&pool, &volume, exit::FAILED, &["seal"]);
        std::fs::write(&record, &whole).expect("repair");
    }
    forge(&record, "aes-256-xts", "aes-128-cbc");
    attach_refused(&pool, &volume, exit::FAILED, &["aes-128-cbc"]);
    std::fs::write(&record, &whole).expect("repair");
    pool.attach(&volume, &[]).terminate();
}

#[test]
fn an_unsealed_record_with_data_already_there_is_refused() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    std::fs::write(pool.data(&volume), noise(3, 1 << 20)).expect("data that nobody sealed");
    attach_refused(&pool, &volume, exit::FAILED, &["seal"]);
}

#[test]
fn a_file_in_the_sockets_place_is_left_alone() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let path = pool.root().join("precious");
    std::fs::write(&path, "precious").expect("a file");
    let text = path.to_str().expect("text");
    let refusal = pool.run(&["volume", "attach", &volume, "--socket", text]).refused(exit::USAGE);
    assert!(refusal.contains(text), "{refusal}");
    assert_eq!(std::fs::read(&path).expect("the file"), b"precious");
    assert_eq!(grants(&pool, &volume), [], "a failed attach leaves no grant");
}

#[test]
fn a_listener_off_loopback_is_refused() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    for address in ["0.0.0.0:0", "[::]:0"] {
        let refusal = pool.run(&["volume", "attach", &volume, "--listen", address]).refused(exit::USAGE);
        assert!(refusal.contains("loopback"), "{refusal}");
    }
    assert_eq!(grants(&pool, &volume), []);
}

#[test]
fn a_pool_that_cannot_be_written_is_named() {
    let pool = Pool::new();
    std::fs::write(pool.path(), "a file where the pool should be").expect("a file");
    let refusal = pool.run(&["volume", "create", "--size", "1MiB", "--encrypted"]).refused(exit::FAILED);
    assert!(refusal.contains(pool.path().to_str().expect("text")), "{refusal}");
}

/// A file system of a few MiB, so that it can be full; unmounted when dropped. Needs root.
struct Small(PathBuf);

impl Small {
    fn mount(pool: &Pool) -> Self {
        let dir = pool.root().join("small");
        std::fs::create_dir(&dir).expect("a mount point");
        run(Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "none"]).arg(&dir)).ok();
        Self(dir)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // A busy mount is a failure to tell of, but not in place of the first.
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
fn a_full_store_is_an_error_to_the_client_and_not_the_end() {
    let pool = Pool::new();
    let small = Small::mount(&pool);
    let backing = small.0.join("data");
    let volume =
        pool.create(&["--encrypted", "--size", "16MiB", "--backing", backing.to_str().expect("text")]);
    let attachment = pool.attach(&volume, &[]);
    let mut client = attachment.client();
    client.write(0, &noise(1, 1 << 20)).expect("there is space for this");
    let error = client.write(1 << 20, &noise(2, 8 << 20)).expect_err("and not for this");
    assert_eq!(error.to_string(), "ENOSPC");
    assert!(client.read(0, 1 << 20).expect("reads go on") == noise(1, 1 << 20));
    client.trim(1 << 20, 8 << 20).expect("a trim gives the space back");
    client.write(2 << 20, &noise(3, 1 << 20)).expect("and writes go on");
    client.flush().expect("nothing that was acknowledged is lost");
    assert!(client.read(2 << 20, 1 << 20).expect("a read") == noise(3, 1 << 20));
    drop(client);
    attachment.terminate();
    drop(small);
}

#[test]
fn a_block_device_is_taken_blank_or_erased_and_holds_the_ciphertext() {
    let pool = Pool::new();
    let file = pool.root().join("disk");
    std::fs::write(&file, vec![0; 16 << 20]).expect("a disk");
    run(foreign("mkfs.ext4").args(["-q", "-F"]).arg(&file)).ok();
    let disk = LoopDevice::over(&file);
    let create = ["--encrypted", "--size", "16MiB", "--backing", disk.path()];
    let refusal = pool.run(&[&["volume", "create"][..], &create].concat()).refused(exit::WRONG_STATE);
    assert!(refusal.contains(disk.path()) && refusal.contains("ext4"), "it names what it found: {refusal}");
    run(foreign("e2fsck").args(["-fn"]).arg(&file)).ok();

    let volume = pool.create(&[&create[..], &["--erase"]].concat());
    let refusal = pool.run(&[&["volume", "create"][..], &create].concat()).refused(exit::WRONG_STATE);
    assert!(refusal.contains(&volume), "it names the volume that has it: {refusal}");
    for mode in ["--direct", "--buffered"] {
        let attachment = pool.attach(&volume, &[mode]);
        let mut client = attachment.client();
        assert!(client.read(8 << 20, 1 << 20).expect("a read").iter().all(|&byte| byte == 0), "erased");
        client.write(4096, &noise(5, 1 << 20)).expect("a write");
        client.flush().expect("a flush");
        assert!(client.read(4096, 1 << 20).expect("a read") == noise(5, 1 << 20));
        attachment.terminate();
    }
    let attachment = pool.attach(&volume, &[]);
    assert!(attachment.client().read(4096, 1 << 20).expect("a read") == noise(5, 1 << 20));
    attachment.terminate();
    let stored = std::fs::read(&file).expect("the disk");
    assert!(stored[4096..][..1 << 20] != noise(5, 1 << 20), "ciphertext is on the disk");
    assert!(stored[4096..][..1 << 20].iter().any(|&byte| byte != 0), "something is on the disk");
    pool.run(&["volume", "delete", &volume]).ok();
    assert!(std::fs::read(&file).expect("the disk") == stored, "delete leaves a device as it is");
}
