//! An estimate of a run's training step on this machine, in less than a minute: time and memory.
//!
//! A step with the whole batch of a published model can take minutes, and more memory than a laptop has. [`estimate_step`]
//! first makes steps of one and of two images. It makes a step of the whole batch only if that promises to be quick and small;
//! otherwise it extrapolates linearly. Grey images replace data that cannot be read: they cost the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use candle_core::Device;
use ddpm_data::{Batch, Batcher, DataError, Loader, LoaderConfig, Share, Source};
use ddpm_run::memory::{self, format_bytes};
use serde::Serialize;

use super::step::{measure, milliseconds};
use crate::config::{TrainPlan, Warning};
use crate::error::Error;
use crate::known_data::{KnownData, unused_classes};
use crate::training::cpu_memory::require_room;
use crate::training::setup::loader_config;
use crate::training::trainer::Trainer;

/// An estimate makes steps of the whole batch only if they promise to be shorter than this; a longer step of one or two images
/// is not warmed up.
const LONGEST_STEP_MS: f64 = 5e3;
/// Images to read as a check that the data can be read, and that its images are what the network should see.
const TRIED_IMAGES: usize = 32;

/// The estimated cost of a step.
#[derive(Debug)]
pub struct StepEstimate {
    /// Time of a step, in milliseconds.
    pub step_ms: f64,
    /// The peak memory of a step, where the system reports it.
    pub peak_bytes: Option<u64>,
    /// How both were obtained.
    pub measured: Measured,
    /// On a GPU, the memory estimated beforehand.
    pub estimated_bytes: Option<u64>,
    /// If that is more memory than there is: what to do, or what was done.
    pub warning: Option<Warning>,
    /// What the source is, if it can be opened.
    pub data: Option<KnownData>,
    /// What a person should know about how the data was read, and what does not fit this model.
    pub data_warnings: Vec<Warning>,
    /// Why the data cannot be read; grey images replaced it.
    pub data_error: Option<DataError>,
}

/// How an estimate was obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Measured {
    /// From steps of the whole batch.
    Batch,
    /// From steps of one and two images, because the whole batch would take too long or too much memory.
    Extrapolated,
}

/// Measures `repeat` training steps of `plan` if they take seconds, and otherwise extrapolates the cost of a step. A GPU makes
/// whole steps, and finds how many images at once fit.
///
/// # Errors
/// The device cannot be opened, the weights alone are too large, or a step fails. Unreadable data is no error: see
/// [`StepEstimate::data_error`].
pub fn estimate_step(plan: &TrainPlan, repeat: usize) -> Result<StepEstimate, Error> {
    let device = plan.device().open()?;
    let mut data = LenientData::open(plan);
    let mut trainer = Trainer::new(plan, &device)?;
    if !device.is_cpu() {
        return measure_on_gpu(plan, &mut trainer, &device, repeat, data);
    }
    require_room(plan.config(), 1, &device)?;
    let extrapolation = extrapolate(plan, &mut trainer)?;
    let batch_size = plan.config().train.batch_size;
    let at_once = plan.at_once();
    let total = memory::total();
    let (step_ms, peak_bytes) = (extrapolation.step_ms(batch_size), extrapolation.peak_bytes(at_once));
    // Half, because a line through two points is inexact, and other programs need memory too.
    let small = step_ms < LONGEST_STEP_MS && fits(peak_bytes, total.map(|total| total / 2));
    let (step_ms, peak_bytes, measured, warning) = if small {
        data.start();
        let step = measure(plan, &mut trainer, &device, repeat, || Ok(data.next_batch()))?;
        (step.median_ms, step.peak_bytes, Measured::Batch, None)
    } else {
        (step_ms, peak_bytes, Measured::Extrapolated, memory_warning(&extrapolation, at_once, total))
    };
    Ok(StepEstimate {
        step_ms,
        peak_bytes,
        estimated_bytes: None,
        measured,
        warning,
        data: data.facts(),
        data_warnings: data.warnings(),
        data_error: data.error,
    })
}

fn measure_on_gpu(
    plan: &TrainPlan,
    trainer: &mut Trainer,
    device: &Device,
    repeat: usize,
    mut data: LenientData<'_>,
) -> Result<StepEstimate, Error> {
    data.start();
    let step = measure(plan, trainer, device, repeat, || Ok(data.next_batch()))?;
    let notices = trainer.take_notices().into_iter();
    Ok(StepEstimate {
        step_ms: step.median_ms,
        peak_bytes: step.peak_bytes,
        estimated_bytes: step.estimated_bytes,
        measured: Measured::Batch,
        warning: notices.last().map(|message| Warning { key: "train.micro_batch", message }),
        data: data.facts(),
        data_warnings: data.warnings(),
        data_error: data.error,
    })
}

/// The data of a plan, or grey images after its first error.
struct LenientData<'a> {
    plan: &'a TrainPlan,
    source: Option<Arc<dyn Source>>,
    loader: Option<Loader>,
    /// About the first images.
    notices: Vec<String>,
    error: Option<DataError>,
}

impl<'a> LenientData<'a> {
    /// Opens the source and reads some images; it starts no thread yet, which would slow down a step.
    fn open(plan: &'a TrainPlan) -> Self {
        let mut data = Self { plan, source: None, loader: None, notices: Vec::new(), error: None };
        data.source = data.keep(ddpm_data::open(&plan.config().data.source, &plan.open_options()));
        if let Some(source) = data.source.clone() {
            let all = loader_config(plan);
            let some = LoaderConfig { share: Share::whole(source.len().min(TRIED_IMAGES)), ..all };
            let tried = Batcher::new(source, some).and_then(|batcher| batcher.notices_at(0));
            data.notices = data.keep(tried).unwrap_or_default();
        }
        data
    }

    fn facts(&self) -> Option<KnownData> {
        self.source.as_deref().map(|source| KnownData::of_source(source, self.plan.config()))
    }

    fn warnings(&self) -> Vec<Warning> {
        let Some(source) = &self.source else { return Vec::new() };
        let notices = source.notices().iter().map(|notice| Warning { key: "data.source", message: notice.clone() });
        let of_images = self.notices.iter().map(|notice| Warning { key: "data.fit", message: notice.clone() });
        notices.chain(unused_classes(self.plan.config(), source.as_ref())).chain(of_images).collect()
    }

    /// Starts reading ahead, unless the data cannot be read.
    fn start(&mut self) {
        if self.error.is_none()
            && let Some(source) = self.source.clone()
        {
            self.loader = self.keep(Loader::start(source, loader_config(self.plan), 0));
        }
    }

    fn next_batch(&mut self) -> Batch {
        if let Some(mut loader) = self.loader.take()
            && let Some(batch) = self.keep(loader.next())
        {
            self.loader = Some(loader);
            return batch;
        }
        grey_batch(self.plan, self.plan.config().train.batch_size)
    }

    /// The value of `result`; its error is kept, if it is the first.
    fn keep<T>(&mut self, result: Result<T, DataError>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                self.error = self.error.take().or(Some(error));
                None
            }
        }
    }
}

/// A batch of grey images, all of the first class if the model has classes.
fn grey_batch(plan: &TrainPlan, images: usize) -> Batch {
    let data = &plan.config().data;
    let shape = data.image_size.shape(images, data.channels);
    Batch {
        images: vec![128; shape.iter().product()],
        shape,
        labels: plan.classes().map(|_| vec![0; images]),
        ids: vec![0; images],
    }
}

/// The measured cost of a step with few images.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Probe {
    total_ms: f64,
    /// The part of it that is the same for any number of images.
    optimizer_ms: f64,
    /// Largest resident memory of the process so far.
    peak_bytes: Option<u64>,
}

impl Probe {
    fn new(plan: &TrainPlan, trainer: &mut Trainer, images: usize) -> Result<Self, Error> {
        let batch = grey_batch(plan, images);
        let mut step = || -> Result<Self, Error> {
            let start = Instant::now();
            trainer.step(batch.clone())?;
            let optimizer = trainer.outcomes(true)?.pop().map_or(Duration::ZERO, |outcome| outcome.phases.optimizer);
            let optimizer_ms = milliseconds(optimizer);
            Ok(Self { total_ms: milliseconds(start.elapsed()), optimizer_ms, peak_bytes: memory::peak_resident() })
        };
        let first = step()?;
        if first.total_ms < LONGEST_STEP_MS { step() } else { Ok(first) }
    }
}

/// Makes a step of one image, and one of two unless memory is too small or the batch has only one.
fn extrapolate(plan: &TrainPlan, trainer: &mut Trainer) -> Result<Extrapolation, Error> {
    let before = memory::resident();
    let one = Probe::new(plan, trainer, 1)?;
    // This overestimates: the first step also touched the gradient and the moments for the first time.
    let twice = one.peak_bytes.zip(before).map(|(peak, before)| peak.saturating_add(peak.saturating_sub(before)));
    let two = if plan.config().train.batch_size > 1 && fits(twice, memory::total()) {
        Probe::new(plan, trainer, 2)?
    } else {
        Probe { total_ms: 2.0 * one.total_ms - one.optimizer_ms, peak_bytes: twice, ..one }
    };
    Ok(Extrapolation::new(&one, &two))
}

/// Whether `bytes` fit into `room`; true if the system does not report one of them.
fn fits(bytes: Option<u64>, room: Option<u64>) -> bool {
    bytes.zip(room).is_none_or(|(bytes, room)| bytes <= room)
}

/// Time and memory of a step as linear functions: `fixed_ms + n image_ms` for n images, and for n images at once `one_bytes +
/// (n - 1) image_bytes`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Extrapolation {
    fixed_ms: f64,
    image_ms: f64,
    one_bytes: Option<u64>,
    image_bytes: u64,
}

impl Extrapolation {
    /// The time per image comes from `two`, which uses the threads better than one image does; each further image adds as much
    /// memory as the second one did.
    fn new(one: &Probe, two: &Probe) -> Self {
        Self {
            fixed_ms: two.optimizer_ms,
            image_ms: (two.total_ms - two.optimizer_ms) / 2.0,
            one_bytes: one.peak_bytes,
            image_bytes: two.peak_bytes.zip(one.peak_bytes).map_or(0, |(two, one)| two.saturating_sub(one)),
        }
    }

    fn step_ms(&self, images: usize) -> f64 {
        self.fixed_ms + images as f64 * self.image_ms
    }

    fn peak_bytes(&self, at_once: usize) -> Option<u64> {
        let more = (at_once as u64).saturating_sub(1);
        Some(self.one_bytes?.saturating_add(self.image_bytes.saturating_mul(more)))
    }

    /// How many images at once stay within `bytes`, at least one: the largest power of two, which divides most batches. `None`
    /// if the memory of an image is unknown.
    fn at_once_within(&self, bytes: u64) -> Option<usize> {
        let more = bytes.saturating_sub(self.one_bytes?).checked_div(self.image_bytes)?;
        Some(1usize << more.saturating_add(1).ilog2())
    }
}

/// Advice if `at_once` images take more than the `total` memory of this machine.
fn memory_warning(extrapolation: &Extrapolation, at_once: usize, total: Option<u64>) -> Option<Warning> {
    let (needed, total) = extrapolation.peak_bytes(at_once).zip(total)?;
    // A quarter of the memory is left to the loader, to the system and to the error of the line.
    let fitting = extrapolation.at_once_within(total / 4 * 3)?;
    (needed > total && fitting < at_once).then(|| {
        let (needed, total) = (format_bytes(needed), format_bytes(total));
        let message = format!(
            "{at_once} images at once would take about {needed} of memory, and this machine has {total}: set \
             train.micro_batch = {fitting}, which changes no update"
        );
        Warning { key: "train.micro_batch", message }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::config::Resolved;
    use std::path::Path;

    const GIB: u64 = 1 << 30;

    /// 10 ms for the optimizer and 20 ms an image; 4 GiB with one image and 2 GiB for each more.
    fn extrapolation() -> Extrapolation {
        let one = Probe { total_ms: 35.0, optimizer_ms: 11.0, peak_bytes: Some(4 * GIB) };
        let two = Probe { total_ms: 50.0, optimizer_ms: 10.0, peak_bytes: Some(6 * GIB) };
        Extrapolation::new(&one, &two)
    }

    #[test]
    fn a_whole_batch_is_extrapolated_from_one_and_two_images() {
        let extrapolation = extrapolation();
        assert_eq!((extrapolation.step_ms(2), extrapolation.step_ms(64)), (50.0, 1290.0));
        assert_eq!((extrapolation.peak_bytes(1), extrapolation.peak_bytes(64)), (Some(4 * GIB), Some(130 * GIB)));
    }

    #[test]
    fn more_memory_than_there_is_brings_a_warning_with_a_micro_batch_that_fits() {
        let warning = memory_warning(&extrapolation(), 64, Some(32 * GIB)).unwrap();
        assert_eq!(warning.key, "train.micro_batch");
        assert_eq!(
            warning.message,
            "64 images at once would take about 130 GiB of memory, and this machine has 32 GiB: set \
             train.micro_batch = 8, which changes no update"
        );
        assert!(memory_warning(&extrapolation(), 64, Some(5 * GIB)).unwrap().message.contains("micro_batch = 1,"));
        assert_eq!(memory_warning(&extrapolation(), 8, Some(32 * GIB)), None, "it fits");
        assert_eq!(memory_warning(&extrapolation(), 1, Some(GIB)), None, "there is nothing less");
        assert_eq!(memory_warning(&extrapolation(), 64, None), None, "the system does not tell");
        let flat = Extrapolation { image_bytes: 0, ..extrapolation() };
        assert_eq!(memory_warning(&flat, 64, Some(GIB)), None, "fewer images would take no less");
    }

    #[test]
    fn data_that_is_missing_is_replaced_and_reported() {
        let data = "[data]\nsource = \"nowhere\"\nimage_size = 8\n";
        let text = format!("{data}[train]\nbatch_size = 3\n[model]\nnum_class_embeds = 2\n");
        let plan = TrainPlan::new(&Resolved::from_layers(Path::new("my.toml"), &text, [], &[]).unwrap()).unwrap();
        let mut data = LenientData::open(&plan);
        data.start();
        let batch = data.next_batch();
        assert_eq!((batch.shape, batch.images.len()), ([3, 8, 8, 3], 3 * 8 * 8 * 3));
        assert_eq!(batch.labels, Some(vec![0; 3]));
        assert!(matches!(data.error, Some(DataError::NotFound { .. })), "{:?}", data.error);
    }
}
