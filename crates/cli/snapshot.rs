//! `sealblk snapshot …`.

pub(crate) mod args;
mod copy;
mod interrupt;
mod share;

use std::cell::RefCell;
use std::sync::Arc;

use sealblk_control::{
    ControlError, CreateSnapshot, Pool, Report, SnapshotDescription, SnapshotEvent, SnapshotId, State,
    VerifySnapshots,
};
use serde_json::json;

use crate::exit::Failure;
use crate::kms;
use crate::output::{Output, fields, table};
use crate::place::Place;
use crate::progress::Progress;
use crate::repository_args::{RepositoryArgs, credentials};
use crate::size::show_bytes;
use crate::volume;
pub(crate) use args::SnapshotCommand;
use args::{CreateArgs, VerifyArgs};
use interrupt::stop_on_signals;

/// Bytes in a block.
const BLOCK_BYTES: u64 = 512 * 1024;

/// Does what `sealblk snapshot` was asked for.
pub(crate) fn run(command: SnapshotCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create(args) => create(&open(&args.repository, place)?, args, output),
        SnapshotCommand::Copy(args) => copy::run(&args, place, output),
        SnapshotCommand::List(args) => {
            let of = args.volume.as_deref().map(volume::id).transpose()?;
            let pool = open(&args.repository, place)?;
            let listed =
                if args.shared_with_me { pool.list_shared_snapshots() } else { pool.list_snapshots() };
            let mut snapshots = listed?;
            snapshots.retain(|snapshot| of.is_none_or(|volume| snapshot.volume_id == volume));
            list(&snapshots, output)
        }
        SnapshotCommand::Describe(args) => {
            let snapshot = open(&args.repository, place)?.describe_snapshot(id(&args.snapshot)?)?;
            Ok(output.result(&snapshot, || describe(&snapshot))?)
        }
        SnapshotCommand::Delete(args) => delete(&open(&args.repository, place)?, id(&args.snapshot)?, output),
        SnapshotCommand::Share(args) => share::share(&open(&args.repository, place)?, &args, output),
        SnapshotCommand::Unshare(args) => share::unshare(&open(&args.repository, place)?, &args, output),
        SnapshotCommand::Verify(args) => verify(&open(&args.repository, place)?, &args, output),
    }
}

/// The pool, with its snapshots where they are meant to be.
fn open(repository: &RepositoryArgs, place: &Place) -> Result<Pool, Failure> {
    let directory = place.open_pool()?;
    let repository = repository.place(&directory)?;
    let kms = kms::for_volumes(&directory, place)?;
    Ok(Pool::new(directory, Arc::new(kms)).with_repository(repository).with_store_environment(credentials()))
}

/// Reads a snapshot's id. Not clap's business: a malformed one has an error code of its own.
pub(crate) fn id(text: &str) -> Result<SnapshotId, Failure> {
    Ok(text.parse().map_err(ControlError::MalformedId)?)
}

fn create(pool: &Pool, args: CreateArgs, output: &Output) -> Result<(), Failure> {
    let request = CreateSnapshot {
        volume: volume::id(&args.volume)?,
        description: args.description,
        resume: args.resume.as_deref().map(id).transpose()?,
    };
    let stop = stop_on_signals()?;
    let bar = RefCell::new(Progress::new("saving", output));
    let told = |event| match event {
        SnapshotEvent::Begun(id) => output.text_note(&format!("{id}: begun; clients may change the volume")),
        SnapshotEvent::Progress(at) => {
            let bytes = |blocks: u64| blocks.saturating_mul(BLOCK_BYTES);
            bar.borrow_mut().report(bytes(at.done), bytes(at.total));
        }
    };
    let made = pool.create_snapshot(&request, &stop, &told);
    drop(bar);
    let snapshot = made?;
    Ok(output.result(&snapshot, || snapshot.snapshot_id.to_string())?)
}

fn delete(pool: &Pool, id: SnapshotId, output: &Output) -> Result<(), Failure> {
    let deleted = pool.delete_snapshot(id)?;
    output.result(&deleted, || format!("{id} {}", deleted.state))?;
    if deleted.holders.is_empty() {
        let (blocks, bytes) = (deleted.freed_blocks, show_bytes(deleted.freed_bytes));
        output.text_note(&format!("freed: {blocks} blocks, {bytes}; what other snapshots need has stayed"));
    } else {
        let holders = deleted.holders.join(", ");
        output.text_note(&format!("it is closed, and will be gone when these no longer need it: {holders}"));
    }
    Ok(())
}

fn verify(pool: &Pool, args: &VerifyArgs, output: &Output) -> Result<(), Failure> {
    let request = VerifySnapshots {
        snapshot: args.snapshot.as_deref().map(id).transpose()?,
        deep: args.deep,
        remove_unreferenced: args.remove_unreferenced,
    };
    let (report, removed) = pool.verify_snapshots(&request)?;
    let flaws: Vec<_> = report.flaws.iter().map(flaw).collect();
    let document = json!({
        "Snapshots": report.snapshots,
        "Pages": report.pages,
        "Blocks": report.blocks,
        "Deep": args.deep,
        "Flaws": flaws,
        "Unreferenced": report.unreferenced,
        "RemovedObjects": removed,
    });
    output.result(&document, || verified(&report, args.deep))?;
    if removed > 0 {
        output.text_note(&format!("{removed} objects that no snapshot needs: removed"));
    } else if !report.unreferenced.is_empty() {
        let count = report.unreferenced.len();
        output.text_note(&format!("{count} objects that no snapshot needs (--remove-unreferenced)"));
    }
    if report.flaws.is_empty() { Ok(()) } else { Err(Failure::Flaws { count: report.flaws.len() }) }
}

fn flaw(flaw: &sealblk_control::Flaw) -> serde_json::Value {
    json!({
        "SnapshotIds": flaw.snapshots,
        "Part": flaw.part.to_string(),
        "Object": flaw.object,
        "Fault": flaw.fault.to_string(),
    })
}

fn verified(report: &Report, deep: bool) -> String {
    let mut text = String::new();
    for flaw in &report.flaws {
        let of: Vec<String> = flaw.snapshots.iter().map(ToString::to_string).collect();
        text.push_str(&format!("{} of {} {} ({})\n", flaw.part, of.join(", "), flaw.fault, flaw.object));
    }
    let looked = if deep { "read and hashed" } else { "there" };
    text.push_str(&format!(
        "{} snapshots, {} index pages, {} blocks {looked}: {} flaws",
        report.snapshots,
        report.pages,
        report.blocks,
        report.flaws.len()
    ));
    text
}

fn list(snapshots: &[SnapshotDescription], output: &Output) -> Result<(), Failure> {
    Ok(output.result(&json!({ "Snapshots": snapshots }), || {
        let rows: Vec<Vec<String>> = snapshots.iter().map(row).collect();
        let header = [
            "SNAPSHOT",
            "VOLUME",
            "STATE",
            "PROGRESS",
            "SIZE",
            "DATA",
            "ENCRYPTED",
            "STARTED",
            "DESCRIPTION",
        ];
        table(&header, &[3, 4, 5], &rows)
    })?)
}

fn row(snapshot: &SnapshotDescription) -> Vec<String> {
    vec![
        snapshot.snapshot_id.to_string(),
        snapshot.volume_id.to_string(),
        state(snapshot.state).to_owned(),
        snapshot.progress.clone(),
        show_bytes(snapshot.volume_size_bytes),
        snapshot.full_snapshot_size_in_bytes.map_or("-".to_owned(), show_bytes),
        volume::yes(snapshot.encrypted),
        volume::seconds(snapshot.start_time),
        one_line(&snapshot.description),
    ]
}

/// A description is somebody's text: it does not move a terminal's cursor.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// As EC2 writes it.
fn state(state: State) -> &'static str {
    match state {
        State::Pending => "pending",
        State::Completed => "completed",
        State::Error => "error",
        State::Deleting => "deleting",
    }
}

fn describe(snapshot: &SnapshotDescription) -> String {
    let size = snapshot.volume_size_bytes;
    let mut pairs = vec![
        ("SnapshotId", snapshot.snapshot_id.to_string()),
        ("State", state(snapshot.state).to_owned()),
        ("Progress", snapshot.progress.clone()),
        ("VolumeId", snapshot.volume_id.to_string()),
        ("VolumeSize", format!("{} ({size} bytes)", show_bytes(size))),
    ];
    pairs.extend(snapshot.state_message.clone().map(|message| ("StateMessage", one_line(&message))));
    pairs.extend(snapshot.full_snapshot_size_in_bytes.map(|bytes| ("Data", show_bytes(bytes))));
    pairs.push(("Encrypted", volume::yes(snapshot.encrypted)));
    pairs.extend(snapshot.kms_key_id.as_ref().map(|key| ("KmsKeyId", key.to_string())));
    let data_key = snapshot.data_encryption_key_id.as_ref();
    pairs.extend(data_key.map(|key| ("DataEncryptionKeyId", key.to_string())));
    pairs.push(("StartTime", volume::seconds(snapshot.start_time)));
    pairs.extend(snapshot.completion_time.map(|time| ("CompletionTime", volume::seconds(time))));
    pairs.push(("OwnerId", snapshot.owner_id.to_string()));
    if !snapshot.create_volume_permissions.is_empty() {
        pairs.push(("SharedWith", share::recipients(snapshot)));
    }
    if !snapshot.description.is_empty() {
        pairs.push(("Description", one_line(&snapshot.description)));
    }
    fields(&pairs)
}
