//! What is checked of the client, given any bytes of a server. Compiled for tests and for the fuzz targets
//! (`fuzz/targets/server_greeting.rs`, `server_replies.rs`), and in nothing that is shipped.
//!
//! Each function takes bytes and panics if a promise is broken.

use std::collections::VecDeque;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use sealblk_block::Buffer;
use sealblk_nbd::wire::transmission_flag;
use tokio::io::{join, sink};
use tokio::sync::{mpsc, oneshot};

use crate::export::{BlockSizes, Export};
use crate::handshake::{Target, choose, greet};
use crate::job::{Done, Job, Work};
use crate::link::Link;
use crate::session::{Limits, Session};
use crate::stream::Stream;

/// The export's size in the second part.
const SIZE: u64 = 64 * 512;
/// How many characters an error has at most, a server's own words (200) among them.
const LONGEST_ERROR: usize = 600;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(work)
}

/// The negotiation: it ends with the input, and with an export that can be used or an error that can be shown.
pub fn server_greeting(input: &[u8]) {
    let mut stream: Stream = Box::new(join(Cursor::new(input.to_vec()), sink()));
    let outcome = block_on(async {
        let greeting = greet(&mut stream).await?;
        choose(&mut stream, greeting, "an export").await
    });
    match outcome {
        Ok(export) => {
            let geometry = export.geometry(false);
            assert!(geometry.unit_bytes.is_power_of_two() && geometry.unit_bytes >= 512);
            assert!(geometry.sectors <= u64::MAX / 512);
            assert!(export.max_payload_bytes >= geometry.unit_bytes, "a unit can be asked for");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.chars().count() < LONGEST_ERROR && !text.chars().any(char::is_control), "{text:?}");
        }
    }
}

/// Transmission: six requests are on their way when the bytes come. Each is answered or is still there to be made
/// again, with its buffer; no answer is taken for more than it is.
pub fn server_replies(input: &[u8]) {
    answered(input);
}

/// The same; how many of the six were answered.
fn answered(input: &[u8]) -> usize {
    let (&how, input) = input.split_first().unwrap_or((&0, &[]));
    let replies = if how & 8 == 0 { made_of_choices(input) } else { input.to_vec() };
    let most: u32 = if how & 4 == 0 { 32 << 20 } else { 512 };
    let flags = transmission_flag::HAS_FLAGS | transmission_flag::SEND_FLUSH | transmission_flag::SEND_FUA;
    let sizes = [1_u32.to_be_bytes(), 512_u32.to_be_bytes(), most.to_be_bytes()].concat();
    let sizes = BlockSizes::parse(&sizes).expect("sizes");
    let export = Export::new(SIZE, flags, sizes).expect("an export");
    let export = export.answering(how & 1 == 0, (how & 2 == 0).then_some(1));
    let session = session(export);
    let link = Link::new(&session, session.new_connection(), 0, export);
    let (mut jobs, waits) = requests();
    let told: usize = block_on(async {
        let (more, mut waiting) = mpsc::unbounded_channel();
        let (mut server, mut client) = (&replies[..], sink());
        tokio::select! {
            biased;
            _ = link.send(&mut client, &mut jobs, &mut waiting) => panic!("more may come, and a sink takes all"),
            over = link.receive(&mut server) => drop(over.expect_err("the input ends")),
        }
        drop(more);
        waits.into_iter().map(|(asked, wait)| usize::from(was_answered(asked, wait))).sum()
    });
    let left: Vec<Job> = link.unfinished().collect();
    assert_eq!(told + left.len(), 6, "no request is lost, and none is answered twice");
    for job in left {
        if let Work::Read { buffer, .. } = job.work {
            assert_eq!(buffer.len(), 1024, "it can be read again");
        }
    }
    told
}

fn session(export: Export) -> Session {
    let uri = "nbd+unix:///?socket=/nonexistent".parse().expect("a URI");
    let patience = Duration::from_secs(1);
    let limits = Limits { handshake: patience, reconnect: patience, retained_bytes: 1 << 20 };
    Session::new(Target { uri, tls: None }, export, limits)
}

/// What is known of a request by who waits for it.
#[derive(Clone, Copy)]
enum Asked {
    Read,
    Status,
    Other,
}

type Waits = Vec<(Asked, oneshot::Receiver<Done>)>;

fn requests() -> (VecDeque<Job>, Waits) {
    let buffer = || {
        let mut buffer = Buffer::new(1024);
        buffer.set_len(1024);
        buffer
    };
    let works = [
        (Asked::Read, Work::Read { offset: 0, buffer: buffer() }),
        (Asked::Read, Work::Read { offset: SIZE - 1024, buffer: buffer() }),
        (Asked::Other, Work::Write { offset: 512, data: Arc::new(buffer()), fua: false }),
        (Asked::Status, Work::Status { offset: 0, bytes: 8192, one: false }),
        (Asked::Other, Work::Trim { offset: 0, bytes: 4096, fua: true }),
        (Asked::Other, Work::Flush { mark: 0 }),
    ];
    works
        .into_iter()
        .map(|(asked, work)| (Job::new(work, None), asked))
        .map(|((job, wait), asked)| (job, (asked, wait)))
        .unzip()
}

/// Whether there is an answer; what there is of it is as it must be.
fn was_answered(asked: Asked, mut wait: oneshot::Receiver<Done>) -> bool {
    let Ok(done) = wait.try_recv() else { return false };
    match (asked, done.work) {
        (Asked::Read, Work::Read { buffer, .. }) => assert_eq!(buffer.len(), 1024),
        (Asked::Status, Work::Status { .. }) => {
            assert!(done.extents.iter().all(|(bytes, _)| *bytes > 0), "extents are not empty");
        }
        (Asked::Other, Work::Write { .. } | Work::Trim { .. } | Work::Flush { .. }) => {}
        (_, other) => panic!("the answer to another request: {other:?}"),
    }
    true
}

/// Replies that mostly mean something, made of choices: three bytes each.
fn made_of_choices(input: &[u8]) -> Vec<u8> {
    let mut replies = Vec::new();
    for choice in input.chunks_exact(3) {
        let [what, who, size] = [choice[0], choice[1], choice[2]];
        let cookie = u64::from(who % 24).to_be_bytes();
        let offset =
            if who & 0x40 == 0 { u64::from(size % 4) * 512 } else { SIZE - 1024 + u64::from(size % 2) * 512 };
        let bytes = u32::from(size >> 4) * 256;
        let body = match what % 8 {
            0 => {
                replies.extend([&[0x67, 0x44, 0x66, 0x98][..], &error(size).to_be_bytes(), &cookie].concat());
                replies.extend(vec![size; if size & 8 == 0 { 0 } else { 1024 }]);
                continue;
            }
            1 | 2 => (1, [&offset.to_be_bytes()[..], &vec![size; bytes as usize]].concat()),
            3 => (2, [&offset.to_be_bytes()[..], &bytes.to_be_bytes()].concat()),
            4 => (5, [&[0, 0, 0, 1][..], &bytes.to_be_bytes(), &[0, 0, 0, size & 3]].concat()),
            5 => (
                0x8001,
                [&error(size).to_be_bytes()[..], &[0, size & 3], &vec![b'?'; usize::from(size & 7)]].concat(),
            ),
            6 => (0, Vec::new()),
            _ => (u16::from(size), vec![what; usize::from(size)]),
        };
        let (kind, body): (u16, Vec<u8>) = body;
        let length = u32::try_from(body.len()).expect("short").to_be_bytes();
        let flags = u16::from(what & 0x80 != 0).to_be_bytes();
        replies.extend(
            [&[0x66, 0x8e, 0x33, 0xef][..], &flags, &kind.to_be_bytes(), &cookie, &length, &body].concat(),
        );
    }
    replies
}

fn error(size: u8) -> u32 {
    [0, 0, 5, 28, 22, 108, 0, 9999][usize::from(size % 8)]
}

#[cfg(test)]
mod tests {
    use sealblk_testkit::fuzz_input::{corpus, many, seed};

    use super::*;

    #[test]
    fn the_corpus_of_greetings_keeps_the_promises() {
        corpus("server_greeting", server_greeting);
    }

    #[test]
    fn the_corpus_of_replies_keeps_the_promises() {
        corpus("server_replies", server_replies);
    }

    /// So that the target is not one that only refuses.
    #[test]
    fn right_replies_answer_every_request() {
        for dialect in ["structured", "simple"] {
            for name in ["all", "backwards"] {
                let seed = seed("server_replies", &format!("{dialect}-{name}"));
                assert_eq!(answered(&seed), 6, "{dialect}-{name}");
            }
        }
    }

    #[test]
    fn any_replies_leave_each_request_answered_or_to_be_made_again() {
        many(120, server_replies);
    }

    #[test]
    fn any_bytes_behind_a_greeting_end_in_an_export_or_an_error() {
        many(120, |input| server_greeting(&[b"NBDMAGICIHAVEOPT\0\x03", input].concat()));
    }
}
