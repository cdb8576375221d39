//! Taking what a helper writes: one reply, the key behind it if there is one, nothing more, and an end in order.

use sealblk_keymem::{DATA_KEY_BYTES, DataKey};

use super::exchange::{Ending, Exchange, Fault};
use super::wire::{self, Answer, LENGTH_BYTES, Reply};
use crate::error::KmsError;

/// What a helper writes, and how it ends.
pub(super) trait Output {
    /// Reads until `buffer` is full or the helper has closed its output; the number of bytes read.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault>;
    /// Sees the helper close its output and end well.
    fn finish(&mut self) -> Result<(), Fault>;
    /// How the helper ended, for the message about a reply that stopped short.
    fn ending(&mut self) -> Result<Ending, Fault>;
}

impl Output for Exchange<'_> {
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        Exchange::fill(self, buffer)
    }

    fn finish(&mut self) -> Result<(), Fault> {
        Exchange::finish(self)
    }

    fn ending(&mut self) -> Result<Ending, Fault> {
        Exchange::ending(self)
    }
}

/// Takes the one reply. `pick` gets the answer and may read what follows the document; what it makes of it counts only
/// once the helper has ended well. The outer error is the helper's, the inner one the provider's.
pub(super) fn take<O: Output, T>(
    output: &mut O,
    pick: impl FnOnce(&mut O, Answer) -> Result<T, Fault>,
) -> Result<Result<T, KmsError>, Fault> {
    match read(output)? {
        Reply::Ok(answer) => {
            let value = pick(output, answer)?;
            output.finish()?;
            Ok(Ok(value))
        }
        Reply::Error(failure) => {
            let unknown = || Fault::Garbage("an error of an operation that does not exist".to_owned());
            let error = failure.into_error().ok_or_else(unknown)?;
            output.finish()?;
            Ok(Err(error))
        }
    }
}

/// The 64 bytes after the document, read from the pipe into locked memory.
pub(super) fn data_key(output: &mut impl Output, answer: Answer) -> Result<DataKey, Fault> {
    let Answer::DataKey = answer else { return Err(Fault::OtherAnswer) };
    DataKey::init(|bytes| match output.fill(bytes)? {
        DATA_KEY_BYTES => Ok(()),
        count => Err(Fault::ShortKey(count, output.ending()?)),
    })
}

fn read(output: &mut impl Output) -> Result<Reply, Fault> {
    let mut field = [0; LENGTH_BYTES];
    if output.fill(&mut field)? != field.len() {
        return Err(Fault::ShortReply("its reply's length", output.ending()?));
    }
    let mut json = vec![0; wire::announced_length(field).ok_or(Fault::HugeReply)?];
    if output.fill(&mut json)? != json.len() {
        return Err(Fault::ShortReply("its reply", output.ending()?));
    }
    // Not serde's message: it quotes what it read, which could be anything, a misplaced key too.
    serde_json::from_slice(&json)
        .map_err(|error| Fault::Garbage(format!("{:?} error at byte {}", error.classify(), error.column())))
}
