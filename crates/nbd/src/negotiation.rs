//! Fixed-newstyle negotiation, sans I/O: bytes of the client in, bytes of the server out.
//!
//! [`Negotiation`] is fed whatever arrived, consumes at most one message a call, and puts the answer
//! into its [`replies`](Negotiation::replies); so memory stays bounded by one option and its answer.
//! An option is read whole before the first byte of its answer is made: a client that is still writing
//! cannot be deadlocked by a server that is writing too. Framing, limits and the order of messages are
//! here; what each option means is in [`crate::options`]. The caller sends, keeps the deadline, and
//! closes.

use crate::context::ContextSet;
use crate::context_options;
use crate::export::Export;
use crate::options::{self, Verdict};
use crate::session::{Agreement, Dialect};
use crate::wire::{self, Fields, client_flag, handshake_flag, option, option_reply};

/// The longest option that is looked into. A legal GO has at most 4 + 4096 + 2 + 2 * 65535 bytes.
pub const MAX_OPTION_BYTES: u32 = 256 << 10;
/// The longest option that is read and thrown away so that the session stays in step. More is an attack.
pub const MAX_DRAINED_BYTES: u32 = 1 << 20;

/// What TLS is on a connection; the same from its first byte to its last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TlsMode {
    /// There is none: STARTTLS is refused (NOTLS).
    Off,
    /// Before TLS nothing is served but STARTTLS and ABORT (FORCEDTLS).
    Required,
}

/// What a negotiation came to. After all but [`Self::StartTls`] it is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The client chose the export: once the replies are sent, transmission begins with the next byte.
    Transmission,
    /// The client said ABORT: once the replies are sent, the connection is closed.
    Aborted,
    /// The client may have TLS. Once the replies are sent, the stream goes to the TLS library, without a byte
    /// of it having been read ahead; when the handshake has succeeded, [`Negotiation::tls_established`] is
    /// called, and the negotiation goes on inside. When it fails, the connection is closed.
    StartTls,
}

/// What a client did that ends its connection without an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// Client flags that were not offered.
    #[error("client flags {0:#x} were not offered")]
    ClientFlags(u32),
    /// An option that does not begin with its magic number.
    #[error("an option begins with {0:#018x}")]
    OptionMagic(u64),
    /// An option too long even to be thrown away.
    #[error("option {option} announces {length} bytes")]
    OptionLength {
        /// The option.
        option: u32,
        /// Its announced length.
        length: u32,
    },
    /// EXPORT_NAME for an export that is not here: the protocol has no reply for that.
    #[error("EXPORT_NAME asks for an export that is not here")]
    UnknownExport,
    /// EXPORT_NAME while the server is going away: the protocol has no reply for that either.
    #[error("EXPORT_NAME while the server is shutting down")]
    ShuttingDown,
    /// EXPORT_NAME before TLS, which comes first here: no reply for that either.
    #[error("EXPORT_NAME without TLS")]
    TlsRequired,
    /// EXPORT_NAME after EXTENDED_HEADERS, which rules it out.
    #[error("EXPORT_NAME after EXTENDED_HEADERS")]
    ExportNameAfterExtendedHeaders,
    /// Bytes behind STARTTLS, which nobody sends who waits for its answer: somebody wants them to be
    /// taken for the first bytes inside TLS.
    #[error("{0} bytes follow STARTTLS outside TLS")]
    PlaintextAfterStartTls(usize),
}

/// What came of a call of [`Negotiation::feed`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fed {
    /// How many of the bytes were consumed. Those after the end of the negotiation are not.
    pub consumed: usize,
    /// The end, if this was it, or the beginning of TLS.
    pub ended: Option<Outcome>,
}

/// The message that is being collected.
#[derive(Clone, Copy, Debug)]
enum Expecting {
    ClientFlags,
    OptionHeader,
    /// Data of an option that will be looked into.
    OptionData {
        option: u32,
        length: usize,
    },
    /// Data of an option whose answer does not depend on it.
    UnreadData {
        option: u32,
        left: usize,
        announced: u32,
    },
}

/// The server's half of one negotiation.
#[derive(Debug)]
pub struct Negotiation<'e> {
    export: &'e Export,
    expecting: Expecting,
    collected: Vec<u8>,
    replies: Vec<u8>,
    fixed_newstyle: bool,
    no_zeroes: bool,
    shutting_down: bool,
    tls: TlsMode,
    inside_tls: bool,
    agreement: Agreement,
}

impl<'e> Negotiation<'e> {
    /// A negotiation about `export`, with the greeting among its replies.
    pub fn new(export: &'e Export, tls: TlsMode) -> Self {
        let mut replies = Vec::with_capacity(256);
        replies.extend(wire::MAGIC.to_be_bytes());
        replies.extend(wire::OPTION_MAGIC.to_be_bytes());
        replies.extend((handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES).to_be_bytes());
        Self {
            export,
            expecting: Expecting::ClientFlags,
            collected: Vec::new(),
            replies,
            fixed_newstyle: false,
            no_zeroes: false,
            shutting_down: false,
            tls,
            inside_tls: false,
            agreement: Agreement::default(),
        }
    }

    /// The TLS handshake that [`Outcome::StartTls`] asked for has succeeded: from here on the negotiation is
    /// inside. Whatever was agreed on outside is forgotten, for anybody could have said it (CVE-2021-3716).
    pub fn tls_established(&mut self) {
        self.inside_tls = true;
        self.agreement = Agreement::default();
        self.replies.clear();
        self.expect_option();
    }

    /// What client and server have agreed on so far; with [`Outcome::Transmission`], for good.
    pub fn agreement(&self) -> Agreement {
        self.agreement
    }

    /// Bytes to send. Taken by the caller, who leaves the vector empty.
    pub fn replies(&mut self) -> &mut Vec<u8> {
        &mut self.replies
    }

    /// From now on every option but ABORT is answered that the server is going away.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    /// Consumes bytes from the front of `input`, up to the end of one message. Fewer consumed than
    /// given, and not ended: there are replies to send before the next call.
    pub fn feed(&mut self, input: &[u8]) -> Result<Fed, Violation> {
        let mut rest = Fields::new(input);
        let mut ended = None;
        while !rest.is_empty() {
            if let Some(verdict) = self.advance(&mut rest)? {
                if let Verdict::Ended(outcome) = verdict {
                    ended = Some(outcome);
                }
                break;
            }
        }
        if ended == Some(Outcome::StartTls) && !rest.is_empty() {
            return Err(Violation::PlaintextAfterStartTls(rest.len()));
        }
        Ok(Fed { consumed: input.len().saturating_sub(rest.len()), ended })
    }

    /// Takes one step: `Some` when an option was answered.
    fn advance(&mut self, rest: &mut Fields<'_>) -> Result<Option<Verdict>, Violation> {
        match self.expecting {
            Expecting::ClientFlags => {
                if self.collect(rest, 4) {
                    self.client_flags()?;
                }
                Ok(None)
            }
            Expecting::OptionHeader => {
                if self.collect(rest, wire::OPTION_HEADER_BYTES) {
                    self.option_header()
                } else {
                    Ok(None)
                }
            }
            Expecting::OptionData { option, length } => {
                if self.collect(rest, length) {
                    self.option_data(option).map(Some)
                } else {
                    Ok(None)
                }
            }
            Expecting::UnreadData { option, left, announced } => {
                let skipped = left.min(rest.len());
                rest.bytes(skipped).expect("no more than there is");
                let left = left.saturating_sub(skipped);
                self.expecting = Expecting::UnreadData { option, left, announced };
                Ok(if left == 0 { Some(self.answer_unread(option, announced)) } else { None })
            }
        }
    }

    /// Moves bytes from `rest` until `wanted` are collected; says whether they are.
    fn collect(&mut self, rest: &mut Fields<'_>, wanted: usize) -> bool {
        let missing = wanted.saturating_sub(self.collected.len()).min(rest.len());
        self.collected.extend_from_slice(rest.bytes(missing).expect("no more than there is"));
        self.collected.len() >= wanted
    }

    fn client_flags(&mut self) -> Result<(), Violation> {
        let flags = Fields::new(&self.collected).u32().expect("four bytes were collected");
        let offered = client_flag::FIXED_NEWSTYLE | client_flag::NO_ZEROES;
        if flags & !offered != 0 {
            return Err(Violation::ClientFlags(flags));
        }
        self.fixed_newstyle = flags & client_flag::FIXED_NEWSTYLE != 0;
        self.no_zeroes = flags & client_flag::NO_ZEROES != 0;
        self.expect_option();
        Ok(())
    }

    fn expect_option(&mut self) {
        self.collected.clear();
        // An option of 256 KiB does not keep its memory for the rest of the session.
        self.collected.shrink_to(wire::MAX_STRING_BYTES);
        self.expecting = Expecting::OptionHeader;
    }

    /// Decides from an option's header what becomes of its data.
    fn option_header(&mut self) -> Result<Option<Verdict>, Violation> {
        let mut header = Fields::new(&self.collected);
        let mut field = || header.u32().map(u64::from).expect("sixteen bytes were collected");
        let magic = (field() << 32) | field();
        let (option, announced) = (
            u32::try_from(field()).expect("it was 32 bits"),
            u32::try_from(field()).expect("it was 32 bits"),
        );
        if magic != wire::OPTION_MAGIC {
            return Err(Violation::OptionMagic(magic));
        }
        let too_long = match option {
            option::EXPORT_NAME => {
                !usize::try_from(announced).is_ok_and(|length| length <= wire::MAX_STRING_BYTES)
            }
            _ => announced > MAX_DRAINED_BYTES,
        };
        if too_long {
            return Err(Violation::OptionLength { option, length: announced });
        }
        if option == option::EXPORT_NAME {
            self.check_export_name()?;
        }
        if option == option::SET_META_CONTEXT {
            // Whatever becomes of it, it replaces all that was chosen before.
            self.agreement.contexts = ContextSet::default();
        }
        self.collected.clear();
        let length = usize::try_from(announced).expect("at most a MiB");
        // A stranger before TLS is not given the memory for an option that is refused anyway.
        let looked_into = has_content(option) && !self.lacks_tls();
        if looked_into && announced <= MAX_OPTION_BYTES {
            self.expecting = Expecting::OptionData { option, length };
            return if length == 0 { self.option_data(option).map(Some) } else { Ok(None) };
        }
        self.expecting = Expecting::UnreadData { option, left: length, announced };
        Ok(if length == 0 { Some(self.answer_unread(option, announced)) } else { None })
    }

    /// Answers an option whose data is in `collected`.
    fn option_data(&mut self, option: u32) -> Result<Verdict, Violation> {
        let verdict = match option {
            option::EXPORT_NAME => self.export_name()?,
            _ => match self.refusal(option) {
                Some(verdict) => verdict,
                None => self.answer(option),
            },
        };
        self.expect_option();
        Ok(verdict)
    }

    /// Answers an option whose data is in `collected`, and which is allowed now.
    fn answer(&mut self, option: u32) -> Verdict {
        let (export, data, replies) = (self.export, &self.collected, &mut self.replies);
        match option {
            option::LIST_META_CONTEXT => context_options::list(export, data, replies),
            option::SET_META_CONTEXT => context_options::set(export, &mut self.agreement, data, replies),
            _ => options::info_or_go(export, &self.agreement, option, data, replies),
        }
    }

    /// EXPORT_NAME, with its data in `collected`.
    fn export_name(&mut self) -> Result<Verdict, Violation> {
        let verdict = options::export_name(self.export, &self.agreement, &self.collected, &mut self.replies)
            .ok_or(Violation::UnknownExport)?;
        if !self.no_zeroes {
            self.replies.extend([0; wire::EXPORT_NAME_PADDING_BYTES]);
        }
        Ok(verdict)
    }

    /// Whether EXPORT_NAME is allowed now.
    fn check_export_name(&self) -> Result<(), Violation> {
        if self.lacks_tls() {
            Err(Violation::TlsRequired)
        } else if self.shutting_down {
            Err(Violation::ShuttingDown)
        } else if self.agreement.dialect == Dialect::Extended {
            Err(Violation::ExportNameAfterExtendedHeaders)
        } else {
            Ok(())
        }
    }

    /// Answers an option whose data was thrown away.
    fn answer_unread(&mut self, option: u32, announced: u32) -> Verdict {
        self.expect_option();
        if let Some(verdict) = self.refusal(option) {
            return verdict;
        }
        let replies = &mut self.replies;
        match option {
            option::ABORT => {
                options::reply(replies, option, option_reply::ACK, &[]);
                Verdict::Ended(Outcome::Aborted)
            }
            option::STARTTLS => self.start_tls(announced),
            option::LIST if announced == 0 => options::list(self.export, replies),
            option::STRUCTURED_REPLY => self.use_dialect(option, Dialect::Structured, announced),
            option::EXTENDED_HEADERS => self.use_dialect(option, Dialect::Extended, announced),
            option::LIST => {
                options::error(replies, option, option_reply::ERR_INVALID, "LIST carries no data")
            }
            _ if has_content(option) => {
                options::error(replies, option, option_reply::ERR_TOO_BIG, "the option is too long")
            }
            _ => options::error(replies, option, option_reply::ERR_UNSUP, "the option is not known here"),
        }
    }

    /// STARTTLS, wherever it is allowed at all.
    fn start_tls(&mut self, announced: u32) -> Verdict {
        let (kind, text) = match self.tls {
            _ if announced > 0 => (option_reply::ERR_INVALID, "STARTTLS carries no data"),
            TlsMode::Off => (option_reply::ERR_POLICY, "there is no TLS on this address"),
            TlsMode::Required if self.inside_tls => (option_reply::ERR_INVALID, "TLS is up already"),
            TlsMode::Required => {
                options::reply(&mut self.replies, option::STARTTLS, option_reply::ACK, &[]);
                return Verdict::Ended(Outcome::StartTls);
            }
        };
        options::error(&mut self.replies, option::STARTTLS, kind, text)
    }

    /// STRUCTURED_REPLY and EXTENDED_HEADERS.
    fn use_dialect(&mut self, option: u32, dialect: Dialect, announced: u32) -> Verdict {
        let (kind, text) = match self.agreement.dialect {
            _ if announced > 0 => (option_reply::ERR_INVALID, "the option carries no data"),
            known if known == dialect => (option_reply::ERR_INVALID, "that was agreed on already"),
            Dialect::Extended => {
                (option_reply::ERR_EXT_HEADER_REQD, "extended headers were agreed on, which say more")
            }
            Dialect::Simple | Dialect::Structured => {
                self.agreement.dialect = dialect;
                options::reply(&mut self.replies, option, option_reply::ACK, &[]);
                return Verdict::Continue;
            }
        };
        options::error(&mut self.replies, option, kind, text)
    }

    /// Whether the client has to begin TLS before anything else.
    fn lacks_tls(&self) -> bool {
        self.tls == TlsMode::Required && !self.inside_tls
    }

    /// The answer to an option that is not allowed now, whatever it is.
    fn refusal(&mut self, option: u32) -> Option<Verdict> {
        if option == option::ABORT {
            return None;
        }
        let (kind, text) = if self.shutting_down {
            (option_reply::ERR_SHUTDOWN, "the server is shutting down")
        } else if !self.fixed_newstyle {
            (option_reply::ERR_INVALID, "the client did not agree to fixed newstyle negotiation")
        } else if self.lacks_tls() && option != option::STARTTLS {
            (option_reply::ERR_TLS_REQD, "this server speaks to nobody without TLS")
        } else {
            return None;
        };
        Some(options::error(&mut self.replies, option, kind, text))
    }
}

/// Whether an option has data that its answer depends on.
fn has_content(option: u32) -> bool {
    matches!(
        option,
        option::EXPORT_NAME
            | option::INFO
            | option::GO
            | option::LIST_META_CONTEXT
            | option::SET_META_CONTEXT
    )
}
