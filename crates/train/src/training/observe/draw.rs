//! The pictures that are drawn during training.

use std::time::Instant;

use super::Observers;
use crate::drawing::{Images, Painter, Request};
use crate::error::{Error, Kind};
use crate::report::pictures::{Layout, encode, grid};
use crate::training::setup::{picture_request, sampler_config};
use crate::training::trainer::Trainer;

impl Observers<'_> {
    /// Draws pictures from the moving average and reports them; returns whether they were finished. It gives up when the run is
    /// to stop, because drawing may take minutes and the next start can do it. A GPU without enough memory for pictures does
    /// not end the run.
    pub(super) fn draw(&mut self, trainer: &mut Trainer) -> Result<bool, Error> {
        let (start, step) = (Instant::now(), trainer.steps_taken());
        let _span = tracing::debug_span!("sample", step).entered();
        let images = match self.paint(trainer) {
            Ok(Some(images)) => images,
            Ok(None) => return Ok(false),
            Err(error) if matches!(error.kind(), Kind::Device | Kind::Memory) => {
                tracing::warn!("no picture at step {step}: {error}");
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let layout = Layout::visible(images.shape[1], images.shape[2]);
        match grid(&images.pixels, images.shape, layout).and_then(|page| encode(&page)) {
            Ok(png) => self.reporter.samples(step, &png),
            Err(error) => tracing::warn!("no picture: {error}"),
        }
        self.longest.picture = self.longest.picture.max(start.elapsed());
        Ok(true)
    }

    /// The images of a picture. If the GPU's memory is full, it first frees the memory that the training keeps, and then draws
    /// fewer images at once.
    fn paint(&self, trainer: &mut Trainer) -> Result<Option<Images>, Error> {
        let config = self.setup.plan.config();
        let sampler = sampler_config(config);
        let mut request = picture_request(config, &sampler);
        let paint = |trainer: &Trainer, request: &Request<'_>| {
            let params = trainer.sampling_params()?;
            let painter = Painter { unet: trainer.unet(), params: &params, process: trainer.process() };
            painter.draw_unless(request, &|| self.stop.is_over())
        };
        loop {
            match paint(trainer, &request) {
                Err(error) if error.is_full_memory() && trainer.give_back_memory()? => {}
                Err(error) if error.is_full_memory() && request.batch_size > 1 => {
                    request.batch_size = request.batch_size.div_ceil(2);
                }
                painted => return painted,
            }
        }
    }
}
