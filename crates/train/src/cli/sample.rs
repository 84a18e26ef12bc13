//! `ddpm sample`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ddpm_model::diffusion::{SamplerConfig, SamplerKind, Spacing};
use serde_json::json;

use super::args::SampleArgs;
use super::output::Output;
use crate::error::{ExitCode, Failure};
use crate::report::pictures::{Layout, encode, grid, page_size, single, write};
use crate::training::model::{Model, all_classes, data_classes};
use crate::training::pictures::{Guidance, Images, Painter, Request};

/// DDIM's steps where none are asked for.
const DDIM_STEPS: usize = 50;

/// Draws images and writes them.
pub(super) fn run(args: &SampleArgs, output: &Output) -> Result<(), Failure> {
    let device = args.device.open()?;
    let model = Model::open(&args.model, args.raw, &device)?;
    model.skipped.iter().for_each(|message| output.warn(message));
    let timesteps = model.process.schedule().len();
    let steps = args.steps.unwrap_or(match args.sampler {
        SamplerKind::Ddim => DDIM_STEPS.min(timesteps),
        SamplerKind::Ddpm => timesteps,
    });
    let sampler =
        SamplerConfig { sampler: args.sampler, steps: Some(steps), eta: args.eta, spacing: Spacing::default() };
    sampler.kept_timesteps(timesteps)?;
    let request = Request {
        num: args.num,
        sampler: &sampler,
        seed: args.seed,
        classes: classes(args, &model)?,
        guidance: guidance(args, &model)?,
    };
    prepare_place(&args.out)?;
    if wants_grid(&args.out) {
        let size = model.config.data.image_size;
        page_size(args.num, [size, size], Layout::visible(size, size))?;
    }
    let painter = Painter { unet: &model.unet, params: &model.params, process: &model.process, device: &device };
    let start = Instant::now();
    let images = painter.draw(&request, |done| output.detail(&format!("{done} of {} images", args.num)))?;
    let seconds = start.elapsed().as_secs_f64();
    let files = write_images(&images, &args.out)?;
    let document = json!({
        "files": files,
        "seconds": seconds,
        "images_per_s": args.num as f64 / seconds,
        "sampler": args.sampler.to_string(),
        "steps": steps,
        "seed": args.seed,
    });
    output.result(&document, || {
        let (sampler, images_per_s) = (args.sampler, args.num as f64 / seconds);
        let place = args.out.display();
        format!("{} images ({sampler}, {steps} steps, {images_per_s:.1} images/s): {place}", args.num)
    })
}

fn classes(args: &SampleArgs, model: &Model) -> Result<Option<Vec<u32>>, Failure> {
    let known = all_classes(&model.config);
    match (args.class, known) {
        (None, known) => Ok(known),
        (Some(class), Some(known)) if known.contains(&class) => Ok(Some(vec![class])),
        (Some(class), Some(known)) => {
            let message = format!("--class {class}: the model has classes 0 to {}", known.len().saturating_sub(1));
            Err(Failure::new(ExitCode::Usage, message).hint("leave --class out to see all of them in turn"))
        }
        (Some(class), None) => {
            let message = format!("--class {class}: {} has no classes", args.model.display());
            Err(Failure::new(ExitCode::Usage, message).hint("leave --class out"))
        }
    }
}

fn guidance(args: &SampleArgs, model: &Model) -> Result<Option<Guidance>, Failure> {
    if args.guidance == 0.0 {
        return Ok(None);
    }
    let none = model.config.model.num_class_embeds.zip(data_classes(&model.config));
    match none {
        Some((rows, classes)) if rows > classes => Ok(Some(Guidance { weight: args.guidance, none: classes as u32 })),
        _ => {
            let message = format!("--guidance {}: {} was not trained for it", args.guidance, args.model.display());
            Err(Failure::new(ExitCode::Usage, message).hint(
                "leave --guidance out, or train with loss.label_dropout = 0.1 and one class more in model.num_class_embeds",
            ))
        }
    }
}

/// Whether `--out` names a picture, and not a folder for many.
fn wants_grid(out: &Path) -> bool {
    out.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png")) && !out.is_dir()
}

/// Makes the folder that the result goes to, before hours are spent on drawing it.
fn prepare_place(out: &Path) -> Result<(), Failure> {
    let other = out
        .extension()
        .filter(|extension| ["jpg", "jpeg", "webp", "gif", "bmp"].iter().any(|e| extension.eq_ignore_ascii_case(e)));
    if let Some(other) = other.filter(|_| !out.is_dir()) {
        let message = format!("--out {}: .{} is not written", out.display(), other.display());
        return Err(Failure::new(ExitCode::Usage, message).hint("give it a name that ends in .png"));
    }
    let folder = if wants_grid(out) { out.parent().unwrap_or(Path::new("")) } else { out };
    if folder.as_os_str().is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder).map_err(|error| {
        let message = format!("--out {}: cannot make the folder {}", out.display(), folder.display());
        Failure::caused_by(ExitCode::Other, message, &error)
            .hint("give --out a name that ends in .png for a grid, or a folder for single images")
    })
}

/// A grid where `out` is a PNG, else single files in the folder `out`.
fn write_images(images: &Images, out: &Path) -> Result<Vec<PathBuf>, Failure> {
    if wants_grid(out) {
        let layout = Layout::visible(images.shape[1], images.shape[2]);
        write(out, &encode(&grid(&images.pixels, images.shape, layout)?)?)?;
        return Ok(vec![out.to_owned()]);
    }
    let [_, height, width, channels] = images.shape;
    let mut files = Vec::new();
    for (k, image) in images.pixels.chunks_exact(height * width * channels).enumerate() {
        let path = out.join(format!("{k:05}.png"));
        write(&path, &encode(&single(image, [height, width, channels])?)?)?;
        files.push(path);
    }
    Ok(files)
}
