//! `ddpm sample --invert`: images to latents and back, by deterministic DDIM, with the error of the reconstruction.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use candle_core::{DType, Tensor};
use ddpm_model::ModelError;
use ddpm_model::diffusion::{DiffusionProcess, SamplerConfig, invert, sample};
use ddpm_train::eval::images::{EvalBatch, EvalImages, Selection};
use ddpm_train::exchange::Model;
use ddpm_train::pixels::{to_bytes, to_nchw};
use ddpm_train::report::pictures::{Layout, encode, grid, page_size, write};
use serde::Serialize;

use super::args::{SAMPLE_IMAGES, SampleArgs};
use super::output::{Align, Output, Table};
use super::places::{Kind, Place, data_of, out, prepare};
use crate::failure::{ExitCode, Failure};

/// The document of `sample --invert`.
#[derive(Serialize)]
struct Document<'a> {
    files: Vec<&'a Path>,
    images: usize,
    steps: usize,
    refinements: u64,
    seconds: f64,
    #[serde(flatten)]
    error: Error,
}

/// How far the reconstructed images are from the originals, in the range [-1, 1]; and statistics of the latents.
#[derive(Clone, Copy, Serialize)]
struct Error {
    mse: f64,
    max_error: f64,
    /// 10 log10(4 / mse): 2 is the range.
    psnr_db: f64,
    /// 0 and 1 for the latents of images that the model could have drawn.
    latent_mean: f64,
    latent_variance: f64,
}

/// Images, their latents and the reconstructed images, `[N, H, W, C]` each.
struct RoundTrip {
    images: Tensor,
    latents: Tensor,
    returned: Tensor,
}

/// Inverts, draws again, and reports the error.
pub(super) fn run(
    args: &SampleArgs,
    source: &str,
    model: &Model,
    sampler: &SamplerConfig,
    output: &Output,
) -> Result<(), Failure> {
    if args.guidance != 0.0 {
        let message = format!("--guidance {}: an inversion follows the model as it is", args.guidance);
        return Err(Failure::new(ExitCode::Usage, message).hint("leave --guidance out"));
    }
    let latents = args.latents.as_deref().map(|path| Place { option: "--latents", path, kind: Kind::Safetensors });
    let out = out(args.out.as_deref(), &data_of(model))?;
    let place = Place { option: "--out", path: &out, kind: Kind::Png };
    prepare(&[place].into_iter().chain(latents).collect::<Vec<_>>())?;
    let selection = Selection { source, split: args.split.as_deref(), num: args.num, seed: args.seed };
    let images = EvalImages::open(&selection, &model.config)?.labelled_as(model.class_names())?;
    let images = images.at_most(args.num.unwrap_or(SAMPLE_IMAGES));
    let (num, size) = (images.len(), model.config.data.image_size);
    let layout = Layout { columns: Some(num), ..Layout::visible(size.height, size.width) };
    page_size(3 * num, size.sides(), layout)?;

    let (start, mut counter) = (Instant::now(), output.counter(num, "images"));
    // A clamp cannot be undone.
    let process = model.process.unclamped();
    let mut parts = Vec::new();
    for batch in images.batches(args.batch_size)? {
        let batch = batch?;
        parts.push(round_trip(args.refine, &batch, model, &process, sampler)?);
        counter.set((batch.first + batch.x_start.dims()[0]) as u64, "");
    }
    drop(counter);
    let seconds = start.elapsed().as_secs_f64();
    let all = RoundTrip::concatenate(&parts).map_err(ModelError::from)?;
    let error = all.error().map_err(ModelError::from)?;
    let pixels = [&all.images, &all.latents, &all.returned].map(to_bytes);
    let pixels = pixels.into_iter().collect::<Result<Vec<_>, _>>()?.concat();
    let shape = size.shape(3 * num, model.config.data.channels);
    write(&out, &encode(&grid(&pixels, shape, layout)?)?)?;
    if let Some(path) = &args.latents {
        save_latents(&all.latents, path)?;
    }

    let files = std::iter::once(&out).chain(&args.latents).map(AsRef::as_ref).collect();
    let steps = sampler.kept_timesteps(process.schedule().len())?.len();
    let document = Document { files, images: num, steps, refinements: args.refine, seconds, error };
    output.result(&document, || text(&document))
}

fn round_trip(
    refinements: u64,
    batch: &EvalBatch,
    model: &Model,
    process: &DiffusionProcess,
    sampler: &SamplerConfig,
) -> Result<RoundTrip, Failure> {
    let images = batch.x_start.clone();
    let mut denoise = |x_t: &Tensor, t| Ok(model.painter().denoise(x_t, t, batch.labels.as_deref())?);
    let latents = invert::<Failure>(process, sampler, images.clone(), refinements as usize, &mut denoise)?;
    let mut no_noise = |_| Err(Failure::new(ExitCode::Other, "a deterministic sampler asked for noise"));
    let returned = sample(process, sampler, latents.clone(), &mut no_noise, &mut denoise)?;
    Ok(RoundTrip { images, latents, returned })
}

impl RoundTrip {
    fn concatenate(parts: &[Self]) -> candle_core::Result<Self> {
        let all = |part: fn(&Self) -> &Tensor| Tensor::cat(&parts.iter().map(part).collect::<Vec<_>>(), 0);
        Ok(Self { images: all(|p| &p.images)?, latents: all(|p| &p.latents)?, returned: all(|p| &p.returned)? })
    }

    fn error(&self) -> candle_core::Result<Error> {
        let double = |x: &Tensor| x.to_dtype(DType::F64);
        let difference = (double(&self.returned)? - double(&self.images)?)?;
        let mse: f64 = difference.sqr()?.mean_all()?.to_scalar()?;
        let latents = double(&self.latents)?;
        let latent_mean: f64 = latents.mean_all()?.to_scalar()?;
        Ok(Error {
            mse,
            max_error: difference.abs()?.max_all()?.to_scalar()?,
            psnr_db: 10.0 * (4.0 / mse).log10(),
            latent_mean,
            latent_variance: latents.sqr()?.mean_all()?.to_scalar::<f64>()? - latent_mean * latent_mean,
        })
    }
}

/// Writes `latents` [N, C, H, W], PyTorch's layout.
fn save_latents(latents: &Tensor, path: &Path) -> Result<(), Failure> {
    let tensors = HashMap::from([("latents".to_owned(), to_nchw(latents)?)]);
    candle_core::safetensors::save(&tensors, path).map_err(|error| {
        Failure::caused_by(ExitCode::Other, format!("{}: cannot be written", path.display()), &error)
            .hint("give --latents a file in a folder that exists")
    })
}

fn text(document: &Document<'_>) -> String {
    let Error { mse, max_error, psnr_db, latent_mean, latent_variance } = document.error;
    let mut table = Table::new(&[Align::Left, Align::Left]);
    table.row(&[
        &"error",
        &format!("{mse:.3e} mean squared, {max_error:.4} at most, of a range of 2 ({psnr_db:.1} dB)"),
    ]);
    table.row(&[&"latents", &format!("mean {latent_mean:.3}, variance {latent_variance:.3} (0 and 1 for noise)")]);
    let (images, steps, refinements) = (document.images, document.steps, document.refinements);
    let files: Vec<String> = document.files.iter().map(|path| path.display().to_string()).collect();
    format!(
        "{images} images to latents and back, {steps} steps each way, {refinements} refinements, {:.1} s\n\n{}\n\
         from above: images, latents, what came back: {}\n",
        document.seconds,
        table.render(),
        files.join(", ")
    )
}
