//! `ddpm export` and `ddpm import`: models to and from diffusers.

use ddpm_run::memory::format_bytes;
use ddpm_train::exchange::{self, ExportOptions, Foreign, Model};
use serde_json::json;

use super::args::{ExportArgs, ImportArgs};
use super::output::Output;
use super::places::{Kind, Place, data_of};
use crate::failure::Failure;

/// Writes a diffusers folder.
pub(super) fn export(args: &ExportArgs, output: &Output) -> Result<(), Failure> {
    let device = args.device.open()?;
    let model = Model::open(&args.model, args.raw, &device)?;
    Place { option: "--to", path: &args.to, kind: Kind::Folder }.refuse_inside(&data_of(&model))?;
    let options = ExportOptions { epsilon_only: args.epsilon_only, samples: args.samples, ..ExportOptions::default() };
    let mut counter = output.counter(args.samples, "images");
    let exported = exchange::export(&model, &args.to, options, &mut |done| counter.set(done as u64, ""));
    drop(counter);
    let exported = exported?;
    let files: Vec<_> = exported.files.iter().map(|file| args.to.join(file)).collect();
    let document = json!({"files": files, "bytes": exported.bytes, "model": model.origin});
    output.result(&document, || {
        let (to, bytes) = (args.to.display(), format_bytes(exported.bytes));
        format!("{} files, {bytes}: {to}\nfrom Python: DDPMPipeline.from_pretrained(\"{to}\")", files.len())
    })
}

/// Makes a run directory from a diffusers folder, or from a checkpoint of others.
pub(super) fn import(args: &ImportArgs, output: &Output) -> Result<(), Failure> {
    let foreign = args.from.map(|origin| Foreign { origin, flags: args.flags.as_deref().unwrap_or_default() });
    let (checkpoint, config) = exchange::import(&args.folder, &args.to, foreign)?;
    let config_file = args.to.join("config.toml");
    let document = json!({"run_dir": args.to, "checkpoint": checkpoint, "config": config_file});
    output.result(&document, || {
        let (size, channels) = (config.data.image_size.width_x_height(), config.data.channels);
        format!(
            "{}: a run of {size} images with {channels} channels, at step 0\nnext:\n  \
             ddpm train {} --set data.source=IMAGES",
            args.to.display(),
            config_file.display()
        )
    })
}
