//! The server that costs nothing: it answers each request at once, stores nothing, and sends zeros. What a client can do with
//! it is what that client can do: `scripts/bench` shows it beside servers that work.
//!
//!     cargo run --release -p sealblk-nbd --example idle_server -- SOCKET BYTES
//!
//! A thread for each connection, which never sleeps. Compact headers; for clients in good order.

use std::error::Error;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};

use sealblk_nbd::wire::{
    self, chunk, command, handshake_flag, info, option, option_reply, transmission_flag,
};

/// Bytes received at once: a batch of small requests, or two large ones.
const INBOX_BYTES: usize = 4 << 20;
/// Replies sent at once, as many as our lanes send.
const BATCH: usize = 16;

/// Fields one after the other, in the order of the wire.
fn joined(fields: &[&[u8]]) -> Vec<u8> {
    fields.concat()
}

/// Field `at` of a message, `N` bytes.
fn field<const N: usize>(message: &[u8], at: usize) -> [u8; N] {
    message[at..at + N].try_into().expect("N bytes")
}

fn answer_option(client: &mut UnixStream, option: u32, reply: u32, data: &[u8]) -> io::Result<()> {
    let bytes = u32::try_from(data.len()).expect("some bytes");
    client.write_all(&joined(&[
        &wire::OPTION_REPLY_MAGIC.to_be_bytes(),
        &option.to_be_bytes(),
        &reply.to_be_bytes(),
        &bytes.to_be_bytes(),
        data,
    ]))
}

/// Negotiates; says whether replies to reads are chunks.
fn negotiate(client: &mut UnixStream, export_bytes: u64) -> io::Result<bool> {
    let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
    client.write_all(&joined(&[
        &wire::MAGIC.to_be_bytes(),
        &wire::OPTION_MAGIC.to_be_bytes(),
        &flags.to_be_bytes(),
    ]))?;
    client.read_exact(&mut [0; 4])?;
    let mut chunks = false;
    loop {
        let mut header = [0; wire::OPTION_HEADER_BYTES];
        client.read_exact(&mut header)?;
        let option = u32::from_be_bytes(field(&header, 8));
        let mut data = vec![0; u32::from_be_bytes(field(&header, 12)).min(1 << 16) as usize];
        client.read_exact(&mut data)?;
        match option {
            option::STRUCTURED_REPLY => {
                chunks = true;
                answer_option(client, option, option_reply::ACK, &[])?;
            }
            option::GO | option::INFO => {
                let flags = transmission_flag::HAS_FLAGS | transmission_flag::SEND_FLUSH;
                let export =
                    joined(&[&info::EXPORT.to_be_bytes(), &export_bytes.to_be_bytes(), &flags.to_be_bytes()]);
                answer_option(client, option, option_reply::INFO, &export)?;
                answer_option(client, option, option_reply::ACK, &[])?;
                if option == option::GO {
                    return Ok(chunks);
                }
            }
            option::ABORT => {
                answer_option(client, option, option_reply::ACK, &[])?;
                return Err(ErrorKind::ConnectionAborted.into());
            }
            _ => answer_option(client, option, option_reply::ERR_UNSUP, &[])?,
        }
    }
}

/// A request's reply: head, and how many zeros follow it.
fn reply(request: &[u8], chunks: bool) -> (Vec<u8>, usize) {
    let reads = u16::from_be_bytes(field(request, 6)) == command::READ;
    let (cookie, offset, length) =
        (&request[8..16], &request[16..24], u32::from_be_bytes(field(request, 24)));
    let zeros = if reads { length as usize } else { 0 };
    let head = match (chunks, reads) {
        (true, true) => joined(&[
            &wire::STRUCTURED_REPLY_MAGIC.to_be_bytes(),
            &chunk::DONE.to_be_bytes(),
            &chunk::OFFSET_DATA.to_be_bytes(),
            cookie,
            &(length + 8).to_be_bytes(),
            offset,
        ]),
        (true, false) => joined(&[
            &wire::STRUCTURED_REPLY_MAGIC.to_be_bytes(),
            &chunk::DONE.to_be_bytes(),
            &chunk::NONE.to_be_bytes(),
            cookie,
            &[0; 4],
        ]),
        (false, _) => joined(&[&wire::SIMPLE_REPLY_MAGIC.to_be_bytes(), &[0; 4], cookie]),
    };
    (head, zeros)
}

/// Sends all of them, however often the socket takes only a part.
fn send(client: &mut UnixStream, replies: &mut Vec<(Vec<u8>, usize)>, zeros: &[u8]) -> io::Result<()> {
    let mut pieces: Vec<IoSlice<'_>> = replies
        .iter()
        .flat_map(|(head, count)| [IoSlice::new(head), IoSlice::new(&zeros[..*count])])
        .collect();
    let mut left = &mut pieces[..];
    while !left.is_empty() {
        match client.write_vectored(left) {
            Ok(sent) => IoSlice::advance_slices(&mut left, sent),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => return Err(error),
        }
    }
    replies.clear();
    Ok(())
}

/// A request whose payload is not here yet, and how much of it is missing.
type Owed = Option<(Vec<u8>, usize)>;

/// Takes the next request off the front of `received`, and its payload; `None`: more must be received first.
fn next_reply(received: &mut &[u8], owed: &mut Owed, chunks: bool) -> io::Result<Option<(Vec<u8>, usize)>> {
    if owed.is_none() {
        let Some((request, rest)) = received.split_at_checked(wire::REQUEST_HEADER_BYTES) else {
            return Ok(None);
        };
        *received = rest;
        let payload_bytes = match u16::from_be_bytes(field(request, 6)) {
            command::DISCONNECT => return Err(ErrorKind::ConnectionAborted.into()),
            command::WRITE => u32::from_be_bytes(field(request, 24)) as usize,
            _ => return Ok(Some(reply(request, chunks))),
        };
        *owed = Some((request.to_vec(), payload_bytes));
    }
    let (request, missing) = owed.as_mut().expect("looked at above");
    let here = received.len().min(*missing);
    (*received, *missing) = (&received[here..], *missing - here);
    if *missing > 0 {
        return Ok(None);
    }
    let answered = reply(request, chunks);
    *owed = None;
    Ok(Some(answered))
}

fn serve(mut client: UnixStream, export_bytes: u64) -> io::Result<()> {
    let chunks = negotiate(&mut client, export_bytes)?;
    client.set_nonblocking(true)?;
    let zeros = vec![0; wire::MAX_PAYLOAD_BYTES as usize];
    let mut inbox = vec![0; INBOX_BYTES];
    let (mut end, mut owed, mut replies) = (0, None, Vec::with_capacity(BATCH));
    loop {
        match client.read(&mut inbox[end..]) {
            Ok(0) => return Ok(()),
            Ok(count) => end += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::hint::spin_loop();
                continue;
            }
            Err(error) => return Err(error),
        }
        let mut received = &inbox[..end];
        while let Some(reply) = next_reply(&mut received, &mut owed, chunks)? {
            replies.push(reply);
            if replies.len() == BATCH {
                send(&mut client, &mut replies, &zeros)?;
            }
        }
        let left = received.len();
        inbox.copy_within(end - left..end, 0);
        end = left;
        send(&mut client, &mut replies, &zeros)?;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, export_bytes] = arguments.as_slice() else {
        return Err("usage: idle_server SOCKET BYTES".into());
    };
    let export_bytes = export_bytes.parse()?;
    for client in UnixListener::bind(socket)?.incoming() {
        let client = client?;
        // A client that goes away is no concern of the others'.
        std::thread::spawn(move || serve(client, export_bytes));
    }
    Ok(())
}
