//! `ddpm sample`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use ddpm_data::{counted, shown};
use ddpm_model::diffusion::{SamplerConfig, SamplerKind, Spacing};
use ddpm_train::drawing::{Guidance, Images, Onlooker, Request, Start};
use ddpm_train::exchange::Model;
use ddpm_train::report::pictures::{Layout, encode, grid, page_size, write};
use serde_json::json;

use super::args::{SAMPLE_IMAGES, SampleArgs};
use super::invert;
use super::output::Output;
use super::places::{Kind, Place, data_of, out, prepare, refuse_stale, wants_grid};
use super::series::Series;
use super::trajectory::Trajectory;
use crate::failure::{ExitCode, Failure};

/// The default number of steps of DDIM and DPM-Solver.
const DDIM_STEPS: usize = 50;
const DPM_STEPS: usize = 20;
/// The largest guidance weight: images are out of range long before it.
const MOST_GUIDANCE: f64 = 1000.0;
/// Classes that an error names.
const SHOWN_CLASSES: usize = 20;
/// A row of an interpolation.
const MOST_COLUMNS: usize = 16;

/// Draws images and writes them; with `--invert`, turns given images into latents and back.
pub(super) fn run(args: &SampleArgs, output: &Output) -> Result<(), Failure> {
    let device = args.device.open()?;
    let model = Model::open(&args.model, args.raw, &device)?.with_variance(args.variance)?;
    let sampler = sampler(args, model.process.schedule().len());
    let steps = sampler.kept_timesteps(model.process.schedule().len())?.len();
    if let Some(source) = &args.invert {
        return invert::run(args, source, &model, &sampler, output);
    }
    let num = args.num.unwrap_or(SAMPLE_IMAGES);
    let class = class(args, &model)?;
    let request = Request {
        num,
        sampler: &sampler,
        start: start(args, &model)?,
        classes: class.map_or_else(|| model.config.all_classes(), |class| Some(vec![class])),
        guidance: guidance(args, &model)?,
        batch_size: args.batch_size,
    };
    let layout = grid_layout(args, num, &model);
    let out = place(args, num, &model, layout)?;

    let start = Instant::now();
    let mut trajectory = args.trajectory.as_ref().map(|_| Trajectory::new(num, steps));
    let span = tracing::debug_span!("sample", images = num, steps).entered();
    let (mut files, drawn) = if wants_grid(&out) {
        let images = draw(&request, &model, trajectory.as_mut(), output)?;
        write(&out, &encode(&grid(&images.pixels, images.shape, layout)?)?)?;
        (vec![out.clone()], num)
    } else {
        draw_series(&out, &request, &model, trajectory.as_mut(), output)?
    };
    span.exit();
    let seconds = start.elapsed().as_secs_f64();
    if let Some((path, trajectory)) = args.trajectory.as_ref().zip(trajectory) {
        let data = &model.config.data;
        write(path, &encode(&trajectory.picture(data.image_size.shape(num, data.channels))?)?)?;
        files.push(path.clone());
    }
    let images_per_s = drawn as f64 / seconds;
    let document = json!({
        "files": files,
        "seconds": seconds,
        "images_per_s": images_per_s,
        "sampler": args.sampler.to_string(),
        "steps": steps,
        "seed": if args.interpolate.is_some() { None } else { Some(args.seed) },
        "interpolate": args.interpolate,
        "class": class,
        "class_name": class.and_then(|class| class_name(class, &model)),
    });
    output.result(&document, || {
        let out = out.display().to_string();
        let (sampler, out) = (args.sampler, shown(&out));
        let of = class.map_or(String::new(), |class| format!(" of {}", describe_class(class, &model)));
        let (images, steps) = (counted(num, "image"), counted(steps, "step"));
        let mut text = format!("{images}{of} ({sampler}, {steps}, {images_per_s:.1} images/s): {out}");
        if let Some(path) = &args.trajectory {
            text += &format!("\ntrajectory: {}", path.display());
        }
        text
    })
}

/// Where the images go, checked before they are drawn.
fn place(args: &SampleArgs, num: usize, model: &Model, layout: Layout) -> Result<PathBuf, Failure> {
    let trajectory = args.trajectory.as_deref().map(|path| Place { option: "--trajectory", path, kind: Kind::Png });
    let data = data_of(model);
    let out = out(args.out.as_deref(), &data)?;
    trajectory.map_or(Ok(()), |place| place.refuse_inside(&data))?;
    let place = Place { option: "--out", path: &out, kind: Kind::PngOrFolder };
    prepare(&[place].into_iter().chain(trajectory).collect::<Vec<_>>())?;
    if wants_grid(&out) {
        check_page(num, model, layout)?;
    } else {
        refuse_stale(&out, num)?;
    }
    Ok(out)
}

fn draw(
    request: &Request<'_>,
    model: &Model,
    trajectory: Option<&mut Trajectory>,
    output: &Output,
) -> Result<Images, Failure> {
    let images = with_onlooker(request, trajectory, output, |onlooker| model.painter().draw(request, onlooker))?;
    warn_of_not_finite(images.not_finite, request.num);
    Ok(images)
}

/// Draws single images into the folder `--out`, each written as soon as it is made; returns the files, and how many images were
/// not there yet.
fn draw_series(
    folder: &Path,
    request: &Request<'_>,
    model: &Model,
    trajectory: Option<&mut Trajectory>,
    output: &Output,
) -> Result<(Vec<PathBuf>, usize), Failure> {
    let mut files = room_for_names(request.num, model)?;
    // A trajectory is of images that are drawn, not of files.
    let series = Series::begin(folder, request.num, &series_of(request, model)?, trajectory.is_none())?;
    let there = series.there(request.num);
    let found = there.len();
    if found > 0 {
        tracing::info!(found, "going on: {found} of {} images are in {} already", request.num, folder.display());
    }
    let (painter, mut not_finite, mut drawn) = (model.painter(), 0, 0);
    with_onlooker(request, trajectory, output, |onlooker| {
        let mut drawing = painter.prepare(request)?;
        drawing.draw_parts(&|images| images.into_iter().all(|k| there.contains(&k)), onlooker, &mut |first, images| {
            (not_finite, drawn) = (not_finite + images.not_finite, drawn + images.shape[0]);
            series.keep(first, &images)
        })
    })?;
    warn_of_not_finite(not_finite, request.num);
    files.extend((0..request.num).map(|k| series.path(k)));
    series.end()?;
    Ok((files, drawn))
}

/// Memory for the names of all files, allocated before hours are spent on them.
fn room_for_names(count: usize, model: &Model) -> Result<Vec<PathBuf>, Failure> {
    let (mut files, [height, width]) = (Vec::new(), model.config.data.image_size.sides());
    let reserved = files.try_reserve_exact(count);
    reserved.map_err(|_| ddpm_train::Error::ImagesTooMany { count, height, width })?;
    Ok(files)
}

/// All that the images depend on, apart from their number.
fn series_of(request: &Request<'_>, model: &Model) -> Result<serde_json::Value, Failure> {
    let Request { sampler, start, classes, guidance, num, .. } = request;
    // An interpolation's images depend on how many there are.
    let num = matches!(start, Start::Between(..)).then_some(num);
    let (weights, process) = (model.weights_hash()?.to_hex().to_string(), model.process.config());
    let drawn = format!("{sampler:?} {start:?} {classes:?} {guidance:?} {num:?} {process:?}");
    Ok(json!({"program": env!("CARGO_PKG_VERSION"), "weights": weights, "images": drawn}))
}

/// Draws while progress is shown and the trajectory is kept.
fn with_onlooker<T, E>(
    request: &Request<'_>,
    mut trajectory: Option<&mut Trajectory>,
    output: &Output,
    draw: impl FnOnce(&mut Onlooker<'_>) -> Result<T, E>,
) -> Result<T, E> {
    let mut counter = output.counter(request.num, "images");
    draw(&mut Onlooker {
        progress: &mut |done| counter.set(done as u64, ""),
        proceed: &|| true,
        glimpse: &mut |glimpse| trajectory.iter_mut().try_for_each(|trajectory| trajectory.add(&glimpse)),
    })
}

fn warn_of_not_finite(bad: usize, all: usize) {
    if bad > 0 {
        tracing::warn!(
            bad,
            all,
            "{bad} of {all} images hold values that are no numbers, shown as black; is --guidance too large?"
        );
    }
}

/// Refuses a grid that no picture can hold, before it is drawn.
fn check_page(num: usize, model: &Model, layout: Layout) -> Result<(), Failure> {
    let size = model.config.data.image_size;
    page_size(num, size.sides(), layout).map(drop).map_err(|error| {
        let message = format!("--num {num}: {error}");
        Failure::new(ExitCode::Usage, message).hint("draw fewer, or give --out a folder for single PNGs")
    })
}

/// The sampler's settings, with defaults for missing options. A respacing has its own number of steps.
fn sampler(args: &SampleArgs, timesteps: usize) -> SamplerConfig {
    let spacing = args.spacing.clone().unwrap_or_else(|| args.sampler.default_spacing());
    let default_steps = match args.sampler {
        _ if matches!(spacing, Spacing::Sections(_) | Spacing::Ddim(_)) => None,
        SamplerKind::Ddim => Some(DDIM_STEPS.min(timesteps)),
        SamplerKind::Dpm => Some(DPM_STEPS.min(timesteps)),
        SamplerKind::Ddpm => Some(timesteps),
    };
    SamplerConfig {
        sampler: args.sampler,
        steps: args.steps.or(default_steps),
        eta: args.eta,
        use_clipped_model_output: args.use_clipped_model_output,
        spacing,
    }
}

/// Where the images begin. An interpolation between two seeds must change only the latent.
fn start(args: &SampleArgs, model: &Model) -> Result<Start, Failure> {
    let Some(&[a, b]) = args.interpolate.as_deref() else { return Ok(Start::Seed(args.seed)) };
    let refuse = |message: String, hint: &str| Err(Failure::new(ExitCode::Usage, message).hint(hint));
    if args.sampler == SamplerKind::Ddpm || args.eta != 0.0 {
        let message =
            format!("--interpolate {a} {b}: the sampler adds noise of its own, so images do not follow from x_T");
        return refuse(message, "use --sampler ddim without --eta, or --sampler dpm");
    }
    if args.class.is_none() && model.config.all_classes().is_some() {
        let message =
            format!("--interpolate {a} {b}: {} has classes, and all must show the same one", args.model.display());
        return refuse(message, "choose one with --class");
    }
    Ok(Start::Between(a, b))
}

/// A square of images; an interpolation is a row.
fn grid_layout(args: &SampleArgs, num: usize, model: &Model) -> Layout {
    let size = model.config.data.image_size;
    let columns = args.interpolate.as_ref().map(|_| num.min(MOST_COLUMNS));
    Layout { columns, ..Layout::visible(size.height, size.width) }
}

/// The class that `--class` means: one of this name, or else of this number. Where folders are called 0, 1, 10, 2 the name counts.
fn class(args: &SampleArgs, model: &Model) -> Result<Option<u32>, Failure> {
    let Some(text) = args.class.as_deref() else { return Ok(None) };
    let Some(classes) = model.config.data_classes() else {
        let message = format!("--class {text}: {} has no classes", args.model.display());
        return Err(Failure::new(ExitCode::Usage, message).hint("leave --class out"));
    };
    let names = model.class_names().unwrap_or_default();
    let named = names.iter().position(|name| name == text);
    let numbered = || text.parse().ok().filter(|&class| class < classes);
    if let Some(class) = named.or_else(numbered) {
        return Ok(u32::try_from(class).ok());
    }
    let last = classes.saturating_sub(1);
    let message = match names {
        [] => format!("--class {text}: the model has classes 0 to {last}"),
        names => {
            let known: Vec<_> = names.iter().take(SHOWN_CLASSES).map(|name| shown(name)).collect();
            let more = if names.len() > SHOWN_CLASSES { ", ..." } else { "" };
            format!("--class {text}: the model has classes 0 to {last}: {}{more}", known.join(", "))
        }
    };
    Err(Failure::new(ExitCode::Usage, message).hint("leave --class out to see all of them in turn"))
}

/// A class for a person: its number, and its name where it has one.
fn describe_class(class: u32, model: &Model) -> String {
    match class_name(class, model) {
        Some(name) => format!("class {class}, {}", shown(name)),
        None => format!("class {class}"),
    }
}

fn class_name(class: u32, model: &Model) -> Option<&str> {
    model.class_names()?.get(class as usize).map(String::as_str)
}

fn guidance(args: &SampleArgs, model: &Model) -> Result<Option<Guidance>, Failure> {
    if args.guidance == 0.0 {
        return Ok(None);
    }
    if !(-MOST_GUIDANCE..=MOST_GUIDANCE).contains(&args.guidance) {
        let message =
            format!("--guidance {}: expected a number from -{MOST_GUIDANCE} to {MOST_GUIDANCE}", args.guidance);
        return Err(Failure::new(ExitCode::Usage, message).hint("1 to 4 are usual"));
    }
    let none = model.config.model.num_class_embeds.zip(model.config.data_classes());
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
