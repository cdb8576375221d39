//! A small blocking NBD client over any stream, for tests of servers.
//!
//! It shares no code and no constant with the server, so that the two cannot agree on a mistake. It sends
//! what it is told, sense or not, and judges nothing but framing: whatever it reads must have the right
//! magic number. Simple replies only.

use std::io::{self, Read, Write};

/// Client flags of a modern client: fixed newstyle, no zeroes.
pub const MODERN: u32 = 3;

/// A reply of the negotiation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OptionReply {
    /// The option that it answers.
    pub option: u32,
    /// Its type; bit 31 marks an error.
    pub kind: u32,
    /// Its data.
    pub data: Vec<u8>,
}

/// What GO told about an export.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Exported {
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Minimum, preferred and maximum request size, if they were sent.
    pub block_sizes: Option<(u32, u32, u32)>,
}

/// A request header. Every field as it goes over the wire.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RequestHeader {
    /// Command flags.
    pub flags: u16,
    /// Command.
    pub command: u16,
    /// The request's name.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// How many bytes.
    pub length: u32,
}

impl RequestHeader {
    /// The header's 28 bytes.
    pub fn to_bytes(self) -> Vec<u8> {
        [
            &0x2560_9513_u32.to_be_bytes()[..],
            &self.flags.to_be_bytes(),
            &self.command.to_be_bytes(),
            &self.cookie.to_be_bytes(),
            &self.offset.to_be_bytes(),
            &self.length.to_be_bytes(),
        ]
        .concat()
    }
}

/// The bytes of an option.
pub fn option_bytes(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).expect("test options are small");
    [b"IHAVEOPT", &option.to_be_bytes()[..], &length.to_be_bytes(), data].concat()
}

/// The data of an INFO or GO option.
pub fn go_data(name: &[u8], information: &[u16]) -> Vec<u8> {
    let length = u32::try_from(name.len()).expect("test names are small");
    let count = u16::try_from(information.len()).expect("test lists are small");
    let mut data = [&length.to_be_bytes()[..], name, &count.to_be_bytes()].concat();
    information.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// A client on a stream.
#[derive(Debug)]
pub struct NbdClient<S> {
    stream: S,
}

impl<S: Read + Write> NbdClient<S> {
    /// A client that has exchanged nothing yet.
    pub fn new(stream: S) -> Self {
        Self { stream }
    }

    /// The stream.
    pub fn stream(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Receives exactly `count` bytes.
    pub fn receive(&mut self, count: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Receives everything until the server closes.
    pub fn receive_rest(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.stream.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Reads the greeting and answers it with `client_flags`; returns the server's handshake flags.
    pub fn greet(&mut self, client_flags: u32) -> io::Result<u16> {
        if self.receive(16)? != b"NBDMAGICIHAVEOPT" {
            return Err(malformed("greeting"));
        }
        let flags = u16::from_be_bytes(self.array()?);
        self.send(&client_flags.to_be_bytes())?;
        Ok(flags)
    }

    /// Sends an option.
    pub fn send_option(&mut self, option: u32, data: &[u8]) -> io::Result<()> {
        self.send(&option_bytes(option, data))
    }

    /// Receives one option reply.
    pub fn option_reply(&mut self) -> io::Result<OptionReply> {
        if u64::from_be_bytes(self.array()?) != 0x0003_e889_0455_65a9 {
            return Err(malformed("option reply"));
        }
        let option = u32::from_be_bytes(self.array()?);
        let kind = u32::from_be_bytes(self.array()?);
        let length = u32::from_be_bytes(self.array()?);
        let data = self.receive(usize::try_from(length).expect("32 bits fit"))?;
        Ok(OptionReply { option, kind, data })
    }

    /// Sends an option and receives its replies up to the last: an ACK or an error.
    pub fn option(&mut self, option: u32, data: &[u8]) -> io::Result<Vec<OptionReply>> {
        self.send_option(option, data)?;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply()?;
            let last = reply.kind == 1 || reply.kind >> 31 == 1;
            replies.push(reply);
            if last {
                return Ok(replies);
            }
        }
    }

    /// A modern handshake that ends with GO.
    pub fn go(&mut self, name: &str) -> io::Result<Exported> {
        self.greet(MODERN)?;
        let mut exported = Exported::default();
        for reply in self.option(7, &go_data(name.as_bytes(), &[]))? {
            match (reply.kind, reply.data.as_slice()) {
                (3, [0, 0, rest @ ..]) if rest.len() == 10 => {
                    exported.size = u64::from_be_bytes(rest[..8].try_into().expect("eight bytes"));
                    exported.flags = u16::from_be_bytes([rest[8], rest[9]]);
                }
                (3, [0, 3, rest @ ..]) if rest.len() == 12 => {
                    let size =
                        |at: usize| u32::from_be_bytes(rest[at..at + 4].try_into().expect("four bytes"));
                    exported.block_sizes = Some((size(0), size(4), size(8)));
                }
                (1 | 3, _) => {}
                _ => return Err(malformed("answer to GO")),
            }
        }
        Ok(exported)
    }

    /// Sends a request's header and payload.
    pub fn send_request(&mut self, header: RequestHeader, payload: &[u8]) -> io::Result<()> {
        self.send(&[header.to_bytes().as_slice(), payload].concat())
    }

    /// Receives a simple reply's header: cookie and error.
    pub fn reply(&mut self) -> io::Result<(u64, u32)> {
        if u32::from_be_bytes(self.array()?) != 0x6744_6698 {
            return Err(malformed("simple reply"));
        }
        let error = u32::from_be_bytes(self.array()?);
        Ok((u64::from_be_bytes(self.array()?), error))
    }

    /// Sends one request and receives its reply: the data of a READ, nothing for others, or the error.
    pub fn request(&mut self, header: RequestHeader, payload: &[u8]) -> io::Result<Result<Vec<u8>, u32>> {
        self.send_request(header, payload)?;
        let (cookie, error) = self.reply()?;
        if cookie != header.cookie {
            return Err(malformed("cookie"));
        }
        if error != 0 {
            return Ok(Err(error));
        }
        let data = if header.command == 0 { header.length } else { 0 };
        self.receive(usize::try_from(data).expect("32 bits fit")).map(Ok)
    }

    /// READ.
    pub fn read(&mut self, offset: u64, length: u32) -> io::Result<Result<Vec<u8>, u32>> {
        self.request(RequestHeader { command: 0, cookie: 0xc0, offset, length, flags: 0 }, &[])
    }

    /// WRITE.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<Result<(), u32>> {
        let length = u32::try_from(data.len()).expect("test payloads are small");
        let header = RequestHeader { command: 1, cookie: 0xc1, offset, length, flags: 0 };
        Ok(self.request(header, data)?.map(drop))
    }

    /// FLUSH.
    pub fn flush(&mut self) -> io::Result<Result<(), u32>> {
        let header = RequestHeader { command: 3, cookie: 0xc3, ..RequestHeader::default() };
        Ok(self.request(header, &[])?.map(drop))
    }

    /// DISC.
    pub fn disconnect(&mut self) -> io::Result<()> {
        self.send_request(RequestHeader { command: 2, ..RequestHeader::default() }, &[])
    }

    fn array<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed {what}"))
}
