//! The negotiation, client side: from a fresh stream to an export, once.
//!
//! Fixed newstyle; `EXPORT_NAME` only for servers that do not know `GO`. TLS, if the URI asks for it, before
//! anything else, and never done without. Nothing is read ahead, so that no byte sent in the clear is ever
//! taken for one sent under TLS. Everything the server sends is bounded; the caller bounds the time.

use std::io;

use sealblk_nbd::wire::{self, Fields, client_flag, handshake_flag, info, option, option_reply};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::error::UpstreamError;
use crate::export::{BlockSizes, Export};
use crate::stream::{Stream, connect};
use crate::tls::TlsClient;
use crate::uri::ExportUri;

/// The second magic of a server from before options.
const OLDSTYLE_MAGIC: u64 = 0x0000_4202_8186_1253;
/// The longest reply to an option: a string of 4096 bytes and what stands around it.
const MAX_REPLY_BYTES: u32 = 8192;
/// The most replies to one option.
const MAX_REPLIES: usize = 64;
/// The metadata context that tells holes from data.
const ALLOCATION: &str = "base:allocation";
/// The server wants to be asked for its block sizes, which we do.
const ERR_BLOCK_SIZE_REQD: u32 = (1 << 31) | 8;

/// How to reach an export.
pub(crate) struct Target {
    pub(crate) uri: ExportUri,
    pub(crate) tls: Option<TlsClient>,
}

impl Target {
    /// Connects and negotiates.
    pub(crate) async fn reach(&self) -> Result<(Stream, Export), UpstreamError> {
        let mut stream = connect(self.uri.place()).await.map_err(UpstreamError::Unreachable)?;
        let server = greet(&mut stream).await?;
        if let Some(tls) = &self.tls {
            if !server.fixed {
                return Err(refused("TLS", "it knows no options", ""));
            }
            start_tls(&mut stream).await?;
            let under = tls.connector.connect(tls.server.clone(), stream).await;
            stream = Box::new(under.map_err(UpstreamError::Tls)?);
        }
        let export = choose(&mut stream, server, self.uri.export()).await?;
        Ok((stream, export))
    }
}

/// What the greeting told.
#[derive(Clone, Copy)]
pub(crate) struct Greeting {
    fixed: bool,
    no_zeroes: bool,
}

pub(crate) async fn greet(stream: &mut Stream) -> Result<Greeting, UpstreamError> {
    if read_u64(stream).await? != wire::MAGIC {
        return Err(UpstreamError::Malformed("it does not begin with NBDMAGIC"));
    }
    match read_u64(stream).await? {
        wire::OPTION_MAGIC => {}
        OLDSTYLE_MAGIC => {
            return Err(UpstreamError::Unfit("its server speaks the protocol from before options"));
        }
        _ => return Err(UpstreamError::Malformed("its greeting has the wrong magic")),
    }
    let flags = u16::from_be_bytes(read(stream).await?);
    let greeting = Greeting {
        fixed: flags & handshake_flag::FIXED_NEWSTYLE != 0,
        no_zeroes: flags & handshake_flag::NO_ZEROES != 0,
    };
    let mut answer = 0;
    if greeting.fixed {
        answer |= client_flag::FIXED_NEWSTYLE;
    }
    if greeting.no_zeroes {
        answer |= client_flag::NO_ZEROES;
    }
    send(stream, &answer.to_be_bytes()).await?;
    Ok(greeting)
}

async fn start_tls(stream: &mut Stream) -> Result<(), UpstreamError> {
    send_option(stream, option::STARTTLS, &[]).await?;
    match read_reply(stream, option::STARTTLS).await? {
        Reply { kind: option_reply::ACK, data } if data.is_empty() => Ok(()),
        reply => Err(reply.refusal("TLS")),
    }
}

/// From the greeting, or the beginning of TLS, to transmission.
pub(crate) async fn choose(
    stream: &mut Stream,
    server: Greeting,
    name: &str,
) -> Result<Export, UpstreamError> {
    if !server.fixed {
        return by_export_name(stream, server, name).await;
    }
    let structured = ask_for_structured_replies(stream).await?;
    let context = if structured { ask_for_allocation(stream, name).await? } else { None };
    let export = match go(stream, name).await? {
        Some(export) => export,
        None => by_export_name(stream, server, name).await?,
    };
    Ok(export.answering(structured, context))
}

async fn ask_for_structured_replies(stream: &mut Stream) -> Result<bool, UpstreamError> {
    send_option(stream, option::STRUCTURED_REPLY, &[]).await?;
    let reply = read_reply(stream, option::STRUCTURED_REPLY).await?;
    match reply.kind {
        option_reply::ACK => Ok(true),
        _ if reply.is_error() => Ok(false),
        _ => Err(UpstreamError::Malformed("it answers STRUCTURED_REPLY with neither ACK nor an error")),
    }
}

/// The id under which BLOCK_STATUS will tell holes, if the server does so.
async fn ask_for_allocation(stream: &mut Stream, name: &str) -> Result<Option<u32>, UpstreamError> {
    let mut data = counted(name);
    data.extend(1_u32.to_be_bytes());
    data.extend(counted(ALLOCATION));
    send_option(stream, option::SET_META_CONTEXT, &data).await?;
    let mut found = None;
    for _ in 0..MAX_REPLIES {
        let reply = read_reply(stream, option::SET_META_CONTEXT).await?;
        match reply.kind {
            option_reply::ACK => return Ok(found),
            option_reply::META_CONTEXT => {
                let mut fields = Fields::new(&reply.data);
                let id = fields.u32().ok_or(UpstreamError::Malformed("a metadata context has no id"))?;
                let is_ours = fields.bytes(fields.len()) == Some(ALLOCATION.as_bytes());
                if !is_ours || found.replace(id).is_some() {
                    return Err(UpstreamError::Malformed(
                        "it selects a metadata context that was not asked for",
                    ));
                }
            }
            // Without it every sector counts as data.
            _ if reply.is_error() => return Ok(None),
            _ => return Err(UpstreamError::Malformed("it answers SET_META_CONTEXT with something else")),
        }
    }
    Err(UpstreamError::Malformed("it answers SET_META_CONTEXT without end"))
}

/// `None`: the server does not know GO.
async fn go(stream: &mut Stream, name: &str) -> Result<Option<Export>, UpstreamError> {
    let mut data = counted(name);
    data.extend(1_u16.to_be_bytes());
    data.extend(info::BLOCK_SIZE.to_be_bytes());
    send_option(stream, option::GO, &data).await?;
    let (mut size_and_flags, mut sizes) = (None, None);
    for _ in 0..MAX_REPLIES {
        let reply = read_reply(stream, option::GO).await?;
        match reply.kind {
            option_reply::INFO => {
                let mut fields = Fields::new(&reply.data);
                match fields.u16().ok_or(UpstreamError::Malformed("a fact about the export has no type"))? {
                    info::EXPORT => size_and_flags = Some(export_fact(fields)?),
                    info::BLOCK_SIZE => {
                        sizes = Some(BlockSizes::parse(fields.bytes(fields.len()).unwrap_or(&[]))?)
                    }
                    _ => {} // Names and descriptions, which were not asked for, change nothing.
                }
            }
            option_reply::ACK => {
                let (size, flags) =
                    size_and_flags.ok_or(UpstreamError::Malformed("it does not tell the export's size"))?;
                return Export::new(size, flags, sizes.unwrap_or_default()).map(Some);
            }
            option_reply::ERR_UNSUP => return Ok(None),
            _ => return Err(reply.refusal("the export")),
        }
    }
    Err(UpstreamError::Malformed("it answers GO without end"))
}

fn export_fact(mut fields: Fields<'_>) -> Result<(u64, u16), UpstreamError> {
    match (fields.u64(), fields.u16(), fields.is_empty()) {
        (Some(size), Some(flags), true) => Ok((size, flags)),
        _ => Err(UpstreamError::Malformed("size and flags of the export have the wrong length")),
    }
}

/// The only way into servers from before GO. They close the connection if they know no such export.
async fn by_export_name(stream: &mut Stream, server: Greeting, name: &str) -> Result<Export, UpstreamError> {
    send_option(stream, option::EXPORT_NAME, name.as_bytes()).await?;
    let size = read_u64(stream).await.map_err(|error| match error {
        UpstreamError::Unreachable(source) if source.kind() == io::ErrorKind::UnexpectedEof => refused(
            "the export",
            "it closed the connection, as old servers do for want of such an export",
            "",
        ),
        other => other,
    })?;
    let flags = u16::from_be_bytes(read(stream).await?);
    if !server.no_zeroes {
        let _: [u8; wire::EXPORT_NAME_PADDING_BYTES] = read(stream).await?;
    }
    Export::new(size, flags, BlockSizes::default())
}

/// A reply to an option.
struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    fn is_error(&self) -> bool {
        self.kind & (1 << 31) != 0
    }

    /// The error that this reply is.
    fn refusal(&self, what: &'static str) -> UpstreamError {
        if !self.is_error() {
            return UpstreamError::Malformed("it answers an option with something that is no answer to it");
        }
        let why = match self.kind {
            option_reply::ERR_UNSUP => "it does not know the option",
            option_reply::ERR_POLICY => "it does not allow it",
            option_reply::ERR_INVALID => "it takes the request for malformed",
            option_reply::ERR_TLS_REQD => "it wants TLS (nbds)",
            option_reply::ERR_UNKNOWN => "it has no such export",
            option_reply::ERR_SHUTDOWN => "it is shutting down",
            option_reply::ERR_TOO_BIG => "it takes the request for too large",
            ERR_BLOCK_SIZE_REQD => "it wants block sizes to be asked for",
            _ => "it gives a reason that this client does not know",
        };
        refused(what, why, &printable(&self.data))
    }
}

fn refused(what: &'static str, why: &'static str, text: &str) -> UpstreamError {
    UpstreamError::Refused { what, why, text: text.to_owned() }
}

/// A server's words, fit to be shown: short, and without control characters.
fn printable(data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    text.chars().take(200).map(|one| if one.is_control() { '?' } else { one }).collect()
}

async fn send_option(stream: &mut Stream, option: u32, data: &[u8]) -> Result<(), UpstreamError> {
    let length = u32::try_from(data.len()).expect("an option holds one name of at most 4096 bytes");
    let mut bytes = Vec::with_capacity(wire::OPTION_HEADER_BYTES + data.len());
    bytes.extend(wire::OPTION_MAGIC.to_be_bytes());
    bytes.extend(option.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    send(stream, &bytes).await
}

async fn read_reply(stream: &mut Stream, asked: u32) -> Result<Reply, UpstreamError> {
    let header: [u8; 20] = read(stream).await?;
    let mut fields = Fields::new(&header);
    let (Some(magic), Some(option), Some(kind), Some(length)) =
        (fields.u64(), fields.u32(), fields.u32(), fields.u32())
    else {
        return Err(UpstreamError::Malformed("a reply to an option is cut off"));
    };
    if magic != wire::OPTION_REPLY_MAGIC {
        return Err(UpstreamError::Malformed("a reply to an option has the wrong magic"));
    }
    if option != asked {
        return Err(UpstreamError::Malformed("it answers an option that was not asked"));
    }
    if length > MAX_REPLY_BYTES {
        return Err(UpstreamError::Malformed("a reply to an option is longer than any may be"));
    }
    let mut data = vec![0; usize::try_from(length).unwrap_or(0)];
    stream.read_exact(&mut data).await.map_err(UpstreamError::Unreachable)?;
    Ok(Reply { kind, data })
}

/// A 32-bit length and the text.
fn counted(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).expect("a name has at most 4096 bytes");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

async fn send(stream: &mut Stream, bytes: &[u8]) -> Result<(), UpstreamError> {
    stream.write_all(bytes).await.map_err(UpstreamError::Unreachable)?;
    stream.flush().await.map_err(UpstreamError::Unreachable)
}

async fn read<const N: usize>(stream: &mut Stream) -> Result<[u8; N], UpstreamError> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).await.map_err(UpstreamError::Unreachable)?;
    Ok(bytes)
}

async fn read_u64(stream: &mut Stream) -> Result<u64, UpstreamError> {
    Ok(u64::from_be_bytes(read(stream).await?))
}
