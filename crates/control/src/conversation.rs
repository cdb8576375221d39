//! The control socket of a serving process: one line of JSON each way. `detach` asks, and is answered when
//! everything is flushed and wiped, or with why it is not; `stats` asks, and is answered at once; `modify` has the
//! volume grow, on a thread of its own, and is answered when it has.
//!
//! Request `{"Action":"Detach"}`; answer `{"State":"detached"}` or `{"Error":"…"}`. Request `{"Action":"Stats"}`; answer
//! [`AttachmentStatistics`]. Request `{"Action":"Grow","SizeBytes":…}`; answer `{"State":"grown"}` or
//! `{"Refused":{"Class":…,"Message":…}}`. Request `{"Action":"Freeze","SnapshotId":…,"Onto":[…]}`; answer `{"Frozen":{"Base":…}}`, and from
//! there on the connection is a block stream; or `{"InProgress":{}}` or `{"Error":"…"}`. Who may connect is decided by the socket's mode (0600).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Scope};
use std::time::Duration;

use sealblk_volume::VolumeSize;
use serde::{Deserialize, Serialize};

use crate::error::ErrorClass;
use crate::freezing::{FreezeAnswer, FreezeRequest, Freezing};
use crate::grow::Growing;
use crate::runtime::BoundSocket;
use crate::stats::{AttachmentStatistics, StatisticsSource};

/// No request is longer, nor an answer to one that changes something.
const LINE_BYTES: u64 = 4096;
/// No answer to a request to freeze is longer.
const ANSWER_BYTES: usize = 4096;
/// No statistics are longer: six histograms of 418 buckets at most.
const STATISTICS_BYTES: u64 = 256 << 10;
/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
#[serde(tag = "Action", deny_unknown_fields)]
enum Request {
    Detach {},
    Stats {},
    Grow {
        #[serde(rename = "SizeBytes")]
        size: VolumeSize,
    },
    Freeze(FreezeRequest),
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The state the volume is in now.
    State(String),
    /// What went wrong.
    Error(String),
    /// What went wrong with a growth; the volume is served as before.
    Refused {
        /// What kind of trouble.
        #[serde(rename = "Class")]
        class: ErrorClass,
        /// What it is.
        #[serde(rename = "Message")]
        message: String,
    },
}

impl Answer {
    /// All is flushed, wiped and retired.
    pub(crate) fn detached() -> Self {
        Self::State("detached".to_owned())
    }
}

/// The serving side, from `bind` to the answer.
pub(crate) struct ControlSocket {
    /// Removes the socket's file in the end.
    _socket: BoundSocket,
    listener: Arc<UnixListener>,
    waiting: Arc<Mutex<Vec<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl ControlSocket {
    pub(crate) fn new(socket: BoundSocket, listener: UnixListener) -> Self {
        Self { _socket: socket, listener: Arc::new(listener), waiting: Arc::default(), thread: None }
    }

    /// Answers from `statistics`, grows the volume by `growing`, has it frozen by `freezing`, and calls `on_detach` for every
    /// request to detach, on a thread of its own. A growth, which may take minutes, has another: it delays no other answer.
    pub(crate) fn listen(
        &mut self,
        statistics: StatisticsSource,
        growing: Growing,
        freezing: Freezing,
        on_detach: impl Fn() + Send + 'static,
    ) -> io::Result<()> {
        let listener = Arc::clone(&self.listener);
        let waiting = Arc::clone(&self.waiting);
        let serve = move || {
            thread::scope(|growths| {
                while let Ok((mut client, _)) = listener.accept() {
                    match receive(&mut client) {
                        Ok(Request::Detach {}) => {
                            lock(&waiting).push(client);
                            on_detach();
                        }
                        Ok(Request::Stats {}) => tell(&mut client, &statistics.read()),
                        Ok(Request::Grow { size }) => begin_to_grow(growths, client, &growing, size),
                        Ok(Request::Freeze(request)) => freezing.begin(client, request),
                        Err(error) => tell(&mut client, &Answer::Error(format!("no request: {error}"))),
                    }
                }
            });
        };
        self.thread = Some(thread::Builder::new().name("control".to_owned()).spawn(serve)?);
        Ok(())
    }

    /// Stops listening, and tells everybody who asked how it went.
    pub(crate) fn conclude(mut self, answer: &Answer) {
        self.stop();
        for client in lock(&self.waiting).iter_mut() {
            tell(client, answer);
        }
    }

    fn stop(&mut self) {
        // Wakes the thread from `accept`, which from now on fails.
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say: a panic in it was reported when it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Asks the process behind `socket` to detach, and waits for its answer, at most `timeout`. `None`: it went away
/// without one.
pub(crate) fn ask_to_detach(socket: &Path, timeout: Duration) -> io::Result<Option<Answer>> {
    let line = ask(socket, &Request::Detach {}, LINE_BYTES, timeout)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

/// Grows the volume on a thread of its own, which answers `client`.
fn begin_to_grow<'scope>(
    growths: &'scope Scope<'scope, '_>,
    client: UnixStream,
    growing: &Growing,
    size: VolumeSize,
) {
    // For the answer if there is no thread; a client that cannot be copied gets none, and sees the end.
    let other = client.try_clone();
    let (mut client, growing) = (client, growing.clone());
    let work = move || tell(&mut client, &grow(&growing, size));
    if let Err(error) = thread::Builder::new().name("growth".to_owned()).spawn_scoped(growths, work)
        && let Ok(mut client) = other
    {
        tell(&mut client, &Answer::Error(format!("no thread for it: {error}")));
    }
}

fn grow(growing: &Growing, size: VolumeSize) -> Answer {
    match growing.grow(size) {
        Ok(()) => Answer::State("grown".to_owned()),
        Err(error) => Answer::Refused { class: error.class(), message: error.with_causes() },
    }
}

/// Asks the process behind `socket` to grow its volume, and waits for its answer, at most `timeout`. `None`: it went
/// away without one.
pub(crate) fn ask_to_grow(
    socket: &Path,
    size: VolumeSize,
    timeout: Duration,
) -> io::Result<Option<Result<(), (ErrorClass, String)>>> {
    let line = ask(socket, &Request::Grow { size }, LINE_BYTES, timeout)?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(match serde_json::from_slice(&line)? {
        Answer::State(_) => Ok(()),
        Answer::Refused { class, message } => Err((class, message)),
        Answer::Error(message) => Err((ErrorClass::Failed, message)),
    }))
}

/// What came of asking for statistics.
pub(crate) enum StatsAnswer {
    /// They came.
    Statistics(Box<AttachmentStatistics>),
    /// The process does not know them.
    Error(String),
    /// It has ended.
    Gone,
}

/// Asks the process behind `socket` what it has counted.
pub(crate) fn ask_for_statistics(socket: &Path, timeout: Duration) -> io::Result<StatsAnswer> {
    use io::ErrorKind::{BrokenPipe, ConnectionRefused, ConnectionReset, NotFound};
    let line = match ask(socket, &Request::Stats {}, STATISTICS_BYTES, timeout) {
        Ok(line) if !line.is_empty() => line,
        Ok(_) => return Ok(StatsAnswer::Gone),
        Err(error) if matches!(error.kind(), BrokenPipe | ConnectionRefused | ConnectionReset | NotFound) => {
            return Ok(StatsAnswer::Gone);
        }
        Err(error) => return Err(error),
    };
    if let Ok(Answer::Error(message)) = serde_json::from_slice(&line) {
        return Ok(StatsAnswer::Error(message));
    }
    Ok(StatsAnswer::Statistics(serde_json::from_slice(&line)?))
}

/// Asks the process behind `socket` to freeze its volume, and waits for its answer, at most `timeout`; the connection is a
/// block stream then, if it did. `None`: it went away without an answer.
pub(crate) fn ask_to_freeze(
    socket: &Path,
    request: FreezeRequest,
    timeout: Duration,
) -> io::Result<Option<(FreezeAnswer, UnixStream)>> {
    let mut stream = UnixStream::connect(socket)?;
    send(&mut stream, &Request::Freeze(request), timeout)?;
    // By the byte: what follows the line is not this function's.
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") && line.len() < ANSWER_BYTES {
        if stream.read(&mut byte)? == 0 {
            return Ok(None);
        }
        line.extend(byte);
    }
    let answer = serde_json::from_slice(&line)?;
    stream.set_read_timeout(None)?;
    Ok(Some((answer, stream)))
}

/// Sends `request`; the line that comes back, empty if the process went away without one.
fn ask(socket: &Path, request: &Request, most_bytes: u64, timeout: Duration) -> io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    send(&mut stream, request, timeout)?;
    read_line(&mut stream, most_bytes)
}

fn send(stream: &mut UnixStream, request: &Request, timeout: Duration) -> io::Result<()> {
    let mut request = serde_json::to_vec(request).map_err(io::Error::from)?;
    request.push(b'\n');
    stream.write_all(&request)?;
    // Zero would mean for ever.
    stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))
}

fn receive(client: &mut UnixStream) -> io::Result<Request> {
    client.set_read_timeout(Some(REQUEST_TIME))?;
    client.set_write_timeout(Some(REQUEST_TIME))?;
    Ok(serde_json::from_slice(&read_line(client, LINE_BYTES)?)?)
}

fn read_line(stream: &mut UnixStream, most_bytes: u64) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(most_bytes)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Answers; a client that has gone away has no use for it.
fn tell(client: &mut UnixStream, answer: &impl Serialize) {
    if let Ok(mut line) = serde_json::to_vec(answer) {
        line.push(b'\n');
        let _ = client.write_all(&line);
    }
}

fn lock(waiting: &Mutex<Vec<UnixStream>>) -> std::sync::MutexGuard<'_, Vec<UnixStream>> {
    // A list of streams is whole whatever happened to the thread that held it.
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn socket() -> (tempfile::TempDir, std::path::PathBuf, ControlSocket) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("v.ctl");
        let (socket, listener) = BoundSocket::bind(&path, crate::runtime::Openness::Owner).expect("a socket");
        (dir, path, ControlSocket::new(socket, listener))
    }

    fn statistics() -> StatisticsSource {
        let id = "vol-0123456789abcdef0".parse().expect("an id");
        StatisticsSource::new(id, Arc::default(), sealblk_volume::CipherStatistics::default())
    }

    #[test]
    fn statistics_are_told_at_once_even_while_a_detach_is_waiting() {
        let (_dir, path, mut control) = socket();
        let (sender, asked) = mpsc::channel();
        control
            .listen(statistics(), Growing::default(), Freezing::default(), move || {
                sender.send(()).expect("the test waits")
            })
            .expect("a thread");
        let socket = path.clone();
        let client = thread::spawn(move || ask_to_detach(&socket, Duration::from_secs(10)));
        asked.recv().expect("the request arrives");
        let told = ask_for_statistics(&path, Duration::from_secs(10)).expect("an answer");
        assert!(matches!(told, StatsAnswer::Statistics(told) if told.pid == std::process::id()));
        control.conclude(&Answer::detached());
        assert_eq!(client.join().expect("no panic").expect("an answer"), Some(Answer::detached()));
        let gone = ask_for_statistics(&path, Duration::from_secs(10)).expect("nobody there");
        assert!(matches!(gone, StatsAnswer::Gone));
    }

    #[test]
    fn statistics_are_told_at_once_while_the_volume_grows() {
        let (_dir, path, mut control) = socket();
        let growing = Growing::default();
        control
            .listen(statistics(), growing.clone(), Freezing::default(), || panic!("nobody asked to detach"))
            .expect("a thread");
        let busy = growing.busy();
        let socket = path.clone();
        let size = VolumeSize::from_bytes(1 << 20).expect("a size");
        let client = thread::spawn(move || ask_to_grow(&socket, size, Duration::from_secs(60)));
        let told = ask_for_statistics(&path, Duration::from_secs(10)).expect("an answer");
        assert!(matches!(told, StatsAnswer::Statistics(_)));
        assert!(!client.is_finished(), "it has not grown yet");
        drop(busy);
        let answer = client.join().expect("no panic").expect("an answer").expect("it is there");
        assert!(matches!(answer, Err((ErrorClass::State, _))), "no volume: {answer:?}");
        control.conclude(&Answer::detached());
    }

    #[test]
    fn a_request_is_answered_when_all_is_done() {
        let (_dir, path, mut control) = socket();
        let (sender, asked) = mpsc::channel();
        control
            .listen(statistics(), Growing::default(), Freezing::default(), move || {
                sender.send(()).expect("the test waits")
            })
            .expect("a thread");
        let client = thread::spawn(move || ask_to_detach(&path, Duration::from_secs(10)));
        asked.recv().expect("the request arrives");
        control.conclude(&Answer::Error("the disk is on fire".to_owned()));
        let answer = client.join().expect("no panic").expect("an answer");
        assert_eq!(answer, Some(Answer::Error("the disk is on fire".to_owned())));
    }

    #[test]
    fn what_is_no_request_is_refused_and_detaches_nothing() {
        let (_dir, path, mut control) = socket();
        control
            .listen(statistics(), Growing::default(), Freezing::default(), || {
                panic!("nobody asked to detach")
            })
            .expect("a thread");
        let mut stream = UnixStream::connect(path).expect("it listens");
        stream.write_all(b"{\"Action\":\"FormatDisk\"}\n").expect("sent");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).expect("an answer");
        assert!(reply.starts_with("{\"Error\":\"no request: "), "{reply}");
    }

    #[test]
    fn a_server_that_stops_leaves_no_socket() {
        let (_dir, path, control) = socket();
        control.conclude(&Answer::detached());
        assert!(!path.exists());
    }
}
