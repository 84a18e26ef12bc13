//! Batch `k`, as a pure function of (seed, source, settings, `k`).
//!
//! The place in the run (`position`, the images seen before) decides which sample is read, where it is cut and whether
//! it is mirrored. So threads, restarts, ranks and earlier batches cannot change a batch, and neither can corrupt
//! samples: a replacement is the next readable sample in the same epoch's permutation, and does not depend on what was seen so
//! far.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ddpm_kernels::image_size::ImageSize;
use ddpm_kernels::share::Share;
use serde::{Deserialize, Serialize};

use crate::decode::{Transform, decode};
use crate::error::{DataError, shown};
use crate::fitted::Fitted;
use crate::fitting::{Crop, Fitting};
use crate::format::{RawImage, Source, read_each};
use crate::image_limits::ImageLimits;
use crate::meter::{Gauge, Stage};
use crate::order::{Order, Shuffle};
use crate::origin::Origin;

/// How far a replacement for a corrupt sample is looked for. So many in a row mean that the source is broken.
const MAX_PROBES: u64 = 1000;

/// What happens at a sample that cannot be read (`data.on_corrupt`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// Another sample of the epoch takes its place, as long as `data.max_corrupt` is not exceeded.
    #[default]
    Skip,
    /// The run ends.
    Fail,
}

/// Everything that decides what the batches contain, and how they are made.
#[derive(Clone, Debug)]
pub struct LoaderConfig {
    /// `run.seed`.
    pub seed: u64,
    /// Which images of each global batch (`train.batch_size`) are made here.
    pub share: Share,
    /// Where in the order of the images the steps begin.
    pub origin: Origin,
    /// Which order (`data.shuffle_window`).
    pub shuffle: Shuffle,
    /// Height and width of the batches' images (`data.image_size`).
    pub image_size: ImageSize,
    /// 1 (grey) or 3 (RGB) (`data.channels`).
    pub channels: usize,
    /// Where larger images are cut (`data.crop`).
    pub crop: Crop,
    /// How other sizes are made to fit (`data.fit`, `data.upscale`, `data.background`).
    pub fitting: Fitting,
    /// How large an image may be.
    pub limits: ImageLimits,
    /// Whether half of the images are mirrored (`data.flip`).
    pub flip: bool,
    /// With a number, batches have labels and each must be below it (`data.num_classes`); without, they have none.
    pub num_classes: Option<usize>,
    /// What happens at a corrupt sample (`data.on_corrupt`).
    pub on_corrupt: OnCorrupt,
    /// The share of corrupt samples that is tolerated, 0 to 1 (`data.max_corrupt`).
    pub max_corrupt: f64,
    /// Decoding threads; 0 takes half of the cores (`data.workers`).
    pub workers: usize,
    /// Batches made ahead of the training step (`data.prefetch`).
    pub prefetch: usize,
}

/// What one training step sees: a [`Share`] of the global batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Pixels, 0 to 255, `[N, H, W, C]`.
    pub images: Vec<u8>,
    /// `[N, H, W, C]`.
    pub shape: [usize; 4],
    /// A class for each image, below [`LoaderConfig::num_classes`]; `None` where that is `None`.
    pub labels: Option<Vec<u32>>,
    /// Each image's index in the source.
    pub ids: Vec<u64>,
}

/// A sample that could not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreadable {
    /// Its index in the source.
    pub index: usize,
    /// Its name: a path, or a file and a row.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// A batch, and the corrupt samples found while it was made.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) batch: Batch,
    pub(crate) unreadable: Vec<Unreadable>,
    /// What fitting did to its images.
    pub(crate) fitted: Fitted,
}

/// What was met while a batch was made.
#[derive(Default)]
struct Met {
    unreadable: Vec<Unreadable>,
    fitted: Fitted,
}

/// Makes any batch on request, in the calling thread.
pub struct Batcher {
    source: Arc<dyn Source>,
    config: LoaderConfig,
    transform: Transform,
    order: Order,
}

impl Batcher {
    /// Checks the settings; errors name the key.
    pub fn new(source: Arc<dyn Source>, config: LoaderConfig) -> Result<Self, DataError> {
        let transform =
            Transform::new(config.seed, config.image_size, config.channels, config.crop, config.fitting, config.flip)?;
        if config.share.count() == 0 {
            return Err(DataError::Setting { key: "train.batch_size", found: "0".into(), expected: "at least 1" });
        }
        if !(0.0..=1.0).contains(&config.max_corrupt) {
            let found = config.max_corrupt.to_string();
            return Err(DataError::Setting { key: "data.max_corrupt", found, expected: "a share from 0 to 1" });
        }
        if let Some(num_classes) = config.num_classes.filter(|_| !source.has_labels()) {
            return Err(DataError::NoLabels { num_classes, place: source.describe() });
        }
        if let Some((num_classes, count)) = config.num_classes.zip(Some(source.unlabelled()).filter(|&count| count > 0))
        {
            let (place, len) = (source.describe(), source.len());
            return Err(DataError::Unlabelled { place, count, len, num_classes });
        }
        let order = Order::new(config.seed, source.len() as u64, config.shuffle.for_source(source.is_far()));
        Ok(Self { source, config, transform, order })
    }

    /// Batch `step`. Corrupt samples are replaced (or are errors) as `on_corrupt` says, but not counted: that is the
    /// [`crate::Loader`]'s part.
    pub fn batch_at(&self, step: u64) -> Result<Batch, DataError> {
        self.make(step, &AtomicBool::new(false), &Gauge::default()).map(|made| made.batch)
    }

    /// What a person should know about the images of batch `step`: as [`Loader::take_notices`](crate::Loader::take_notices), of
    /// few images.
    ///
    /// # Errors
    /// As [`batch_at`](Self::batch_at).
    pub fn notices_at(&self, step: u64) -> Result<Vec<String>, DataError> {
        self.make(step, &AtomicBool::new(false), &Gauge::default())
            .map(|made| made.fitted.notices(self.config.image_size))
    }

    /// The settings.
    pub(crate) fn config(&self) -> &LoaderConfig {
        &self.config
    }

    /// The source.
    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Batch `step`, given up with [`DataError::Stopped`] between two images once `stop` is set; `gauge` is told what it takes.
    pub(crate) fn make(&self, step: u64, stop: &AtomicBool, gauge: &Gauge) -> Result<Made, DataError> {
        let n = self.config.share.count();
        let mut images = vec![0; n * self.transform.image_len()];
        let mut labels = self.config.num_classes.map(|_| Vec::with_capacity(n));
        let (mut ids, mut met) = (Vec::with_capacity(n), Met::default());
        let positions = self.positions(step);
        let indices = self.indices(&positions);
        let mut rows = images.chunks_exact_mut(self.transform.image_len());
        gauge.enter(Some(Stage::Read));
        read_each(&*self.source, &indices, |place, raw| {
            if stop.load(Ordering::Relaxed) {
                return Err(DataError::Stopped);
            }
            let pixels = rows.next().unwrap_or_default();
            let (index, label) = self.sample_at(positions[place], raw, pixels, &mut met, gauge)?;
            gauge.enter(Some(Stage::Read));
            ids.push(index as u64);
            if let Some((labels, label)) = labels.as_mut().zip(label) {
                labels.push(label);
            }
            Ok(())
        })?;
        let batch = Batch { images, shape: self.config.image_size.shape(n, self.config.channels), labels, ids };
        Ok(Made { batch, unreadable: met.unreadable, fitted: met.fitted })
    }

    /// Has the store fetch what is needed about a window after `step`, so that a window's end is no pause.
    pub(crate) fn fetch_ahead(&self, step: u64) -> Result<(), DataError> {
        let len = self.source.len() as u64;
        let positions = self.config.origin.positions(self.config.share, step);
        let ahead = positions.map_while(|position| self.order.ahead(position / len, position % len));
        let mut indices: Vec<usize> = ahead.map(|index| index as usize).collect();
        indices.sort_unstable();
        if indices.is_empty() { Ok(()) } else { self.source.will_need(&indices) }
    }

    /// Whether [`fetch_ahead`](Self::fetch_ahead) does anything.
    pub(crate) fn fetches_ahead(&self) -> bool {
        self.source.is_far() && self.order.ahead(0, 0).is_some()
    }

    /// The places of batch `step` in the run.
    pub(crate) fn positions(&self, step: u64) -> Vec<u64> {
        self.config.origin.positions(self.config.share, step).collect()
    }

    /// The samples at these places, if all of them can be read.
    pub(crate) fn indices(&self, positions: &[u64]) -> Vec<usize> {
        positions.iter().map(|&position| self.index_at(position, 0)).collect()
    }

    /// The index of the sample `further` places behind `position` in the order of its epoch, which starts again at its
    /// end.
    fn index_at(&self, position: u64, further: u64) -> usize {
        let len = self.source.len() as u64;
        let (epoch, slot) = (position / len, position % len);
        self.order.permute(epoch, (slot + further) % len) as usize
    }

    /// The sample at `position`, of which `raw` was read, or the first readable one after it in the epoch's order: its
    /// index and its label.
    fn sample_at(
        &self,
        position: u64,
        raw: Result<RawImage, DataError>,
        pixels: &mut [u8],
        met: &mut Met,
        gauge: &Gauge,
    ) -> Result<(usize, Option<u32>), DataError> {
        let probes = (self.source.len() as u64).min(MAX_PROBES);
        let mut first = Some(raw);
        for probe in 0..probes {
            let index = self.index_at(position, probe);
            let raw = first.take().unwrap_or_else(|| {
                gauge.enter(Some(Stage::Read));
                self.source.read(index)
            });
            match raw.and_then(|raw| self.fit(raw, position, pixels, &mut met.fitted, gauge)) {
                Ok(label) => return Ok((index, label)),
                Err(DataError::Unreadable { sample: id, reason }) if self.config.on_corrupt == OnCorrupt::Skip => {
                    met.unreadable.push(Unreadable { index, id, reason });
                }
                Err(error) => return Err(error),
            }
        }
        let last = met.unreadable.last().map_or(String::new(), Unreadable::to_string);
        Err(DataError::NothingReadable { count: probes, last })
    }

    /// Decodes and fits one sample; its label, where classes were asked for.
    fn fit(
        &self,
        raw: RawImage,
        position: u64,
        pixels: &mut [u8],
        fitted: &mut Fitted,
        gauge: &Gauge,
    ) -> Result<Option<u32>, DataError> {
        gauge.enter(Some(Stage::Decode));
        let decoded = match decode(&raw.bytes, self.config.limits) {
            Ok(decoded) => decoded,
            Err(reason) => return Err(DataError::Unreadable { sample: raw.id, reason }),
        };
        gauge.decoded(raw.bytes.len());
        gauge.enter(Some(Stage::Fit));
        self.transform.note(fitted, &decoded);
        self.transform.apply(decoded, &raw.id, position, pixels)?;
        let Some(num_classes) = self.config.num_classes else { return Ok(None) };
        match raw.label {
            None => Err(DataError::LabelMissing { sample: raw.id, num_classes }),
            Some(label) if label as usize >= num_classes => {
                Err(DataError::LabelOutOfRange { sample: raw.id, label, num_classes })
            }
            label => Ok(label),
        }
    }
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", shown(&self.id), self.reason)
    }
}
