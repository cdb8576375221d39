//! Locks between processes, and records under them.
//!
//! A test that needs other processes starts the test binary again for that one test, with `SUBJECT` in the
//! environment; the same function then plays the subject's part. A subject says on standard output that it has
//! come to a point, and waits at it for a line on standard input.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sealblk_record::{Document, LockFile, RecordFile, wait_until_free};
use serde::{Deserialize, Serialize};

const SUBJECT: &str = "SEALBLK_RECORD_SUBJECT";
const READY: &str = "subject ready";

/// The directory to play the subject's part in; `None` for the test itself.
fn subject_dir() -> Option<PathBuf> {
    std::env::var_os(SUBJECT).map(PathBuf::from)
}

fn start_subject(name: &str, dir: &Path) -> Child {
    let mut command = Command::new(std::env::current_exe().expect("the test binary"));
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(SUBJECT, dir);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the test binary runs")
}

fn wait_until_ready(subject: &mut Child) {
    let lines = BufReader::new(subject.stdout.as_mut().expect("piped")).lines();
    let ready = lines.map_while(Result::ok).any(|line| line.ends_with(READY));
    assert!(ready, "the subject ended early");
}

/// The subject's side of [`wait_until_ready`]; returns when the test says so or is gone.
fn say_ready_and_wait() {
    writeln!(std::io::stdout(), "{READY}").expect("the test listens");
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn lock_is_held_by_one_process_until_it_is_killed() {
    let Some(dir) = subject_dir() else {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("lock");
        let mut holder = start_subject("lock_is_held_by_one_process_until_it_is_killed", dir.path());
        wait_until_ready(&mut holder);
        assert!(LockFile::try_exclusive(&path).expect("asked").is_none());
        assert!(!wait_until_free(&path, Duration::from_millis(30)).expect("asked"));
        holder.kill().expect("killed");
        assert!(wait_until_free(&path, Duration::from_secs(30)).expect("asked"));
        holder.wait().expect("reaped");
        assert!(LockFile::try_exclusive(&path).expect("asked").is_some());
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o7777, 0o600);
        return;
    };
    let _lock = LockFile::try_exclusive(dir.join("lock")).expect("asked").expect("free");
    say_ready_and_wait();
}

#[test]
fn child_program_does_not_inherit_the_lock() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    let lock = LockFile::exclusive(&path).expect("locked");
    let open_files =
        |list: &mut Command| String::from_utf8(list.output().expect("ls runs").stdout).expect("text");
    let mut own = Command::new("ls");
    let own = open_files(own.args(["-l", &format!("/proc/{}/fd", std::process::id())]));
    let name = path.to_str().expect("UTF-8");
    assert!(own.contains(name), "the list shows the lock file where it is open: {own}");
    let childs = open_files(Command::new("ls").args(["-l", "/proc/self/fd"]));
    assert!(childs.contains("/proc/") && !childs.contains(name), "{childs}");
    drop(lock);
}

#[test]
fn second_lock_in_the_same_process_is_refused_until_the_first_is_dropped() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    let first = LockFile::try_exclusive(&path).expect("asked").expect("free");
    assert!(LockFile::try_exclusive(&path).expect("asked").is_none());
    assert!(LockFile::is_held(&path).expect("asked"));
    drop(first);
    assert!(!LockFile::is_held(&path).expect("asked"));
    assert!(LockFile::try_exclusive(&path).expect("asked").is_some());
}

#[test]
fn missing_lock_file_is_free_and_is_not_created_by_looking() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    assert!(wait_until_free(&path, Duration::ZERO).expect("asked"));
    assert!(!LockFile::is_held(&path).expect("asked"));
    assert!(!path.exists());
}

#[test]
fn those_who_wait_for_a_lock_do_not_make_it_look_held() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    drop(LockFile::exclusive(&path).expect("locked"));
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            for _ in 0..2000 {
                wait_until_free(&path, Duration::ZERO).expect("asked");
            }
        });
        let mut times = 0;
        while !looking.is_finished() {
            let locked = LockFile::try_exclusive(&path).expect("asked");
            assert!(locked.is_some(), "refused after {times} times");
            times += 1;
        }
    });
}

#[test]
fn lock_on_a_file_removed_meanwhile_is_not_taken_for_a_lock() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("lock");
    let holder = LockFile::exclusive(&path).expect("locked");
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| LockFile::exclusive(&path).expect("locked"));
        wait_until_somebody_waits_for(&path);
        std::fs::remove_file(&path).expect("removed");
        drop(holder);
        let _second = waiter.join().expect("no panic");
        assert!(path.exists());
        assert!(LockFile::try_exclusive(&path).expect("asked").is_none());
    });
}

/// Returns once /proc/locks shows a process blocked on the lock (proc_locks(5): `->`, then `…:inode`).
fn wait_until_somebody_waits_for(path: &Path) {
    let inode = format!(":{} ", std::fs::metadata(path).expect("there").ino());
    let is_waiter = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    while !std::fs::read_to_string("/proc/locks").expect("/proc/locks").lines().any(is_waiter) {
        std::thread::yield_now();
    }
}

#[derive(Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Counter {
    count: u64,
    filler: String,
}

impl Document for Counter {
    const FORMAT: &'static str = "sealblk-counter";
    const VERSION: u32 = 1;
}

impl Counter {
    /// A counter whose record differs in length too.
    fn at(count: u64) -> Self {
        Self { count, filler: "x".repeat(usize::try_from(count % 7).expect("small") * 3000) }
    }
}

fn counter_in(dir: &Path) -> RecordFile<Counter> {
    RecordFile::new(dir.join("counter.json"))
}

#[test]
fn concurrent_updates_under_the_lock_are_all_kept() {
    const EACH: u64 = 25;
    let dir = subject_dir();
    let count_up = |dir: &Path| {
        for _ in 0..EACH {
            let _lock = LockFile::exclusive(dir.join("lock")).expect("locked");
            let counter = counter_in(dir).load().expect("whole");
            counter_in(dir).store(&Counter::at(counter.count + 1)).expect("stored");
        }
    };
    if let Some(dir) = dir {
        return count_up(&dir);
    }
    let dir = tempfile::tempdir().expect("a directory");
    counter_in(dir.path()).store(&Counter::at(0)).expect("stored");
    let name = "concurrent_updates_under_the_lock_are_all_kept";
    let subjects = [start_subject(name, dir.path()), start_subject(name, dir.path())];
    std::thread::scope(|scope| {
        scope.spawn(|| count_up(dir.path()));
        scope.spawn(|| count_up(dir.path()));
    });
    for subject in subjects {
        let output = subject.wait_with_output().expect("reaped");
        assert!(output.status.success(), "{output:?}");
    }
    assert_eq!(counter_in(dir.path()).load().expect("whole"), Counter::at(4 * EACH));
}

#[test]
fn writer_killed_at_any_moment_leaves_a_whole_record() {
    let name = "writer_killed_at_any_moment_leaves_a_whole_record";
    let Some(dir) = subject_dir() else {
        let dir = tempfile::tempdir().expect("a directory");
        let record = counter_in(dir.path());
        record.store(&Counter::at(0)).expect("stored");
        let mut seen = 0;
        for round in 0..12u64 {
            let mut writer = start_subject(name, dir.path());
            wait_until_ready(&mut writer);
            // Let it go, and come at a different moment each time: after so many changes that are seen.
            writer.stdin.as_mut().expect("piped").write_all(b"\n").expect("it listens");
            while record.load().expect("whole while it is written").count < seen + 1 + round {}
            writer.kill().expect("killed");
            writer.wait().expect("reaped");
            let counter = record.load().expect("whole after the writer was killed");
            assert_eq!(counter, Counter::at(counter.count));
            seen = counter.count;
        }
        record.store(&Counter::at(0)).expect("stored");
        let left = std::fs::read_dir(dir.path()).expect("the directory").count();
        assert_eq!(left, 2, "the record and its previous generation; nothing else");
        return;
    };
    let record = counter_in(&dir);
    let mut count = record.load().expect("whole").count;
    say_ready_and_wait();
    loop {
        count += 1;
        record.store(&Counter::at(count)).expect("stored");
    }
}
