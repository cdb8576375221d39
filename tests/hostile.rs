//! Clients in bad order, against the real binary: cut off anywhere, stalling, too many; and the end under load. The
//! oracle is the process itself: its open files and memory are back to where they were, and it serves on.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::net::sockopt::set_socket_linger;
use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use sealblk_testkit::nbd_client::{MODERN, NbdClient, RequestHeader, go_data, option_bytes};
use support::hanging::wait_until;
use support::{Attachment, Pool, foreign, run};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

fn open_files(attachment: &Attachment) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", attachment.pid())).expect("its files can be counted").count()
}

/// Resident memory that is its own, in KiB.
fn memory(attachment: &Attachment) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", attachment.pid())).expect("its status");
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).expect("its memory");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

/// Waits until `attachment` has as many files open as `base`.
#[track_caller]
fn assert_back_to(base: usize, attachment: &Attachment) {
    let began = Instant::now();
    while open_files(attachment) != base {
        assert!(
            began.elapsed() < PATIENCE,
            "{} files, not {base}: {}",
            open_files(attachment),
            attachment.log()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn connect(attachment: &Attachment) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", attachment.port())).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Everything that a client says in a short session: a few options, GO, requests with and without payload.
fn session() -> Vec<u8> {
    let write = RequestHeader { command: 1, flags: 1, cookie: 1, offset: 4096, length: 24 };
    let read = RequestHeader { cookie: 2, offset: 4000, length: 700, ..RequestHeader::default() };
    let flush = RequestHeader { command: 3, cookie: 3, ..RequestHeader::default() };
    [
        &MODERN.to_be_bytes()[..],
        &option_bytes(3, b""),
        &option_bytes(99, b"unknown"),
        &option_bytes(7, &go_data(b"", &[3])),
        &write.to_bytes(),
        &[0xcd; 24],
        &read.to_bytes(),
        &flush.to_bytes(),
    ]
    .concat()
}

/// Every length of a beginning of [`session`] that is not between two requests, where silence is no fault.
fn session_cuts(session: &[u8]) -> impl Iterator<Item = usize> {
    let end = session.len();
    let idle = [end, end - 28, end - 56, end - 108];
    (0..=end).filter(move |cut| !idle.contains(cut))
}

/// How often the same crowd comes.
const ROUNDS: usize = 6;

#[test]
fn a_session_cut_at_every_byte_leaves_nothing_behind() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let arguments = ["--handshake-timeout", "2", "--stall-timeout", "2", "--max-connections", "1024"];
    let attachment = pool.attach(&volume, &[&["--listen", "127.0.0.1:0"], &arguments[..]].concat());
    let session = session();
    // One whole session first: what is made at first use is not a leak.
    let mut other = NbdClient::new(connect(&attachment));
    other.go("").expect("GO is answered");
    assert_eq!(other.read(0, 4).expect("a reply"), Ok(vec![0; 4]));
    let base = open_files(&attachment);
    let mut used = Vec::new();
    for _ in 0..ROUNDS {
        // The end, in order.
        for cut in 0..=session.len() {
            let mut stream = connect(&attachment);
            stream.write_all(&session[..cut]).expect("sent");
            stream.shutdown(std::net::Shutdown::Write).expect("half-closed");
            // What was asked for is answered, and then the end comes.
            stream.read_to_end(&mut Vec::new()).expect("the end");
        }
        // A reset.
        for cut in 0..=session.len() {
            let mut stream = connect(&attachment);
            stream.write_all(&session[..cut]).expect("sent");
            set_socket_linger(&stream, Some(Duration::ZERO)).expect("a reset at the end");
        }
        // Silence: all at once, for each takes its two seconds.
        let stalled = session_cuts(&session).map(|cut| {
            let mut stream = connect(&attachment);
            stream.write_all(&session[..cut]).expect("sent");
            stream
        });
        for mut stream in stalled.collect::<Vec<_>>() {
            let _ = stream.read_to_end(&mut Vec::new());
        }
        assert_back_to(base, &attachment);
        used.push(memory(&attachment));
    }
    // What an allocator keeps for the next crowd is no leak, and it has one store for each few threads, which crowds
    // fill one after the other. A leak of every crowd would show in the last of them too.
    let (before, now) = (used[ROUNDS - 3], used[ROUNDS - 1]);
    assert!(now < before + 4096, "memory goes on growing, in KiB: {used:?}");
    assert_eq!(other.read(0, 4).expect("a reply"), Ok(vec![0; 4]), "the other connection goes on");
    other.disconnect().expect("sent");
    assert!(!attachment.log().contains("a bug of ours"), "{}", attachment.log());
    attachment.terminate();
}

/// What a connection's requests may hold, in KiB, and what it may hold besides.
const BUDGET: u64 = (36 + 2) << 10;

#[test]
fn a105_a106_clients_that_stop_or_never_read_hold_their_budget_and_give_it_back() {
    const CROWD: u64 = 8;
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "64MiB"]);
    let arguments = ["--listen", "127.0.0.1:0", "--stall-timeout", "2", "--handshake-timeout", "2"];
    let attachment = pool.attach(&volume, &arguments);
    let mut other = NbdClient::new(connect(&attachment));
    other.go("").expect("GO is answered");
    let (files, base) = (open_files(&attachment), memory(&attachment));
    let write = RequestHeader { command: 1, length: 32 << 20, ..RequestHeader::default() }.to_bytes();
    let read = RequestHeader { length: 1 << 20, ..RequestHeader::default() }.to_bytes();
    let flood = option_bytes(3, b"").repeat(4096);
    // A payload that stops; replies that nobody takes; options whose answers nobody takes.
    let habits = [(true, [write, vec![7; 20 << 20]].concat()), (true, read.repeat(2000)), (false, flood)];
    for (transmits, said) in habits {
        let crowd: Vec<_> = (0..CROWD)
            .map(|_| {
                let stream = connect(&attachment);
                let mut client = NbdClient::new(stream.try_clone().expect("a clone"));
                if transmits {
                    client.go("").expect("GO is answered");
                } else {
                    client.greet(MODERN).expect("the greeting");
                }
                let said = said.clone();
                // It may be cut while it speaks.
                (stream, std::thread::spawn(move || while !transmits && client.send(&said).is_ok() {}))
            })
            .collect();
        for (stream, _) in crowd.iter().filter(|_| transmits) {
            stream.set_nonblocking(true).expect("an option");
            say_what_is_taken(stream, &said);
        }
        assert_eq!(other.read(0, 4).expect("a reply"), Ok(vec![0; 4]), "who is in order is served");
        let held = memory(&attachment).saturating_sub(base);
        assert!(held < CROWD * BUDGET, "{held} KiB");
        assert_back_to(files, &attachment);
        assert_eq!(other.read(0, 4).expect("a reply"), Ok(vec![0; 4]));
        let began = Instant::now();
        while memory(&attachment) > base + (16 << 10) {
            assert!(began.elapsed() < PATIENCE, "{} KiB, not {base}", memory(&attachment));
            std::thread::sleep(Duration::from_millis(10));
        }
        for (stream, speaker) in crowd {
            drop(stream);
            speaker.join().expect("it was cut");
        }
    }
    attachment.terminate();
}

/// Sends as much of `said` as the server takes at once, again and again for a while.
fn say_what_is_taken(mut stream: &TcpStream, mut said: &[u8]) {
    let began = Instant::now();
    while !said.is_empty() && began.elapsed() < Duration::from_millis(300) {
        match stream.write(said) {
            Ok(count) => said = &said[count..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(_) => return,
        }
    }
}

/// Processor time of the process, in clock ticks of a hundredth of a second.
fn ticks(attachment: &Attachment) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", attachment.pid())).expect("its statistics");
    let after_name = stat.rsplit(')').next().expect("its fields");
    let field =
        |index: usize| after_name.split_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
    field(11).expect("user time") + field(12).expect("system time")
}

#[test]
fn a106_without_file_descriptors_it_waits_and_does_not_spin() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let attachment = pool.attach(&volume, &["--listen", "127.0.0.1:0"]);
    let mut first = NbdClient::new(connect(&attachment));
    first.go("").expect("GO is answered");
    let limit = u64::try_from(open_files(&attachment)).expect("a number") + 8;
    let pid = Pid::from_raw(i32::try_from(attachment.pid()).expect("a pid")).expect("not 0");
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(limit), maximum: Some(limit) })
        .expect("a limit");
    let crowd: Vec<TcpStream> = (0..40).map(|_| connect(&attachment)).collect();
    wait_until("a client is not accepted", || attachment.log().contains("could not be accepted"));
    let before = ticks(&attachment);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        assert_eq!(first.read(0, 1).expect("a reply"), Ok(vec![0]), "who is in goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    let spent = ticks(&attachment) - before;
    assert!(spent < 60, "{spent} hundredths of a second of two seconds");
    let log = attachment.log();
    // Told again only after somebody was accepted in between. How many of the crowd come as far as that, and then find no
    // descriptor for their ring, depends on how many descriptors the limit happens to leave.
    let told = log.matches("could not be accepted").count();
    let accepted = log.matches(" connected\n").count();
    assert!((1..=accepted + 1).contains(&told), "told {told} times, {accepted} accepted: {log}");
    drop(crowd);
    // Accepted as soon as there are descriptors again. Until the last of the crowd is gone one may come in and find too few
    // for its ring, and be sent away.
    let left = Instant::now();
    let after = loop {
        let mut after = NbdClient::new(connect(&attachment));
        if after.go("").is_ok() {
            break after;
        }
        assert!(left.elapsed() < PATIENCE, "nobody is let in: {}", attachment.log());
    };
    drop((first, after));
    attachment.terminate();
}

#[test]
fn a101_sigterm_with_64_requests_in_flight_loses_none() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "16MiB"]);
    let mut attachment = pool.attach(&volume, &[]);
    let stream = std::os::unix::net::UnixStream::connect(attachment.socket()).expect("a connection");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut client = NbdClient::new(stream);
    client.go("").expect("GO is answered");
    for cookie in 0..64 {
        // Half of them writes of 16 KiB, half reads of 64 KiB: more than the socket holds, so that replies wait.
        let offset = cookie * 65_536;
        if cookie % 2 == 0 {
            let header = RequestHeader { command: 1, cookie, offset, length: 16_384, flags: 0 };
            client.send_request(header, &[7; 16_384]).expect("sent");
        } else {
            let header = RequestHeader { cookie, offset, length: 65_536, ..RequestHeader::default() };
            client.send_request(header, &[]).expect("sent");
        }
    }
    attachment.signal(Signal::TERM);
    let mut seen = Vec::new();
    for _ in 0..64 {
        let (cookie, error) = client.reply().expect("a reply");
        assert_eq!(error, 0);
        if cookie % 2 == 1 {
            client.receive(65_536).expect("data");
        }
        seen.push(cookie);
    }
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..64));
    assert_eq!(client.receive_rest().expect("the end"), b"");
    let status = attachment.wait();
    attachment.must_have_ended_well(status);
}

#[test]
fn a101_sigterm_under_libnbd_loses_no_request_that_it_sent() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "64MiB"]);
    let mut attachment = pool.attach(&volume, &[]);
    let script = "\
import nbd, os, signal, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
done = []
buffers = [nbd.Buffer.from_bytearray(bytearray(b'x' * 131072)) for _ in range(64)]
cookies = [h.aio_pwrite(buffer, number * 131072) for number, buffer in enumerate(buffers)]
os.kill(int(sys.argv[2]), signal.SIGTERM)
while len(done) < 64:
    for cookie in [cookie for cookie in cookies if cookie not in done]:
        if h.aio_command_completed(cookie):
            done.append(cookie)
    if len(done) < 64:
        h.poll(-1)
print(len(done))
";
    let pid = attachment.pid().to_string();
    let done = run(foreign("/usr/bin/python3").args(["-c", script, attachment.uri(), &pid])).ok();
    assert_eq!(done.trim(), "64");
    let status = attachment.wait();
    attachment.must_have_ended_well(status);
}
