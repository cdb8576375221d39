//! Where a passphrase comes from: the terminal, a descriptor or a file; never an argument and never the environment.
//! It goes byte by byte from the kernel into locked memory.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use sealblk_kms::{Passphrase, PassphraseError};

const GROUP_AND_WORLD: u32 = 0o077;
const CTRL_C: u8 = 0x03;
const CTRL_D: u8 = 0x04;
const BACKSPACE: u8 = 0x08;
const CTRL_U: u8 = 0x15;
const DELETE: u8 = 0x7f;

/// Where the command line says that a passphrase is.
#[derive(Clone, Debug)]
pub(crate) enum PassphraseInput {
    /// An inherited descriptor: one line of it.
    Descriptor(u32),
    /// A file: its first line.
    File(PathBuf),
    /// The terminal, whatever standard input is.
    Terminal,
}

impl PassphraseInput {
    /// What the options say.
    pub(crate) fn of(descriptor: Option<u32>, file: Option<&Path>) -> Self {
        match (descriptor, file) {
            (Some(descriptor), _) => Self::Descriptor(descriptor),
            (None, Some(file)) => Self::File(file.to_owned()),
            (None, None) => Self::Terminal,
        }
    }

    /// A passphrase that exists.
    pub(crate) fn existing(&self) -> Result<Passphrase, PassphraseError> {
        self.read("Passphrase of the key store: ")
    }

    /// A new passphrase; at the terminal, typed twice.
    pub(crate) fn new_one(&self) -> Result<Passphrase, PassphraseError> {
        let passphrase = self.read("New passphrase for the key store: ")?;
        if matches!(self, Self::Terminal) && !self.read("The same again: ")?.is_same_as(&passphrase) {
            return Err(PassphraseError::NotGiven("the two passphrases differ"));
        }
        Ok(passphrase)
    }

    fn read(&self, prompt: &str) -> Result<Passphrase, PassphraseError> {
        match self {
            Self::Descriptor(0) => Passphrase::read_line(io::stdin(), "descriptor 0"),
            Self::Descriptor(number) => {
                let name = format!("descriptor {number}");
                let opened = File::open(format!("/proc/self/fd/{number}"));
                let file = opened.map_err(|source| PassphraseError::Read { from: name.clone(), source })?;
                Passphrase::read_line(file, &name)
            }
            Self::File(path) => {
                let name = path.display().to_string();
                let opened = open_private(path);
                let file = opened.map_err(|source| PassphraseError::Read { from: name.clone(), source })?;
                Passphrase::read_line(file, &name)
            }
            Self::Terminal => ask(prompt),
        }
    }
}

/// Opens a file that nobody else can read; a pipe or a device is its owner's business.
fn open_private(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    let special = metadata.file_type().is_fifo() || metadata.file_type().is_char_device();
    if !special && metadata.mode() & GROUP_AND_WORLD != 0 {
        let mode = metadata.mode() & 0o7777;
        return Err(io::Error::other(format!("others may read it (mode {mode:o}): make it 0600")));
    }
    Ok(file)
}

/// Asks at the terminal without showing what is typed.
fn ask(prompt: &str) -> Result<Passphrase, PassphraseError> {
    let no_terminal =
        "there is no terminal to ask for the passphrase: give --passphrase-fd or --passphrase-file";
    let terminal = File::options().read(true).write(true).open("/dev/tty");
    let terminal = terminal.map_err(|_| PassphraseError::NotGiven(no_terminal))?;
    let failed =
        |error: Errno| PassphraseError::Read { from: "the terminal".to_owned(), source: error.into() };
    let say = |text: &str| rustix::io::write(&terminal, text.as_bytes()).map(drop).map_err(failed);
    let silent = Silent::on(&terminal).map_err(failed)?;
    say(prompt)?;
    let passphrase = Passphrase::init(|bytes| type_in(&terminal, bytes));
    drop(silent);
    say("\n")?;
    passphrase
}

/// Takes what is typed up to the line's end, with the usual keys to correct it; the number of bytes.
fn type_in(terminal: &File, bytes: &mut [u8]) -> Result<usize, PassphraseError> {
    let mut count: usize = 0;
    loop {
        let Some(byte) = bytes.get_mut(count..=count) else { return Err(PassphraseError::TooLong) };
        match rustix::io::read(terminal, &mut *byte) {
            Ok(0) => return Ok(count),
            Ok(_) => match byte {
                [b'\n' | b'\r'] => return Ok(count),
                [CTRL_D] if count == 0 => return Ok(count),
                [CTRL_C] => return Err(PassphraseError::NotGiven("no passphrase was given: interrupted")),
                [CTRL_U] => count = 0,
                [BACKSPACE | DELETE] => {
                    count = count.saturating_sub(1);
                    // The rest of a character that is longer than one byte (UTF-8's following bytes are 10xxxxxx).
                    while count > 0 && bytes.get(count).is_some_and(|byte| byte & 0xc0 == 0x80) {
                        count -= 1;
                    }
                }
                _ => count += 1,
            },
            Err(Errno::INTR) => {}
            Err(error) => {
                return Err(PassphraseError::Read { from: "the terminal".to_owned(), source: error.into() });
            }
        }
    }
}

/// A terminal that gives each byte at once and shows none; as it was before when dropped.
struct Silent<'t> {
    terminal: &'t File,
    before: Termios,
}

impl<'t> Silent<'t> {
    fn on(terminal: &'t File) -> Result<Self, Errno> {
        let before = tcgetattr(terminal)?;
        let mut now = before.clone();
        // Without signals, or an interrupt would leave the terminal silent.
        now.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
        now.special_codes[SpecialCodeIndex::VMIN] = 1;
        now.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(terminal.as_fd(), OptionalActions::Flush, &now)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // A terminal that is gone needs no repair.
        let _ = tcsetattr(self.terminal.as_fd(), OptionalActions::Now, &self.before);
    }
}
