//! Tests of the block stream: what passes, and what either side makes of a peer that is broken or hostile.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use sealblk_snapshot::{BLOCK_BYTES, block_bytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Notify;

use super::wire::{Action, Hello, Outcome, REPLY_BYTES, REQUEST_BYTES, Reply, Request};
use super::*;

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(10);

/// Blocks that are a byte each, repeated.
#[derive(Default)]
struct Blocks {
    size_bytes: u64,
    bytes: BTreeMap<u64, u8>,
    seen: Rc<Seen>,
}

#[derive(Default)]
struct Seen {
    released: RefCell<Vec<(u64, u64)>>,
    completed: Cell<bool>,
    reading: Cell<usize>,
    most_reading: Cell<usize>,
    /// If set, reads wait until so many are at it.
    together: Cell<usize>,
    gathered: Notify,
}

impl ServeBlocks for Blocks {
    type Data = Vec<u8>;

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    async fn next(&self, from: u64) -> io::Result<Option<Run>> {
        let first = self.bytes.keys().copied().find(|&block| block >= from);
        Ok(first.map(|block| Run { blocks: block..block + 1, in_origin: block % 2 == 1 }))
    }

    async fn read(&self, index: u64) -> io::Result<ServedBlock<Vec<u8>>> {
        let seen = &self.seen;
        seen.reading.set(seen.reading.get() + 1);
        seen.most_reading.set(seen.most_reading.get().max(seen.reading.get()));
        if seen.reading.get() >= seen.together.get() {
            seen.gathered.notify_waiters();
        } else {
            seen.gathered.notified().await;
        }
        seen.reading.set(seen.reading.get() - 1);
        match self.bytes.get(&index) {
            None => Ok(ServedBlock::Zero),
            Some(0xee) => Err(io::Error::new(io::ErrorKind::HostUnreachable, "no é".repeat(1000))),
            Some(0xdd) => Ok(ServedBlock::Data(vec![1; 7])),
            Some(&byte) => {
                let length = usize::try_from(block_bytes(self.size_bytes, index)).expect("a block");
                Ok(ServedBlock::Data(vec![byte; length]))
            }
        }
    }

    async fn release(&self, blocks: Range<u64>) -> io::Result<()> {
        self.seen.released.borrow_mut().push((blocks.start, blocks.end));
        Ok(())
    }

    async fn complete(&self) -> io::Result<()> {
        assert_eq!(self.seen.reading.get(), 0, "nothing else is being asked for");
        self.seen.completed.set(true);
        Ok(())
    }
}

fn blocks(count: u64, odd_bytes: u64, bytes: impl IntoIterator<Item = (u64, u8)>) -> Blocks {
    let bytes = bytes.into_iter().collect();
    Blocks { size_bytes: count * BLOCK_BYTES + odd_bytes, bytes, ..Blocks::default() }
}

/// Runs `work` with a client of a server of `blocks`; how the serving ended.
fn with_client<F: Future<Output = ()>>(
    blocks: Blocks,
    work: impl FnOnce(BlockStream) -> F,
) -> io::Result<Ended> {
    crate::offline::run(async {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let serving = tokio::task::spawn_local(serve(theirs, blocks, Patience::Endless));
        work(BlockStream::open(ours, LONG).await.expect("greeted")).await;
        serving.await.expect("no panic")
    })
    .expect("a runtime")
}

/// What a server of some blocks makes of these bytes from its client.
fn server_of(bytes: &[u8]) -> io::Result<Ended> {
    crate::offline::run(async {
        let (mut ours, theirs) = UnixStream::pair().expect("a pair");
        let serving = tokio::task::spawn_local(serve(theirs, blocks(4, 0, [(0, 1)]), Patience::Endless));
        ours.write_all(bytes).await.expect("sent");
        ours.shutdown().await.expect("shut");
        let mut replies = Vec::new();
        // A server that breaks off may leave something unread.
        let _ = ours.read_to_end(&mut replies).await;
        serving.await.expect("no panic")
    })
    .expect("a runtime")
}

/// What a client makes of a server of two blocks that answers its first request, to read block 1, with these bytes.
fn client_of(hello: &[u8], answer: &[u8]) -> io::Result<StreamedBlock> {
    crate::offline::run(async {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(hello).await.expect("sent");
        theirs.write_all(answer).await.expect("sent");
        theirs.shutdown().await.expect("shut");
        BlockStream::open(ours, LONG).await?.read(1).await
    })
    .expect("a runtime")
}

fn client_hello() -> Vec<u8> {
    Hello { size_bytes: 0, window: 0 }.encode().to_vec()
}

fn server_hello() -> [u8; 32] {
    Hello { size_bytes: BLOCK_BYTES + 512, window: 4 }.encode()
}

fn request(action: Action, block: u64, count: u64) -> [u8; REQUEST_BYTES] {
    Request { number: 7, action, block, count }.encode()
}

fn reply(number: u32, outcome: Outcome) -> [u8; REPLY_BYTES] {
    Reply { number, outcome }.encode()
}

#[test]
fn blocks_and_runs_come_as_they_are_and_the_end_is_told() {
    let all = blocks(5, 512, [(1, 7), (4, 8), (5, 9)]);
    let seen = Rc::clone(&all.seen);
    let ended = with_client(all, |stream| async move {
        assert_eq!(stream.size_bytes(), 5 * BLOCK_BYTES + 512);
        assert_eq!(stream.next(0).await.expect("told"), Some(Run { blocks: 1..2, in_origin: true }));
        assert_eq!(stream.next(2).await.expect("told"), Some(Run { blocks: 4..5, in_origin: false }));
        assert_eq!(stream.next(6).await.expect("told"), None);
        assert_eq!(stream.read(0).await.expect("read"), StreamedBlock::Zero);
        let length = usize::try_from(BLOCK_BYTES).expect("512 KiB");
        assert_eq!(stream.read(4).await.expect("read"), StreamedBlock::Data(vec![8; length]));
        assert_eq!(stream.read(5).await.expect("read"), StreamedBlock::Data(vec![9; 512]));
        stream.release(4..6).await.expect("released");
        stream.complete().await.expect("completed");
    });
    assert_eq!(ended.expect("in order"), Ended::Completed);
    assert_eq!((seen.released.take(), seen.completed.get()), (vec![(4, 6)], true));
}

#[test]
fn requests_are_answered_beside_each_other_but_no_more_than_the_window() {
    let all = blocks(100, 0, [(0, 1)]);
    all.seen.together.set(16);
    let seen = Rc::clone(&all.seen);
    let ended = with_client(all, |stream| async move {
        let stream = Rc::new(stream);
        let mut reads = tokio::task::JoinSet::new();
        for block in 0..64 {
            let stream = Rc::clone(&stream);
            reads.spawn_local(async move { stream.read(block).await });
        }
        while let Some(read) = reads.join_next().await {
            read.expect("no panic").expect("read");
        }
    });
    assert_eq!(ended.expect("in order"), Ended::Left, "a client that goes away has given up");
    assert_eq!((seen.most_reading.get(), seen.completed.get()), (16, false));
}

#[test]
fn an_error_of_one_block_is_that_blocks_alone_and_keeps_its_kind() {
    let all = blocks(5, 0, [(0, 0xee), (1, 0xdd), (2, 3)]);
    let ended = with_client(all, |stream| async move {
        let error = stream.read(0).await.expect_err("unreachable");
        assert_eq!(error.kind(), io::ErrorKind::HostUnreachable);
        let text = error.to_string();
        assert!(text.starts_with("no é") && text.len() <= 1024 && text.len() > 1000, "{}", text.len());
        let error = stream.read(1).await.expect_err("of a wrong length");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let outside = stream.read(5).await.expect_err("there is none");
        assert_eq!(outside.kind(), io::ErrorKind::InvalidInput);
        for release in [0..6, 4..u64::MAX] {
            stream.release(release).await.expect_err("there are none");
        }
        assert!(matches!(stream.read(2).await, Ok(StreamedBlock::Data(_))));
    });
    assert_eq!(ended.expect("in order"), Ended::Left);
}

#[test]
fn a_request_that_nobody_waits_for_any_more_disturbs_nobody() {
    let all = blocks(5, 0, [(0, 1)]);
    all.seen.together.set(2);
    with_client(all, |stream| async move {
        let given_up = tokio::time::timeout(Duration::from_millis(1), stream.read(1)).await;
        given_up.expect_err("it waits for another");
        assert!(matches!(stream.read(0).await, Ok(StreamedBlock::Data(_))));
    })
    .expect("in order");
}

#[test]
fn a_server_takes_nothing_from_a_client_that_does_not_keep_to_the_protocol() {
    let kind = |bytes: &[u8]| server_of(bytes).expect_err("malformed").kind();
    assert_eq!(kind(b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n"), io::ErrorKind::InvalidData);
    assert_eq!(kind(&client_hello()[..31]), io::ErrorKind::UnexpectedEof);
    assert_eq!(kind(&server_hello()), io::ErrorKind::InvalidData, "a server's hello");
    let mut newer = client_hello();
    newer[8] = 2;
    assert_eq!(kind(&newer), io::ErrorKind::Unsupported);
    let mut unknown = request(Action::Next, 0, 0);
    unknown[4] = 9;
    assert_eq!(kind(&[client_hello(), unknown.to_vec()].concat()), io::ErrorKind::InvalidData);
    let cut = [client_hello(), request(Action::Read, 0, 0)[..5].to_vec()].concat();
    assert_eq!(kind(&cut), io::ErrorKind::UnexpectedEof);
    let far = [client_hello(), request(Action::Read, u64::MAX, 0).to_vec()].concat();
    assert_eq!(server_of(&far).expect("an answer to that request"), Ended::Left);
    assert_eq!(server_of(&client_hello()).expect("a client that wanted nothing"), Ended::Left);
}

#[test]
fn a_client_takes_nothing_from_a_server_that_does_not_keep_to_the_protocol() {
    let good = [&reply(0, Outcome::Data(512))[..], &[5; 512]].concat();
    assert_eq!(client_of(&server_hello(), &good).expect("a block"), StreamedBlock::Data(vec![5; 512]));
    let kind = |answer: &[u8]| client_of(&server_hello(), answer).expect_err("malformed").kind();
    for wrong in [
        reply(1, Outcome::Zero),
        reply(0, Outcome::Done),
        reply(0, Outcome::None),
        reply(0, Outcome::Data(u32::MAX)),
        reply(0, Outcome::Data(513)),
        reply(0, Outcome::Run { start: 1, end: 2, in_origin: false }),
        reply(0, Outcome::Error { kind: io::ErrorKind::Other, length: 1025 }),
    ] {
        assert_eq!(kind(&wrong), io::ErrorKind::InvalidData, "{wrong:?}");
    }
    assert_eq!(kind(&[]), io::ErrorKind::ConnectionAborted);
    assert_eq!(kind(&good[..100]), io::ErrorKind::ConnectionAborted);
    let sizes = [(0, 4), (u64::MAX, 4), (512, 0)];
    for (size_bytes, window) in sizes {
        let hello = Hello { size_bytes, window }.encode();
        assert_eq!(client_of(&hello, &good).expect_err("no server").kind(), io::ErrorKind::InvalidData);
    }
}

#[test]
fn a_run_outside_what_was_asked_for_ends_the_stream() {
    for (start, end) in [(0, 1), (1, 1), (1, 3), (1, u64::MAX)] {
        let error = crate::offline::run(async {
            let (ours, mut theirs) = UnixStream::pair().expect("a pair");
            let run = reply(0, Outcome::Run { start, end, in_origin: false });
            theirs.write_all(&[&server_hello()[..], &run].concat()).await.expect("sent");
            let stream = BlockStream::open(ours, LONG).await.expect("greeted");
            let error = stream.next(1).await.expect_err("no run");
            assert_eq!(stream.next(1).await.expect_err("it is over").kind(), error.kind());
            error
        });
        assert_eq!(error.expect("a runtime").kind(), io::ErrorKind::InvalidData, "{start}..{end}");
    }
}

#[test]
fn a_server_that_does_not_answer_is_an_error_in_time() {
    let error = crate::offline::run(async {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(&server_hello()).await.expect("sent");
        let stream = BlockStream::open(ours, Duration::from_millis(10)).await.expect("greeted");
        // More than the window of four: none hangs.
        for _ in 0..6 {
            stream.read(0).await.expect_err("no answer");
        }
        stream.read(0).await.expect_err("no answer")
    });
    assert_eq!(error.expect("a runtime").kind(), io::ErrorKind::TimedOut);
}

/// A server that is no more patient than this.
fn impatient(blocks: Blocks, patience: Duration) -> (UnixStream, tokio::task::JoinHandle<io::Result<Ended>>) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    (ours, tokio::task::spawn_local(serve(theirs, blocks, Patience::Bounded(patience))))
}

#[test]
fn a_client_that_asks_for_nothing_for_too_long_is_told_that_it_is_over() {
    let (served, error) = crate::offline::run(async {
        let (ours, serving) = impatient(blocks(4, 0, [(0, 1)]), SHORT);
        let stream = BlockStream::open(ours, LONG).await.expect("greeted");
        let served = serving.await.expect("no panic");
        (served, stream.read(0).await.expect_err("given up"))
    })
    .expect("a runtime");
    assert_eq!(served.expect_err("given up").kind(), io::ErrorKind::TimedOut);
    assert!(error.kind() == io::ErrorKind::TimedOut && error.to_string().contains("given up"), "{error}");
}

#[test]
fn a_client_that_takes_no_reply_for_too_long_is_given_up() {
    let served = crate::offline::run(async {
        let (mut ours, serving) = impatient(blocks(16, 0, (0..16).map(|block| (block, 1))), SHORT);
        let reads = (0..16).map(|block| request(Action::Read, block, 0).to_vec());
        let asked: Vec<u8> = std::iter::once(client_hello()).chain(reads).flatten().collect();
        ours.write_all(&asked).await.expect("sent");
        serving.await.expect("no panic")
    });
    assert_eq!(served.expect("a runtime").expect_err("given up").kind(), io::ErrorKind::TimedOut);
}

#[test]
fn a_client_that_waits_for_an_answer_is_not_given_up_for_that() {
    let two = blocks(2, 0, [(0, 1), (1, 2)]);
    two.seen.together.set(2);
    crate::offline::run(async {
        let (ours, serving) = impatient(two, Duration::from_secs(1));
        let stream = BlockStream::open(ours, LONG).await.expect("greeted");
        let first = async {
            // The first is answered when the second is asked for, and a silent client would have been given up by then.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            stream.read(1).await
        };
        let (one, other) = tokio::join!(stream.read(0), first);
        assert_eq!(one.expect("a block"), StreamedBlock::Data(vec![1; BLOCK_BYTES as usize]));
        assert_eq!(other.expect("a block"), StreamedBlock::Data(vec![2; BLOCK_BYTES as usize]));
        serving.abort();
    })
    .expect("a runtime");
}
