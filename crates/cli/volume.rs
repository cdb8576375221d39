//! `sealblk volume …`, all but the serving itself.

use std::sync::Arc;
use std::time::Duration;

use sealblk_control::{
    BackingPlace, ControlError, CreateVolume, DeletedData, Explanation, ListedVolume, ModifyVolume, Pool,
    SnapshotId, VolumeDescription, VolumeId, VolumeName, VolumeState,
};
use sealblk_volume::Materialized;
use serde_json::json;

use crate::args::{CreateArgs, ModifyArgs, NewName, VolumeCommand};
use crate::attach;
use crate::exit::Failure;
use crate::image;
use crate::kms;
use crate::output::{Output, fields, table};
use crate::place::Place;
use crate::progress::Progress;
use crate::restore;
use crate::rewrap;
use crate::size::show_bytes;
use crate::stats;

/// Does what `sealblk volume` was asked for.
pub(crate) fn run(command: VolumeCommand, place: &Place, output: &Output) -> Result<(), Failure> {
    let directory = place.open_pool()?;
    let pool = || -> Result<Pool, Failure> {
        let kms = kms::for_volumes(&directory, place)?;
        restore::able_to_restore(Pool::new(directory.clone(), Arc::new(kms)))
    };
    match command {
        VolumeCommand::Create(args) => {
            let repository = args.repository.place(&directory)?;
            create(&pool()?.with_repository(repository), args, output)
        }
        VolumeCommand::Modify(args) => modify(&pool()?, args, output),
        VolumeCommand::Attach(args) => {
            let pool = pool()?;
            attach::refuse_unattended(&pool, &directory, &args)?;
            attach::run(&pool, place, &args, output)
        }
        VolumeCommand::Rewrap(args) => rewrap::run(&pool()?, &args, output),
        VolumeCommand::Detach { volume, timeout } => detach(&pool()?, id(&volume)?, timeout, output),
        VolumeCommand::List => list(&pool()?, output),
        VolumeCommand::Describe { volume } => {
            let volume = pool()?.describe_volume(id(&volume)?)?;
            Ok(output.result(&volume, || describe(&volume))?)
        }
        // Needs no key service, and so is there while that is not.
        VolumeCommand::Stats(args) => stats::run(&directory, &args, output),
        VolumeCommand::Delete { volume } => delete(&pool()?, id(&volume)?, output),
        VolumeCommand::Restore { volume } => restore::run(&pool()?, id(&volume)?, output),
        VolumeCommand::Import(args) => image::import(&pool()?, place, args, output),
        VolumeCommand::Export(args) => image::export(&pool()?, place, &args, output),
        VolumeCommand::Materialize { volume } => materialize(&pool()?, id(&volume)?, output),
    }
}

/// Reads a volume's id. Not clap's business: a malformed one has an error code of its own.
pub(crate) fn id(text: &str) -> Result<VolumeId, Failure> {
    Ok(text.parse().map_err(ControlError::MalformedId)?)
}

/// Reads a snapshot's id.
pub(crate) fn snapshot_id(text: &str) -> Result<SnapshotId, Failure> {
    Ok(text.parse().map_err(ControlError::MalformedId)?)
}

fn create(pool: &Pool, args: CreateArgs, output: &Output) -> Result<(), Failure> {
    let request = CreateVolume {
        size_bytes: args.size,
        snapshot_id: args.snapshot_id.as_deref().map(snapshot_id).transpose()?,
        encrypted: args.encrypted(),
        kms_key_id: args.kms_key_id,
        recovery_kms_key_ids: args.recovery_kms_key_id,
        backing: args.backing.map(BackingPlace::meant_by).transpose().map_err(ControlError::from)?,
        name: args.name,
        discard: !args.no_discard,
        erase: args.erase,
    };
    if args.explain {
        let explanation = pool.explain_create_volume(&request)?;
        return Ok(output.result(&explanation, || explain(&explanation))?);
    }
    let mut progress = Progress::new(if args.erase { "erasing" } else { "inspecting" }, output);
    let mut volume = pool.create_volume(&request, &mut |done, total| progress.report(done, total))?;
    drop(progress);
    if args.no_lazy {
        volume = restore::to_the_end(pool, volume.volume_id, output)?;
    }
    output.result(&volume, || volume.volume_id.to_string())?;
    let how =
        volume.kms_key_id.as_ref().map_or("not encrypted".to_owned(), |key| format!("encrypted under {key}"));
    output.text_note(&format!("{} in {}, {how}", show_bytes(volume.size_bytes.bytes()), volume.backing));
    Ok(())
}

fn modify(pool: &Pool, args: ModifyArgs, output: &Output) -> Result<(), Failure> {
    let request = ModifyVolume {
        volume: id(&args.volume)?,
        size_bytes: args.size,
        name: args.name.map(|NewName(name)| name),
    };
    let volume = pool.modify_volume(&request)?;
    Ok(output.result(&volume, || describe(&volume))?)
}

fn explain(explanation: &Explanation) -> String {
    let mut pairs = vec![("Encrypted", yes(explanation.encrypted))];
    pairs.extend(explanation.kms_key_id.as_ref().map(|key| ("KmsKeyId", key.clone())));
    pairs.push(("Reason", explanation.reason.to_owned()));
    pairs.push(("Row", format!("{} of EBS's table of encryption outcomes", explanation.row)));
    fields(&pairs)
}

fn detach(pool: &Pool, volume: VolumeId, timeout: Duration, output: &Output) -> Result<(), Failure> {
    pool.detach_volume(volume, timeout)?;
    let document = json!({ "VolumeId": volume, "State": "detached" });
    Ok(output.result(&document, || format!("{volume} detached"))?)
}

fn delete(pool: &Pool, volume: VolumeId, output: &Output) -> Result<(), Failure> {
    let left = match pool.delete_volume(volume)? {
        DeletedData::Removed => None,
        DeletedData::Left { place } => Some(place),
    };
    let document = json!({ "VolumeId": volume, "State": "deleted", "BackingLeft": left });
    output.result(&document, || format!("{volume} deleted"))?;
    if let Some(place) = left {
        output.text_note(&format!("its data is left in {place}, without the record of its key"));
    }
    Ok(())
}

fn materialize(pool: &Pool, volume: VolumeId, output: &Output) -> Result<(), Failure> {
    let mut progress = Progress::new("materializing", output);
    let done = pool.materialize_volume(volume, &mut |done, total| progress.report(done, total))?;
    drop(progress);
    let (written_bytes, text) = match done {
        Materialized::NotEncrypted => (0, "is not encrypted: there is nothing to do".to_owned()),
        Materialized::Complete { written_bytes } => {
            (written_bytes, format!("has no holes any more: {} written", show_bytes(written_bytes)))
        }
    };
    let document = json!({ "VolumeId": volume, "WrittenBytes": written_bytes });
    Ok(output.result(&document, || format!("{volume} {text}"))?)
}

fn list(pool: &Pool, output: &Output) -> Result<(), Failure> {
    let volumes = pool.list_volumes()?;
    output.result(&json!({ "Volumes": volumes }), || {
        let rows: Vec<Vec<String>> = volumes.iter().map(row).collect();
        table(&["VOLUME", "STATE", "SIZE", "ALLOCATED", "ENCRYPTED", "CREATED", "NAME"], &[2, 3], &rows)
    })?;
    for volume in &volumes {
        if let ListedVolume::Damaged(volume) = volume {
            output.text_note(&format!("warning: {}: {}", volume.volume_id, volume.status_message));
        }
    }
    Ok(())
}

fn row(volume: &ListedVolume) -> Vec<String> {
    let none = || "-".to_owned();
    match volume {
        ListedVolume::Whole(volume) => vec![
            volume.volume_id.to_string(),
            state(volume),
            show_bytes(volume.size_bytes.bytes()),
            volume.allocated_bytes.map_or_else(none, show_bytes),
            yes(volume.encrypted),
            seconds(volume.create_time),
            volume.name.as_ref().map_or_else(none, VolumeName::to_string),
        ],
        ListedVolume::Damaged(volume) => {
            let state = VolumeState::Error.as_str().to_owned();
            vec![volume.volume_id.to_string(), state, none(), none(), none(), none(), none()]
        }
    }
}

/// The state, and how far a volume is restored that is not whole yet.
fn state(volume: &VolumeDescription) -> String {
    let state = volume.state.as_str();
    let progress = volume.restoring.as_ref().and_then(|restoring| restoring.progress.as_ref());
    progress.map_or_else(|| state.to_owned(), |progress| format!("{state}, {progress} restored"))
}

fn describe(volume: &VolumeDescription) -> String {
    let size = format!("{} ({} bytes)", show_bytes(volume.size_bytes.bytes()), volume.size_bytes.bytes());
    let mut pairs = vec![("VolumeId", volume.volume_id.to_string())];
    pairs.extend(volume.name.as_ref().map(|name| ("Name", name.to_string())));
    pairs.extend([
        ("State", volume.state.as_str().to_owned()),
        ("Size", size),
        ("Allocated", volume.allocated_bytes.map_or("unknown".to_owned(), show_bytes)),
        ("Encrypted", yes(volume.encrypted)),
    ]);
    pairs.extend(volume.kms_key_id.as_ref().map(|key| ("KmsKeyId", key.to_string())));
    pairs.extend(volume.key_material_id.clone().map(|material| ("KeyMaterialId", material)));
    pairs.extend(volume.recovery_keys.iter().map(|key| ("RecoveryKey", key.kms_key_id.to_string())));
    pairs.push(("OwnerId", volume.owner_id.to_string()));
    pairs.extend(volume.snapshot_id.map(|snapshot| ("SnapshotId", snapshot.to_string())));
    if let Some(restoring) = &volume.restoring {
        let progress = restoring.progress.clone().unwrap_or("unknown".to_owned());
        pairs.push(("Restored", progress));
        let key = restoring.source_kms_key_id.as_ref();
        pairs.extend(key.map(|key| ("SourceKmsKeyId", key.to_string())));
    }
    pairs.push(("CreateTime", seconds(volume.create_time)));
    pairs.push(("Discard", yes(volume.discard)));
    pairs.push(("Backing", volume.backing.to_string()));
    for attachment in &volume.attachments {
        let read_only = if attachment.read_only { ", read-only" } else { "" };
        let state = attachment.state.as_str();
        pairs.push(("Attachment", format!("{state} by process {}{read_only}", attachment.pid)));
        pairs.push(("AttachTime", seconds(attachment.attach_time)));
        pairs.extend(attachment.grant_id.as_ref().map(|grant| ("GrantId", grant.0.clone())));
        pairs.extend(attachment.uris.iter().map(|uri| ("Uri", uri.clone())));
    }
    fields(&pairs)
}

pub(crate) fn yes(yes: bool) -> String {
    if yes { "yes" } else { "no" }.to_owned()
}

/// A time in UTC, to the second.
pub(crate) fn seconds(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
