//! The control socket of a serving process: one line of JSON each way. `detach` asks, and is answered when
//! everything is flushed and wiped, or with why it is not.
//!
//! Request `{"Action":"Detach"}`; answer `{"State":"detached"}` or `{"Error":"…"}`. Who may connect is decided
//! by the socket's mode (0600).

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::runtime::BoundSocket;

/// No request or answer is longer.
const LINE_BYTES: u64 = 4096;
/// How long a client may take to say what it wants.
const REQUEST_TIME: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
#[serde(tag = "Action", deny_unknown_fields)]
enum Request {
    Detach {},
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The state the volume is in now.
    State(String),
    /// What went wrong.
    Error(String),
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

    /// Calls `on_detach` for every request, on a thread of its own.
    pub(crate) fn listen(&mut self, on_detach: impl Fn() + Send + 'static) -> io::Result<()> {
        let listener = Arc::clone(&self.listener);
        let waiting = Arc::clone(&self.waiting);
        let serve = move || {
            while let Ok((mut client, _)) = listener.accept() {
                match receive(&mut client) {
                    Ok(Request::Detach {}) => {
                        lock(&waiting).push(client);
                        on_detach();
                    }
                    Err(error) => tell(&mut client, &Answer::Error(format!("no request: {error}"))),
                }
            }
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
    let mut stream = UnixStream::connect(socket)?;
    let mut request = serde_json::to_vec(&Request::Detach {}).map_err(io::Error::from)?;
    request.push(b'\n');
    stream.write_all(&request)?;
    // Zero would mean for ever.
    stream.set_read_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    let line = read_line(&mut stream)?;
    if line.is_empty() { Ok(None) } else { Ok(Some(serde_json::from_slice(&line)?)) }
}

fn receive(client: &mut UnixStream) -> io::Result<Request> {
    client.set_read_timeout(Some(REQUEST_TIME))?;
    client.set_write_timeout(Some(REQUEST_TIME))?;
    Ok(serde_json::from_slice(&read_line(client)?)?)
}

fn read_line(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE_BYTES)).read_until(b'\n', &mut line)?;
    Ok(line)
}

/// Answers; a client that has gone away has no use for it.
fn tell(client: &mut UnixStream, answer: &Answer) {
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
        let (socket, listener) = BoundSocket::bind(&path).expect("a socket");
        (dir, path, ControlSocket::new(socket, listener))
    }

    #[test]
    fn a_request_is_answered_when_all_is_done() {
        let (_dir, path, mut control) = socket();
        let (sender, asked) = mpsc::channel();
        control.listen(move || sender.send(()).expect("the test waits")).expect("a thread");
        let client = thread::spawn(move || ask_to_detach(&path, Duration::from_secs(10)));
        asked.recv().expect("the request arrives");
        control.conclude(&Answer::Error("the disk is on fire".to_owned()));
        let answer = client.join().expect("no panic").expect("an answer");
        assert_eq!(answer, Some(Answer::Error("the disk is on fire".to_owned())));
    }

    #[test]
    fn what_is_no_request_is_refused_and_detaches_nothing() {
        let (_dir, path, mut control) = socket();
        control.listen(|| panic!("nobody asked to detach")).expect("a thread");
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
