//! Making the journal's changes again on a fresh connection, in order, and flushing them.
//!
//! The server may do requests that are under way together in any order, so that no two of them overlap here.

use std::collections::HashSet;

use sealblk_nbd::wire::{command, command_flag};
use tokio::io::AsyncWriteExt;

use crate::error::UpstreamError;
use crate::export::Export;
use crate::journal::{Change, Content};
use crate::reply::{Body, ChunkKind, LinkError, read_error, read_head};
use crate::request::Request;
use crate::stream::Stream;

/// Requests that are under way together.
const WINDOW: usize = 32;

/// Makes `changes` again and flushes. After an error nothing may be assumed of them.
pub(crate) async fn replay(
    stream: &mut Stream,
    export: &Export,
    changes: &[Change],
) -> Result<(), UpstreamError> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut rest = changes;
    while !rest.is_empty() {
        let (together, later) = rest.split_at(independent(rest));
        rest = later;
        exchange(stream, export, &requests(together, export)).await?;
    }
    let flush = Request { command: command::FLUSH, flags: 0, cookie: 1, offset: 0, length: 0 };
    exchange(stream, export, &[(flush, &[])]).await
}

/// How many changes from the first on do not overlap each other.
fn independent(changes: &[Change]) -> usize {
    let window = &changes[..changes.len().min(WINDOW)];
    let overlaps = |a: &Change, b: &Change| a.offset < b.end() && b.offset < a.end();
    let clashes = |(at, change)| window.iter().take(at).any(|earlier| overlaps(earlier, change));
    window.iter().enumerate().position(clashes).unwrap_or(window.len())
}

/// The requests for `changes`, with their payloads.
fn requests<'c>(changes: &'c [Change], export: &Export) -> Vec<(Request, &'c [u8])> {
    let mut requests = Vec::new();
    for change in changes {
        let mut push = |command, flags, offset, length, payload| {
            let cookie = requests.len() as u64 + 1;
            requests.push((Request { command, flags, cookie, offset, length }, payload));
        };
        match &change.content {
            Content::Zeros { bytes, no_hole } => {
                let flags = if *no_hole { command_flag::NO_HOLE } else { 0 };
                push(command::WRITE_ZEROES, flags, change.offset, *bytes, &[][..]);
            }
            Content::Trimmed { bytes } => push(command::TRIM, 0, change.offset, *bytes, &[]),
            Content::Data(data) => {
                let limit = usize::try_from(export.max_payload_bytes).unwrap_or(usize::MAX);
                let mut offset = change.offset;
                for piece in data.chunks(limit) {
                    let length = u32::try_from(piece.len()).expect("a piece is a payload");
                    push(command::WRITE, 0, offset, length, piece);
                    offset += u64::from(length);
                }
            }
        }
    }
    requests
}

/// Sends all of `requests` and waits for all answers. Several are sent before the first answer is read, which
/// servers must bear: they read requests while they have answers to give.
async fn exchange(
    stream: &mut Stream,
    export: &Export,
    requests: &[(Request, &[u8])],
) -> Result<(), UpstreamError> {
    let broken = |error: std::io::Error| UpstreamError::Unreachable(error);
    let mut unanswered = HashSet::with_capacity(requests.len());
    let mut header = Vec::new();
    for (request, payload) in requests {
        header.clear();
        request.encode(&mut header);
        unanswered.insert(request.cookie);
        if payload.len() <= WINDOW * 1024 {
            header.extend_from_slice(payload);
            stream.write_all(&header).await.map_err(broken)?;
        } else {
            stream.write_all(&header).await.map_err(broken)?;
            stream.write_all(payload).await.map_err(broken)?;
        }
    }
    stream.flush().await.map_err(broken)?;
    while !unanswered.is_empty() {
        let cookie = answer(stream, export).await.map_err(|error| match error {
            LinkError::Broken(source) => UpstreamError::Unreachable(source),
            LinkError::Malformed(what) => UpstreamError::Malformed(what),
            LinkError::ShuttingDown | LinkError::Stale => {
                UpstreamError::Unreachable(std::io::Error::other(error))
            }
        })?;
        if !unanswered.remove(&cookie) {
            return Err(UpstreamError::Malformed(
                "it answers a request that was not made, or answers it twice",
            ));
        }
    }
    Ok(())
}

/// Reads the whole answer to some change or flush, which must be a success.
async fn answer(stream: &mut Stream, export: &Export) -> Result<u64, LinkError> {
    let head = read_head(stream, export.structured).await?;
    let error = match head.body {
        Body::Simple { error } => error,
        Body::Chunk { kind: ChunkKind::None, .. } => 0,
        Body::Chunk { kind: ChunkKind::Error, length, .. } => read_error(stream, length).await?,
        Body::Chunk { .. } => return Err(LinkError::Malformed("a chunk's type does not fit its request")),
    };
    if error == 0 {
        Ok(head.cookie)
    } else {
        // The connection is given up, and the whole of it tried again.
        Err(LinkError::Broken(std::io::Error::other(format!(
            "it refuses to take unflushed data again (error {error})"
        ))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_that_overlap_are_never_under_way_together() {
        let zeros = |offset, bytes| Change { offset, content: Content::Zeros { bytes, no_hole: false } };
        assert_eq!(independent(&[zeros(0, 512), zeros(512, 512), zeros(1024, 512), zeros(512, 1024)]), 3);
        assert_eq!(independent(&[zeros(0, 512), zeros(0, 512)]), 1);
        let many: Vec<Change> = (0..100).map(|at| zeros(at * 512, 512)).collect();
        assert_eq!(independent(&many), WINDOW);
    }
}
