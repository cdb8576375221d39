//! `sealblk volume import` and `sealblk volume export`: between volumes and disk images.

use std::io::{self, IsTerminal};
use std::path::PathBuf;

use clap::Args;
use sealblk_control::{
    CreateVolume, ExportTarget, ExportVolume, ImageFormat, ImportVolume, Pool, VolumeName,
};
use sealblk_keymem::harden_process;

use crate::exit::Failure;
use crate::output::Output;
use crate::place::Place;
use crate::progress::Progress;
use crate::size::{parse_size, show_bytes};
use crate::volume::id;

/// What is imported.
#[derive(Args)]
pub(crate) struct ImportArgs {
    /// The image: a file, or a block device that holds a raw one
    #[arg(value_name = "IMAGE")]
    image: PathBuf,
    /// The image's format: raw, qcow2, vmdk, vdi, vhdx or vpc [default: what its name says, if its beginning says so too]
    #[arg(long, value_name = "FORMAT")]
    format: Option<ImageFormat>,
    /// The volume's size, at least the image's [default: the image's]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    size: Option<u64>,
    /// Encrypt it, under the default key unless --kms-key-id names another
    #[arg(long, conflicts_with = "no_encrypted")]
    encrypted: bool,
    /// Do not encrypt it
    #[arg(long)]
    no_encrypted: bool,
    /// The key that wraps the volume's data key: id, ARN or alias; needs --encrypted
    #[arg(long, value_name = "KEY")]
    kms_key_id: Option<String>,
    /// A further key to wrap the data key under, used when the ones before cannot be; may be given several times
    #[arg(long, value_name = "KEY")]
    recovery_kms_key_id: Vec<String>,
    /// What people call it
    #[arg(long, value_name = "NAME")]
    name: Option<VolumeName>,
    /// Ignore TRIM, and store zeros like data, so that the store cannot tell what is in use
    #[arg(long)]
    no_discard: bool,
}

/// What is exported.
#[derive(Args)]
pub(crate) struct ExportArgs {
    /// The volume's id
    #[arg(value_name = "VOL")]
    volume: String,
    /// The image to write; `-`: standard output, raw only
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The image's format: raw, qcow2, vmdk, vdi, vhdx or vpc
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    format: ImageFormat,
    /// Replace FILE if it is there
    #[arg(long)]
    force: bool,
}

/// Makes a volume of an image.
pub(crate) fn import(pool: &Pool, place: &Place, args: ImportArgs, output: &Output) -> Result<(), Failure> {
    harden_process().map_err(sealblk_control::ControlError::from)?;
    let request = ImportVolume {
        image: args.image,
        format: args.format,
        size_bytes: args.size,
        volume: CreateVolume {
            size_bytes: None,
            snapshot_id: None,
            encrypted: match (args.encrypted, args.no_encrypted) {
                (true, _) => Some(true),
                (false, true) => Some(false),
                (false, false) => None,
            },
            kms_key_id: args.kms_key_id,
            recovery_kms_key_ids: args.recovery_kms_key_id,
            backing: None,
            discard: !args.no_discard,
            name: args.name,
            erase: false,
        },
    };
    let mut progress = Progress::new("importing", output);
    let volume =
        pool.import_volume(&place.runtime, &request, &mut |done, total| progress.report(done, total))?;
    drop(progress);
    output.result(&volume, || volume.volume_id.to_string())?;
    let key = volume.kms_key_id.as_ref();
    let how = key.map_or("not encrypted".to_owned(), |key| format!("encrypted under {key}"));
    output.text_note(&format!("{} in {}, {how}", show_bytes(volume.size_bytes.bytes()), volume.backing));
    Ok(())
}

/// Writes an image of a volume.
pub(crate) fn export(pool: &Pool, place: &Place, args: &ExportArgs, output: &Output) -> Result<(), Failure> {
    harden_process().map_err(sealblk_control::ControlError::from)?;
    let request = ExportVolume { volume: id(&args.volume)?, format: args.format, force: args.force };
    let to_stdout = args.file.as_os_str() == "-";
    if to_stdout && args.format != ImageFormat::Raw {
        return Err(Failure::usage("only a raw image can be written to standard output"));
    }
    if to_stdout && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "a disk image is not for a terminal: name a file, or send it to a program",
        ));
    }
    let encrypted = pool.describe_volume(request.volume)?.encrypted;
    if encrypted {
        let place = if to_stdout { "what is written".into() } else { args.file.display().to_string() };
        output.note(&format!("warning: {} is encrypted, and {place} will be plaintext", request.volume));
    }
    let target = if to_stdout {
        ExportTarget::Stream(Box::new(io::stdout()))
    } else {
        ExportTarget::File(args.file.clone())
    };
    let mut progress = Progress::new("exporting", output);
    pool.export_volume(&place.runtime, &request, target, &mut |done, total| progress.report(done, total))?;
    drop(progress);
    if to_stdout {
        return Ok(());
    }
    let file = std::path::absolute(&args.file)?;
    let document = serde_json::json!({
        "VolumeId": request.volume,
        "File": file,
        "Format": args.format.as_str(),
        "Plaintext": true,
    });
    Ok(output.result(&document, || format!("{} exported to {}", request.volume, file.display()))?)
}
