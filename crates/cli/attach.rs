//! `sealblk volume attach`: the process that serves. Signals, the ready line and notes; `sealblk-control` does the rest.

use std::io;

use sealblk_block::Caching;
use sealblk_control::{
    AttachVolume, ControlError, KeyEvent, KeyEvents, KeyLossPolicy, KeyUse, MetricsAddress, OnKeyLoss, Pool,
    PoolDirectory, SnapshotEvents, SnapshotGivenUp, VolumeId, with_causes,
};
use sealblk_keymem::harden_process;
use sealblk_nbd::{ConnectionEvent, Events, Peer, Refusal};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{AttachArgs, KeyLoss};
use crate::endpoint_args::allow_many_files;
use crate::exit::Failure;

use crate::kms;
use crate::output::Output;
use crate::place::Place;
use crate::restore;
use crate::volume::id;

/// Attaches the volume and serves it until it is detached.
pub(crate) fn run(pool: &Pool, place: &Place, args: &AttachArgs, output: &Output) -> Result<(), Failure> {
    let request = AttachVolume {
        volume: id(&args.volume)?,
        endpoints: args.endpoints.endpoints()?,
        read_only: args.read_only,
        caching: match (args.direct, args.buffered) {
            (true, _) => Some(Caching::Direct),
            (false, true) => Some(Caching::Buffered),
            (false, false) => None,
        },
        metrics: match &args.metrics {
            Some(MetricsAddress::Unix(path)) => Some(MetricsAddress::Unix(std::path::absolute(path)?)),
            other => other.clone(),
        },
        limits: args.limits.limits(),
        snapshot_stall: args.limits.snapshot_stall_timeout,
        key_loss: policy(args),
    };
    // Fewer files than clients is the machine's decision: the others wait to be accepted.
    let _ = allow_many_files();
    // Before any key is asked for.
    harden_process().map_err(ControlError::from)?;
    let failed = |source| ControlError::Start { what: "the I/O runtime", source };
    let io = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    // From here on a signal ends the attachment in order, however far it has come.
    let mut signals = io.block_on(async { Signals::catch() }).map_err(failed)?;
    let mut attachment = pool.attach_volume(&place.runtime, &request)?;
    // The key is unwrapped: whatever opened the key store is not kept while the volume is served.
    place.source.forget();
    if args.endpoints.admits_anybody() {
        output.note("warning: clients from elsewhere are not asked who they are: whoever reaches the port reads and writes the volume (see --tls-verify-peer)");
    }
    if let Some(key_use) = attachment.key_use() {
        tell_of_recovery(&request, key_use, output);
    }
    if let Some(url) = attachment.metrics_url() {
        output.note(&format!("{}: metrics at {url}", request.volume));
    }
    attachment.on_key_events(tell_of_key(request.volume, *output));
    attachment.on_restore_events(restore::tell(request.volume, *output));
    attachment.on_snapshot_events(tell_of_snapshot(request.volume, *output));
    announce(&request, attachment.uris(), args.endpoints.stdio, output)?;
    let mut notes = Notes { output };
    let shutdown = async {
        signals.wait().await;
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    };
    let serving = attachment.serve(&mut notes, shutdown);
    let report = tokio::task::LocalSet::new().block_on(&io, serving)?;
    output.note(&format!("{}: detached after {} connections", request.volume, report.served));
    Ok(())
}

/// Says which key served if it was not the first one, and why.
fn tell_of_recovery(request: &AttachVolume, key_use: &KeyUse, output: &Output) {
    for (key, reason) in &key_use.passed_over {
        output.note(&format!("warning: {}: the key {key} could not be used: {reason}", request.volume));
    }
    if !key_use.passed_over.is_empty() {
        output.note(&format!("warning: {}: unlocked by the recovery key {}", request.volume, key_use.key));
    }
}

fn policy(args: &AttachArgs) -> KeyLossPolicy {
    let on_key_loss = match args.key_loss.on_key_loss {
        KeyLoss::Ignore => OnKeyLoss::Ignore,
        KeyLoss::Freeze => OnKeyLoss::Freeze,
        KeyLoss::Fail => OnKeyLoss::Fail,
    };
    KeyLossPolicy { on_key_loss, check_interval: args.key_loss.key_check_interval }
}

/// Refuses to watch a key that only a person can open: the passphrase is not kept while the volume is served.
pub(crate) fn refuse_unattended(
    pool: &Pool,
    directory: &PoolDirectory,
    args: &AttachArgs,
) -> Result<(), Failure> {
    if args.key_loss.on_key_loss == KeyLoss::Ignore || !kms::asks_for_a_passphrase(directory) {
        return Ok(());
    }
    let key = pool.describe_volume(id(&args.volume)?)?.kms_key_id;
    // A key of the embedded store has no prefix of a provider's.
    if key.is_some_and(|key| key.as_str().starts_with("arn:")) {
        return Err(Failure::usage(
            "--on-key-loss freeze and fail ask for the key again and again, and the key store's passphrase is not \
             kept while a volume is served: protect the root key by a file or a credential (sealblk key root-protection)",
        ));
    }
    Ok(())
}

/// Says on stderr what happens to the key.
fn tell_of_key(volume: VolumeId, output: Output) -> KeyEvents {
    Box::new(move |event| {
        let text = match event {
            KeyEvent::Lost(OnKeyLoss::Ignore, error) => {
                format!("the key cannot be used: {}", with_causes(error))
            }
            KeyEvent::Lost(OnKeyLoss::Freeze, error) => {
                format!("the key is lost: wiped, and requests wait until it is back: {}", with_causes(error))
            }
            KeyEvent::Lost(OnKeyLoss::Fail, error) => {
                format!(
                    "the key is lost: wiped, and requests fail until the volume is detached: {}",
                    with_causes(error)
                )
            }
            KeyEvent::Restored => "the key is back: requests go on".to_owned(),
            KeyEvent::Unknown(error) => {
                format!(
                    "warning: nobody says whether the key may be used, nothing changes: {}",
                    with_causes(error)
                )
            }
            KeyEvent::Known => "the key service answers again: the key may be used".to_owned(),
        };
        output.note(&format!("{volume}: {text}"));
    })
}

/// Says on stderr which snapshot was given up, and why.
fn tell_of_snapshot(volume: VolumeId, output: Output) -> SnapshotEvents {
    Box::new(move |SnapshotGivenUp { snapshot_id, reason }| {
        output.note(&format!(
            "warning: {volume}: the snapshot {snapshot_id} is not made any further: {}; to go on with it: \
             sealblk snapshot create {volume} --resume {snapshot_id}",
            with_causes(reason)
        ));
    })
}

/// Says that clients may come: to whoever reads stdout, unless that is the client itself, and to the service
/// manager.
fn announce(request: &AttachVolume, uris: &[String], stdio: bool, output: &Output) -> io::Result<()> {
    if !stdio {
        let words = ["ready".to_owned(), request.volume.to_string()];
        output.line(&[&words, uris].concat().join(" "))?;
    }
    // Without a service manager there is nobody to tell, which is no failure; nor is one that is gone.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    Ok(())
}

/// The signals that mean: come to an end.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// The terminal is gone, which is no reason to lose what was written.
    hangup: Signal,
}

impl Signals {
    /// Takes them over. Called on a runtime with I/O.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Waits for one of them.
    pub(crate) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

/// Why a client was turned away, in words.
fn reason(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::TooMany => "too many connections",
        Refusal::TooManyOfPeer => "too many connections of the same peer",
        Refusal::User => "this user may not come in (see --allow-uid)",
        Refusal::NoThread => "no thread can be started for it",
    }
}

/// Tells people about connections, on stderr.
struct Notes<'a> {
    output: &'a Output,
}

impl Events for Notes<'_> {
    fn connection(&mut self, connection: u64, event: ConnectionEvent<'_>) {
        let of = |peer: Peer| match peer {
            Peer::Unix { uid } => format!("a client of user {uid}"),
            Peer::Tcp(address) => address.to_string(),
            Peer::Connected => "the client on standard input".to_owned(),
        };
        let text = match event {
            ConnectionEvent::Connected(peer) => format!("{} connected", of(peer)),
            ConnectionEvent::Refused(peer, refusal) => {
                format!("{} turned away: {}", of(peer), reason(refusal))
            }
            ConnectionEvent::Ended(Ok(ended)) => format!("ended ({ended:?})"),
            ConnectionEvent::Ended(Err(error)) => format!("ended out of order: {}", with_causes(error)),
            ConnectionEvent::Panicked(text) => format!("ended by a bug of ours: {text}"),
            ConnectionEvent::Cut => "did not finish in time and was cut".to_owned(),
            ConnectionEvent::AcceptFailed(error) => format!("a client could not be accepted: {error}"),
        };
        self.output.note(&format!("connection {connection}: {text}"));
    }
}
