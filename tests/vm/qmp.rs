//! QEMU's machine protocol: one JSON document a line, events between the answers.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// Longer than any command here takes under TCG on a busy machine.
const ANSWER: Duration = Duration::from_secs(60);

/// The monitor of one running QEMU.
pub(crate) struct Qmp(BufReader<UnixStream>);

impl Qmp {
    /// Connects to a monitor (`-qmp unix:PATH,server=on,wait=off`) and leaves its negotiation behind.
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).expect("QEMU listens");
        stream.set_read_timeout(Some(ANSWER)).expect("a timeout");
        let mut this = Self(BufReader::new(stream));
        assert!(this.line().get("QMP").is_some(), "it greets");
        this.execute("qmp_capabilities", json!({}));
        this
    }

    /// Executes a command, which must succeed.
    #[track_caller]
    pub(crate) fn execute(&mut self, command: &str, arguments: Value) -> Value {
        self.ask(command, arguments).unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Executes a command; what it returns, or its error.
    pub(crate) fn ask(&mut self, command: &str, arguments: Value) -> Result<Value, Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.0.get_mut().write_all(format!("{request}\n").as_bytes()).expect("it takes commands");
        loop {
            let mut line = self.line();
            if line.get("return").is_some() {
                return Ok(line["return"].take());
            }
            if line.get("error").is_some() {
                return Err(line["error"].take());
            }
        }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("it answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"))
    }
}
