//! A passphrase in locked memory, and where a process gets it from.
//!
//! Asked for by the command line, carried to a helper process by `helper`, used by `local` to open its root key. It is
//! never part of a document, an argument, the environment or an error.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use sealblk_keymem::{KeyMemError, Secret};

/// The longest passphrase, in bytes.
pub const PASSPHRASE_BYTES_MAX: usize = 1024;
/// How long a passphrase is, in its first bytes: 16 bits, little-endian.
const LENGTH_BYTES: usize = 2;
/// A passphrase of any length takes as many bytes, in memory and on its way to a helper.
const SLOT_BYTES: usize = LENGTH_BYTES + PASSPHRASE_BYTES_MAX;

/// 1 to 1024 bytes, in locked memory, wiped when dropped.
///
/// Text as it was typed, without the line's end; not normalised, so that the same characters spelled with other bytes
/// are another passphrase.
#[derive(Debug)]
pub struct Passphrase(Secret<SLOT_BYTES>);

/// Why there is no passphrase.
#[derive(Debug, thiserror::Error)]
pub enum PassphraseError {
    /// Nothing was typed, or the descriptor or file is empty.
    #[error("the passphrase is empty")]
    Empty,
    /// More than [`PASSPHRASE_BYTES_MAX`].
    #[error("the passphrase is longer than 1024 bytes")]
    TooLong,
    /// Whoever was asked did not give one: what to do about it.
    #[error("{0}")]
    NotGiven(&'static str),
    /// It cannot be read from there.
    #[error("the passphrase cannot be read from {from}")]
    Read {
        /// A descriptor, a file or the terminal.
        from: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// No locked memory.
    #[error(transparent)]
    KeyMemory(#[from] KeyMemError),
}

impl Passphrase {
    /// Lets `fill` write the passphrase straight into locked memory, [`PASSPHRASE_BYTES_MAX`] bytes of it, and say how
    /// many it wrote.
    pub fn init(
        fill: impl FnOnce(&mut [u8]) -> Result<usize, PassphraseError>,
    ) -> Result<Self, PassphraseError> {
        let slot = Secret::init(|slot: &mut [u8; SLOT_BYTES]| {
            let (length, bytes) = slot.split_first_chunk_mut::<LENGTH_BYTES>().expect("a slot is longer");
            let count = fill(bytes)?;
            bytes.get_mut(count..).ok_or(PassphraseError::TooLong)?.fill(0);
            *length = u16::try_from(count).map_err(|_| PassphraseError::TooLong)?.to_le_bytes();
            if count == 0 { Err(PassphraseError::Empty) } else { Ok(()) }
        })?;
        Ok(Self(slot))
    }

    /// Reads one line, or what there is, from a descriptor that blocks: byte by byte, so that nothing behind the line's
    /// end is taken. `from` names the descriptor in errors.
    pub fn read_line(fd: impl AsFd, from: &str) -> Result<Self, PassphraseError> {
        Self::init(|bytes| {
            let mut count = 0;
            while let Some(byte) = bytes.get_mut(count..=count) {
                match rustix::io::read(&fd, &mut *byte) {
                    Ok(0) => return Ok(count),
                    Ok(_) if byte == b"\n" => return Ok(count),
                    Ok(_) => count += 1,
                    Err(Errno::INTR) => {}
                    Err(error) => {
                        return Err(PassphraseError::Read { from: from.to_owned(), source: error.into() });
                    }
                }
            }
            // Full: only the end may follow.
            let mut next = [0];
            match rustix::io::read(&fd, &mut next[..]) {
                Ok(1) if next != *b"\n" => Err(PassphraseError::TooLong),
                _ => Ok(count),
            }
        })
    }

    /// Whether it is the same text: for one that is asked for twice.
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.0.expose(|mine| other.0.expose(|theirs| mine == theirs))
    }

    /// Reads the text in the scope of `read`.
    pub(crate) fn expose<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        self.0.expose(|slot| {
            let (length, bytes) = slot.split_first_chunk::<LENGTH_BYTES>().expect("a slot is longer");
            let length = usize::from(u16::from_le_bytes(*length));
            read(bytes.get(..length).expect("no passphrase is longer than its slot"))
        })
    }

    /// The bytes that go to a helper: always as many.
    pub(crate) fn expose_slot<R>(&self, read: impl FnOnce(&[u8]) -> R) -> R {
        self.0.expose(|slot| read(slot))
    }

    /// Takes what [`expose_slot`](Self::expose_slot) gave, at the other end; `fill` fills the whole of it.
    pub(crate) fn from_slot(fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> Result<Self, PassphraseError> {
        let slot = Secret::init(|slot: &mut [u8; SLOT_BYTES]| {
            let unread = |source| PassphraseError::Read { from: "the parent process".to_owned(), source };
            fill(slot).map_err(unread)?;
            let (length, bytes) = slot.split_first_chunk::<LENGTH_BYTES>().expect("a slot is longer");
            match usize::from(u16::from_le_bytes(*length)) {
                0 => Err(PassphraseError::Empty),
                length if length > bytes.len() => Err(PassphraseError::TooLong),
                _ => Ok(()),
            }
        })?;
        Ok(Self(slot))
    }
}

type Ask = dyn Fn() -> Result<Passphrase, PassphraseError> + Send + Sync;

/// Where a passphrase comes from: asked for when first needed, once, and held in locked memory until it is forgotten.
pub struct PassphraseSource {
    ask: Box<Ask>,
    state: Mutex<State>,
}

enum State {
    Unasked,
    Held(Arc<Passphrase>),
    Forgotten,
}

impl PassphraseSource {
    /// A source that calls `ask` when a passphrase is first needed.
    pub fn new(ask: impl Fn() -> Result<Passphrase, PassphraseError> + Send + Sync + 'static) -> Self {
        Self { ask: Box::new(ask), state: Mutex::new(State::Unasked) }
    }

    /// A source that has one already.
    pub fn holding(passphrase: Passphrase) -> Self {
        let unasked = Box::new(|| Err(PassphraseError::NotGiven("there is no passphrase")));
        Self { ask: unasked, state: Mutex::new(State::Held(Arc::new(passphrase))) }
    }

    /// The passphrase, asked for now if it has not been; `None` once it is forgotten: it is not asked for again.
    pub fn get(&self) -> Result<Option<Arc<Passphrase>>, PassphraseError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &*state {
            State::Forgotten => Ok(None),
            State::Held(passphrase) => Ok(Some(Arc::clone(passphrase))),
            State::Unasked => {
                let passphrase = Arc::new((self.ask)()?);
                *state = State::Held(Arc::clone(&passphrase));
                Ok(Some(passphrase))
            }
        }
    }

    /// Wipes it, and never asks again: what a process does that lives on after its keys are unwrapped.
    pub fn forget(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State::Forgotten;
    }
}

impl fmt::Debug for PassphraseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PassphraseSource(redacted)")
    }
}

/// What opens the embedded key store's root key where that is not simply in a file. Empty by default.
#[derive(Clone, Debug, Default)]
pub struct Unlock {
    /// Where the passphrase comes from, for a root key under one. `None`: such a root key cannot be opened.
    pub passphrase: Option<Arc<PassphraseSource>>,
    /// The directory of the service manager's credentials, for a root key under one (systemd.exec(5),
    /// `$CREDENTIALS_DIRECTORY`).
    pub credentials: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use std::io::{Seek, Write};

    use super::*;

    fn line(text: &[u8]) -> Result<Passphrase, PassphraseError> {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(text).and_then(|()| file.rewind()).expect("written");
        Passphrase::read_line(&file, "a file")
    }

    #[test]
    fn one_line_is_read_without_its_end() {
        for text in [&b"correct horse"[..], b"correct horse\n", b"correct horse\nanother line\n"] {
            line(text).expect("a passphrase").expose(|bytes| assert_eq!(bytes, b"correct horse"));
        }
    }

    #[test]
    fn two_lines_of_one_descriptor_are_two_passphrases() {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(b"old\nnew\n").and_then(|()| file.rewind()).expect("written");
        for expected in [b"old", b"new"] {
            let passphrase = Passphrase::read_line(&file, "a file").expect("a passphrase");
            passphrase.expose(|bytes| assert_eq!(bytes, expected));
        }
    }

    #[test]
    fn none_and_too_much_are_refused() {
        assert!(matches!(line(b""), Err(PassphraseError::Empty)));
        assert!(matches!(line(b"\nsecond"), Err(PassphraseError::Empty)));
        let longest = vec![b'x'; PASSPHRASE_BYTES_MAX];
        line(&longest).expect("just fits").expose(|bytes| assert_eq!(bytes, longest));
        line(&[&longest[..], b"\n"].concat()).expect("just fits, with a line's end");
        assert!(matches!(line(&[&longest[..], b"x"].concat()), Err(PassphraseError::TooLong)));
    }

    #[test]
    fn a_slot_carries_any_length() {
        let sent = line(b"p").expect("a passphrase");
        let received = sent.expose_slot(|slot| {
            Passphrase::from_slot(|bytes| {
                bytes.copy_from_slice(slot);
                Ok(())
            })
        });
        assert!(received.expect("received").is_same_as(&sent));
        let too_long = Passphrase::from_slot(|bytes| {
            bytes.fill(0xff);
            Ok(())
        });
        assert!(matches!(too_long, Err(PassphraseError::TooLong)));
    }

    #[test]
    fn a_source_asks_once_and_never_after_it_forgot() {
        let asked = Arc::new(Mutex::new(0));
        let count = Arc::clone(&asked);
        let source = PassphraseSource::new(move || {
            *count.lock().expect("no panic") += 1;
            line(b"p")
        });
        for _ in 0..2 {
            assert!(source.get().expect("given").is_some());
        }
        source.forget();
        assert!(source.get().expect("no error").is_none());
        assert_eq!(*asked.lock().expect("no panic"), 1);
    }
}
