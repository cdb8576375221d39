//! The ways in, through the real binary, with clients that are not ours: TLS with certificates from our own script,
//! standard input and output, sockets passed by another program, and who is let in by a Unix socket.

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use support::hanging::wait_until;
use support::{Attachment, Finished, MIB, Pool, certificates, exit, foreign, noise, run, wait_within};

/// Who has a certificate: in DIR/backup and DIR/other.
const CLIENTS: &[&str] = &["backup", "other"];

fn text(path: &Path) -> String {
    path.to_str().expect("temporary paths are text").to_owned()
}

/// A volume served at a TCP port inside TLS, to clients called `backup`.
struct Tls {
    pool: Pool,
    certificates: PathBuf,
    attachment: Attachment,
}

impl Tls {
    fn new() -> Self {
        let pool = Pool::new();
        let certificates = certificates(pool.root(), "pki", CLIENTS);
        let volume = pool.create(&["--encrypted", "--size", "8MiB"]);
        let directory = text(&certificates);
        let tls = ["--listen", "127.0.0.1:0", "--tls-certificates", &directory];
        let attachment = pool.attach(&volume, &[&tls[..], &["--tls-allow-name", "backup"]].concat());
        Self { pool, certificates, attachment }
    }

    /// libnbd's URI for a client with what is in `directory`.
    fn uri(&self, directory: &Path) -> String {
        format!("nbds://localhost:{}/?tls-certificates={}", self.attachment.tls_port(), directory.display())
    }

    /// QEMU's name for it.
    fn qemu(&self, directory: &Path, arguments: &[&str]) -> Finished {
        let object = format!("tls-creds-x509,id=t,dir={},endpoint=client", directory.display());
        let image = format!("driver=nbd,host=localhost,port={},tls-creds=t", self.attachment.tls_port());
        let mut command = foreign("qemu-img");
        run(command.args(arguments).args(["--object", &object, "--image-opts", &image]))
    }
}

#[test]
fn tls_clients_of_others_are_served_and_see_the_same_bytes() {
    let tls = Tls::new();
    let backup = tls.certificates.join("backup");
    let shown = run(foreign("nbdinfo").arg(tls.uri(&backup))).ok();
    assert!(shown.contains("newstyle-fixed with TLS"), "{shown}");
    let (image, back) = (tls.pool.root().join("image"), tls.pool.root().join("back"));
    std::fs::write(&image, noise(3, 8 << 20)).expect("the image is written");
    run(foreign("nbdcopy").arg(&image).arg(tls.uri(&backup))).ok();
    run(foreign("nbdcopy").arg(tls.uri(&backup)).arg(&back)).ok();
    assert!(std::fs::read(&image).expect("the image") == std::fs::read(&back).expect("the copy"));
    let shown = tls.qemu(&backup, &["info", "--output", "json"]).ok();
    assert!(shown.contains(&format!("\"virtual-size\": {}", 8 * MIB)), "{shown}");
    let listed = run(foreign("nbd-client")
        .args(["-l", "localhost"])
        .arg(tls.attachment.tls_port().to_string())
        .arg("-certfile")
        .arg(backup.join("client-cert.pem"))
        .arg("-keyfile")
        .arg(backup.join("client-key.pem"))
        .arg("-cacertfile")
        .arg(backup.join("ca-cert.pem"))
        .args(["-tlshostname", "localhost"]));
    assert!(listed.ok().contains(tls.attachment.volume()));
    tls.attachment.terminate();
}

#[test]
fn tls_clients_that_are_not_to_come_in_do_not() {
    let tls = Tls::new();
    let strangers = certificates(tls.pool.root(), "elsewhere", CLIENTS);
    // Another name; another authority's client that trusts ours; no certificate; an authority we are not of.
    run(foreign("nbdinfo").arg(tls.uri(&tls.certificates.join("other")))).failed();
    tls.qemu(&tls.certificates.join("other"), &["info"]).failed();
    let stranger = strangers.join("backup");
    run(foreign("nbdinfo").arg(tls.uri(&stranger))).failed();
    std::fs::copy(tls.certificates.join("ca-cert.pem"), stranger.join("ca-cert.pem")).expect("copied");
    run(foreign("nbdinfo").arg(tls.uri(&stranger))).failed();
    std::fs::remove_file(stranger.join("client-cert.pem")).expect("removed");
    std::fs::remove_file(stranger.join("client-key.pem")).expect("removed");
    run(foreign("nbdinfo").arg(tls.uri(&stranger))).failed();
    // Plaintext where TLS is required.
    let plain = format!("nbd://localhost:{}", tls.attachment.tls_port());
    run(foreign("nbdinfo").arg(&plain)).failed();
    run(foreign("qemu-img").args(["info", &plain])).failed();
    wait_until("it says why", || tls.attachment.log().contains("ApplicationVerificationFailure"));
    assert!(!tls.attachment.log().contains("PRIVATE KEY"));
    run(foreign("nbdinfo").arg(tls.uri(&tls.certificates.join("backup")))).ok();
    tls.attachment.terminate();
}

#[test]
fn tcp_off_loopback_needs_tls_or_a_dangerous_option() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let message = pool.run(&["volume", "attach", &volume, "--listen", "0.0.0.0:0"]).refused(exit::USAGE);
    assert!(
        message.contains("--tls-certificates") && message.contains("--danger-plaintext-tcp"),
        "{message}"
    );
    pool.attach(&volume, &["--listen", "0.0.0.0:0", "--danger-plaintext-tcp"]).terminate();
    let directory = text(&certificates(pool.root(), "pki", CLIENTS));
    let open = pool.attach(&volume, &["--listen", "0.0.0.0:0", "--tls-certificates", &directory]);
    assert!(open.log().contains("--tls-verify-peer"), "anybody is let in, and it says so: {}", open.log());
    open.terminate();
    let missing = pool.run(&["volume", "attach", &volume, "--tls-certificates", "/nonexistent"]);
    assert!(missing.refused(exit::USAGE).contains("server-cert.pem"));
}

/// The command line of `attach`, as words for another program.
fn words(pool: &Pool, volume: &str, arguments: &[&str]) -> Vec<String> {
    let command = pool.command(&[&["volume", "attach", volume], arguments].concat());
    let program = command.get_program().to_str().expect("text").to_owned();
    let arguments = command.get_args().map(|word| word.to_str().expect("text").to_owned());
    std::iter::once(program).chain(arguments).collect()
}

#[test]
fn nbdinfo_runs_the_server_itself() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let command = words(&pool, &volume, &["--stdio"]);
    let size = run(foreign("nbdinfo").args(["--size", "--", "["]).args(&command).arg("]")).ok();
    assert_eq!(size.trim(), MIB.to_string(), "nothing but the size is on standard output");
    // The same without --stdio says that it is ready, and serves as well.
    let command = words(&pool, &volume, &[]);
    let shown = run(foreign("nbdinfo").args(["--", "["]).args(&command).arg("]")).ok();
    assert!(shown.contains(&volume), "{shown}");
}

#[test]
fn python_libnbd_talks_over_standard_input_and_output_and_by_socket_activation() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    for (method, arguments) in [("command", &["--stdio"][..]), ("systemd_socket_activation", &[])] {
        let script = format!(
            "import nbd, sys\nh = nbd.NBD()\nh.connect_{method}(sys.argv[1:])\nassert h.get_size() == {MIB}\n\
             h.pwrite(b'{method}', 5)\nh.flush()\nassert h.pread({}, 5) == b'{method}'\nh.shutdown()\n",
            method.len()
        );
        run(foreign("/usr/bin/python3").arg("-c").arg(script).args(words(&pool, &volume, arguments))).ok();
    }
    assert_eq!(pool.describe(&volume)["State"], "available");
}

#[test]
fn two_pipes_are_a_client_and_its_end_is_the_end() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let mut server = pool
        .command(&["volume", "attach", &volume, "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let (mut to, mut from) = (server.stdin.take().expect("a pipe"), server.stdout.take().expect("a pipe"));
    let mut greeting = [0; 18];
    from.read_exact(&mut greeting).expect("the greeting is the first that is written");
    assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
    to.write_all(&[0, 0, 0, 3]).expect("sent");
    to.write_all(&[&b"IHAVEOPT"[..], &[0, 0, 0, 2, 0, 0, 0, 0]].concat()).expect("sent");
    drop(to);
    let mut rest = Vec::new();
    from.read_to_end(&mut rest).expect("the ACK and the end");
    assert_eq!(rest.len(), 20);
    let status = wait_within(&mut server, std::time::Duration::from_secs(60)).expect("it ends by itself");
    assert!(status.success());
    let refused = pool.run(&["volume", "attach", &volume, "--stdio"]).refused(exit::USAGE);
    assert!(refused.contains("there is no client"), "{refused}");
}

/// What a Unix socket says to us: the greeting's length, or 0.
fn greeted(path: &Path) -> usize {
    let mut stream = UnixStream::connect(path).expect("a connection");
    stream.read(&mut [0; 18]).unwrap_or(0)
}

#[test]
fn a_unix_socket_is_for_its_own_user_unless_others_are_listed() {
    let pool = Pool::new();
    let volume = pool.create(&["--encrypted", "--size", "1MiB"]);
    let mode = |attachment: &Attachment| {
        std::fs::metadata(attachment.socket()).expect("it is there").permissions().mode() & 0o777
    };
    let own = pool.attach(&volume, &[]);
    assert_eq!((greeted(own.socket()), mode(&own)), (18, 0o600));
    own.terminate();
    // Whoever runs this is not listed, not even root.
    let others = pool.attach(&volume, &["--allow-uid", "4242424"]);
    assert_eq!((greeted(others.socket()), mode(&others)), (0, 0o666));
    assert!(others.log().contains("may not come in"), "{}", others.log());
    others.terminate();
    let uid = rustix::process::geteuid().as_raw().to_string();
    let both = pool.attach(&volume, &["--allow-uid", "4242424", "--allow-uid", &uid]);
    assert_eq!(greeted(both.socket()), 18);
    both.terminate();
}
