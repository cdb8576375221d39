//! `sealblk volume rewrap`: one volume, or all of them with a report on each.

use sealblk_control::{ControlError, Pool, VolumeDescription, with_causes};
use serde_json::json;

use crate::args::RewrapArgs;
use crate::exit::Failure;
use crate::output::Output;
use crate::volume::id;

/// Rewraps what was asked for.
pub(crate) fn run(pool: &Pool, args: &RewrapArgs, output: &Output) -> Result<(), Failure> {
    let key = args.kms_key_id.as_deref();
    match &args.volume {
        Some(volume) => {
            let volume = pool.rewrap_volume(id(volume)?, key)?;
            Ok(output.result(&volume, || line(&volume))?)
        }
        None => all(pool, key, output),
    }
}

fn all(pool: &Pool, key: Option<&str>, output: &Output) -> Result<(), Failure> {
    let (mut volumes, mut errors, mut worst) = (Vec::new(), Vec::new(), None::<Failure>);
    pool.rewrap_all(key, &mut |done| match done.outcome {
        Ok(volume) => volumes.push(volume),
        Err(error) => {
            output.text_note(&format!("error: {}: {}", done.volume, with_causes(&error)));
            errors.push(describe(&done.volume.to_string(), &error));
            let failure = Failure::from(error);
            if worst.as_ref().is_none_or(|worst| worst.exit_code() < failure.exit_code()) {
                worst = Some(failure);
            }
        }
    })?;
    let document = json!({ "Volumes": volumes, "Errors": errors });
    output.result(&document, || volumes.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    match worst {
        None => Ok(()),
        Some(worst) => Err(Failure::NotAll {
            failed: errors.len(),
            of: errors.len() + volumes.len(),
            worst: Box::new(worst),
        }),
    }
}

fn describe(volume: &str, error: &ControlError) -> serde_json::Value {
    json!({ "VolumeId": volume, "Code": error.code(), "Message": with_causes(error) })
}

fn line(volume: &VolumeDescription) -> String {
    let key = volume.kms_key_id.as_ref().map(ToString::to_string).unwrap_or_default();
    let material = volume.key_material_id.as_deref().unwrap_or_default();
    format!("{} {key} {material}", volume.volume_id).trim_end().to_owned()
}
