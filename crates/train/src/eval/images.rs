//! The images to measure on: a selection from a source, as the network sees them.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use ddpm_data::{
    Batcher, Crop, Format, LoaderConfig, OnCorrupt, OpenOptions, Origin, Share, Shuffle, Source, with_classes,
};

use crate::config::TrainConfig;
use crate::error::Error;
use crate::pixels::normalise;

/// Which images.
#[derive(Clone, Copy, Debug)]
pub struct Selection<'a> {
    /// As `data.source`.
    pub source: &'a str,
    /// As `data.split`.
    pub split: Option<&'a str>,
    /// How many; all where absent.
    pub num: Option<usize>,
    /// Seed of the choice, if not all are used.
    pub seed: u64,
}

/// Images of one size, cropped at the centre and never mirrored, in an order that the seed decides.
pub struct EvalImages {
    source: Arc<dyn Source>,
    settings: LoaderConfig,
    num: usize,
}

/// Some images. `N` is at least 1.
#[derive(Clone, Debug)]
pub struct EvalBatch {
    /// `[N, H, W, C]` in [-1, 1].
    pub x_start: Tensor,
    /// Labels, if the model has classes.
    pub labels: Option<Vec<u32>>,
    /// The number of the first of them among all the images.
    pub first: usize,
}

impl EvalImages {
    /// Opens the images that `selection` names, for a model of `config`.
    ///
    /// # Errors
    /// The data cannot be read, or has fewer images than were requested.
    pub fn open(selection: &Selection<'_>, config: &TrainConfig) -> Result<Self, Error> {
        let options = OpenOptions {
            format: Format::Auto,
            split: selection.split.filter(|split| !split.is_empty()).map(str::to_owned),
            stores: config.data.stores(),
            limits: config.data.limits(),
        };
        let source = ddpm_data::open(selection.source, &options)?;
        let num = selection.num.unwrap_or(source.len());
        if num > source.len() {
            return Err(Error::TooFewImages { wanted: num, there: source.len(), data: source.describe() });
        }
        let data = &config.data;
        let settings = LoaderConfig {
            seed: selection.seed,
            share: Share::whole(1),
            origin: Origin::default(),
            // The same images wherever they lie.
            shuffle: Shuffle::Whole,
            image_size: data.image_size,
            limits: data.limits(),
            channels: data.channels,
            crop: Crop::Center,
            fitting: data.fitting(),
            flip: false,
            num_classes: config.data_classes(),
            // Training may replace an unreadable image by another; a measurement must not.
            on_corrupt: OnCorrupt::Fail,
            max_corrupt: 0.0,
            workers: 0,
            prefetch: 1,
        };
        Ok(Self { source, settings, num })
    }

    /// The same images with the labels of a model whose classes have these names; says which of them have no image.
    ///
    /// # Errors
    /// The images are of a class that the model does not know.
    pub fn labelled_as(mut self, names: Option<&[String]>) -> Result<Self, Error> {
        if let Some((names, _)) = names.zip(self.settings.num_classes) {
            self.source = with_classes(self.source, names).map_err(Error::Unfit)?;
        }
        self.source.notices().iter().for_each(|notice| tracing::warn!("{notice}"));
        Ok(self)
    }

    /// The same images without labels, for a measurement of pixels alone: then the data needs no labels.
    #[must_use]
    pub fn without_labels(mut self) -> Self {
        self.settings.num_classes = None;
        self
    }

    /// The first `count` of them, or all if there are fewer; at least one.
    #[must_use]
    pub fn at_most(mut self, count: usize) -> Self {
        self.num = self.num.min(count.max(1));
        self
    }

    /// Values of one image, height x width x channels.
    pub fn image_len(&self) -> usize {
        let LoaderConfig { image_size, channels, .. } = self.settings;
        // The settings are checked when the first batch is made.
        image_size.pixels().saturating_mul(channels)
    }

    /// How many images there are; at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.num
    }

    /// The images described in one line, for a person.
    pub fn describe(&self) -> String {
        self.source.describe()
    }

    /// The images in batches.
    ///
    /// # Errors
    /// A batch is an error if its data cannot be read, or lacks the labels that the model needs.
    pub fn batches(&self, batch_size: usize) -> Result<impl Iterator<Item = Result<EvalBatch, Error>>, Error> {
        let batch_size = batch_size.min(self.num).max(1);
        let share = Share::whole(batch_size);
        let batcher = Batcher::new(Arc::clone(&self.source), LoaderConfig { share, ..self.settings.clone() });
        let batcher = batcher.map_err(Error::Unfit)?;
        let num = self.num;
        Ok((0..num.div_ceil(batch_size)).map(move |k| {
            let batch = batcher.batch_at(k as u64).map_err(Error::Unfit)?;
            let first = k * batch_size;
            // The last batch may reach beyond the last image.
            let count = batch_size.min(num - first);
            let [_, height, width, channels] = batch.shape;
            let bytes = &batch.images[..count * height * width * channels];
            let labels = batch.labels.map(|mut labels| {
                labels.truncate(count);
                labels
            });
            Ok(EvalBatch { x_start: normalise(bytes, [count, height, width, channels], &Device::Cpu)?, labels, first })
        }))
    }
}
