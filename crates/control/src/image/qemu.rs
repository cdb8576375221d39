//! qemu-img, for images that are not raw: a child that parses them, with nothing of ours but a volume's NBD socket.
//!
//! It is told the format and that there is no backing file, so that an image cannot make it open anything else; what else a
//! format can refer to was looked for before (`format.rs`).

use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use super::error::ImageError;
use super::format::ImageFormat;
use super::served::Told;

const PROGRAM: &str = "qemu-img";
/// How much of what it complains is repeated.
const MESSAGE_BYTES: usize = 2000;

/// An image as QEMU is to open it: as this and nothing else.
fn source(path: &Path, format: ImageFormat) -> Result<String, ImageError> {
    let name = path.to_str().ok_or_else(|| ImageError::Io {
        step: "read",
        path: path.to_owned(),
        source: io::Error::other("its name is not text, which qemu-img needs"),
    })?;
    let mut options = json!({
        "driver": format.as_str(),
        "read-only": true,
        "file": { "driver": "file", "filename": name, "read-only": true },
    });
    if let (ImageFormat::Qcow2 | ImageFormat::Vmdk, Some(options)) = (format, options.as_object_mut()) {
        options.insert("backing".to_owned(), Value::Null);
    }
    Ok(format!("json:{options}"))
}

/// How large the disk in an image is.
pub(super) fn disk_bytes(path: &Path, format: ImageFormat) -> Result<u64, ImageError> {
    let source = source(path, format)?;
    let mut command = Command::new(PROGRAM);
    let output = command.args(["info", "--output=json", &source]).stdin(Stdio::null()).output();
    let output = output.map_err(|source| ImageError::NoTool { format, source })?;
    if !output.status.success() {
        return Err(complaint("read", &output.stderr));
    }
    let unclear = || complaint("read", b"it does not tell the disk's size");
    let info: Value = serde_json::from_slice(&output.stdout).map_err(|_| unclear())?;
    if info.get("backing-filename").is_some() {
        return Err(ImageError::RefersElsewhere { path: path.to_owned(), what: "a backing file" });
    }
    info.get("virtual-size").and_then(Value::as_u64).ok_or_else(unclear)
}

/// Writes what an image holds to the volume at `uri`; `blank`: which is zeros, and need not be told of more.
pub(super) fn fill(
    path: &Path,
    format: ImageFormat,
    disk_bytes: u64,
    uri: &str,
    blank: bool,
    told: &Told,
) -> Result<(), ImageError> {
    let source = source(path, format)?;
    let mut command = Command::new(PROGRAM);
    command.args(["convert", "-p", "-n", "-W", "-t", "writeback"]);
    command.args(blank.then_some("--target-is-zero"));
    command.args(["-O", "raw", &source, uri]);
    run(command, "read", format, disk_bytes, told)
}

/// Writes what the volume at `uri` holds to a new image at `path`, an empty file that keeps its owner and mode.
pub(super) fn drain(
    uri: &str,
    path: &Path,
    format: ImageFormat,
    disk_bytes: u64,
    told: &Told,
) -> Result<(), ImageError> {
    let mut command = Command::new(PROGRAM);
    command.args(["convert", "-p", "-f", "raw", "-O", format.as_str(), uri]).arg(path);
    run(command, "write", format, disk_bytes, told)
}

fn run(
    mut command: Command,
    step: &'static str,
    format: ImageFormat,
    disk_bytes: u64,
    told: &Told,
) -> Result<(), ImageError> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| ImageError::NoTool { format, source })?;
    let mut child = Running(child);
    let mut errors = child.0.stderr.take().expect("it is a pipe");
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is not repeated.
        let _ = errors.read_to_end(&mut text);
        text
    });
    let output = child.0.stdout.take().expect("it is a pipe");
    report(output, disk_bytes, told);
    let status = child.0.wait().map_err(|error| complaint(step, error.to_string().as_bytes()))?;
    let said = complaints.join().unwrap_or_default();
    if status.success() { Ok(()) } else { Err(complaint(step, &said)) }
}

/// Passes its progress on: `(12.34/100%)`, over and over in one line.
fn report(output: impl Read, disk_bytes: u64, told: &Told) {
    let mut word = String::new();
    for byte in io::BufReader::new(output).bytes().map_while(Result::ok) {
        match byte {
            b'(' => word.clear(),
            b'/' => {
                if let Some(done) = share(&word, disk_bytes) {
                    // Nobody listens once serving has failed, which is told then.
                    let _ = told.send((done, disk_bytes));
                }
                word.clear();
            }
            byte if word.len() < 16 => word.push(char::from(byte)),
            _ => {}
        }
    }
}

/// So many percent of `bytes`.
fn share(percent: &str, bytes: u64) -> Option<u64> {
    let (whole, hundredths) = percent.split_once('.')?;
    let hundredths = hundredths.get(..2)?.parse::<u64>().ok()?;
    let share = whole.parse::<u64>().ok()?.checked_mul(100)?.checked_add(hundredths)?.min(10_000);
    u64::try_from(u128::from(bytes) * u128::from(share) / 10_000).ok()
}

fn complaint(step: &'static str, said: &[u8]) -> ImageError {
    let said = said.get(..said.len().min(MESSAGE_BYTES)).unwrap_or_default();
    let message = String::from_utf8_lossy(said).lines().map(str::trim).collect::<Vec<_>>().join("; ");
    ImageError::Tool { step, message }
}

/// A child that does not outlive the work.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // One that has ended is no child any more.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read_from_what_it_prints() {
        let (told, mut hears) = tokio::sync::mpsc::unbounded_channel();
        report(&b"    (0.00/100%)\r    (12.50/100%)\r nonsense (x/ (100.00/100%)\n"[..], 1 << 20, &told);
        let heard: Vec<_> = std::iter::from_fn(|| hears.try_recv().ok()).collect();
        assert_eq!(heard, [(0, 1 << 20), (1 << 17, 1 << 20), (1 << 20, 1 << 20)]);
    }

    #[test]
    fn an_image_is_opened_as_what_it_is_said_to_be_and_without_a_backing_file() {
        let text = source(Path::new("/srv/a \"b\",c.img"), ImageFormat::Qcow2).expect("text");
        let options: Value =
            serde_json::from_str(text.strip_prefix("json:").expect("options")).expect("JSON");
        assert_eq!(options["driver"], "qcow2");
        assert_eq!(options["file"]["filename"], "/srv/a \"b\",c.img");
        assert!(options.get("backing").is_some_and(Value::is_null));
    }
}
