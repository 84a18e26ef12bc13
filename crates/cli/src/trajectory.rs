//! The picture of `ddpm sample --trajectory`: the network's predictions from the first step to the last.

use ddpm_train::Error;
use ddpm_train::drawing::Glimpse;
use ddpm_train::pixels::to_bytes;
use ddpm_train::report::pictures::{Layout, grid};
use image::RgbImage;

use crate::failure::Failure;

/// Number of images shown, and of stages for each.
const ROWS: usize = 8;
const COLUMNS: usize = 12;

/// Collects the stages of the first images.
pub(super) struct Trajectory {
    rows: usize,
    /// The steps to show, ascending.
    shown: Vec<usize>,
    /// The step and first image of the glimpse that comes next.
    next: (usize, usize),
    /// The stages of each row, one after another.
    stages: Vec<Vec<u8>>,
}

impl Trajectory {
    /// A trajectory of `num` images drawn in `steps` steps.
    pub(super) fn new(num: usize, steps: usize) -> Self {
        let columns = steps.min(COLUMNS);
        let shown = (0..columns).map(|column| column * (steps - 1) / (columns - 1).max(1)).collect();
        let rows = num.min(ROWS);
        Self { rows, shown, next: (0, 0), stages: vec![Vec::new(); rows] }
    }

    /// Adds the next step of a batch.
    pub(super) fn add(&mut self, glimpse: &Glimpse<'_>) -> Result<(), Error> {
        let step = if glimpse.first == self.next.1 { self.next.0 } else { 0 };
        self.next = (step + 1, glimpse.first);
        if glimpse.first >= self.rows || !self.shown.contains(&step) {
            return Ok(());
        }
        let bytes = to_bytes(glimpse.x_start)?;
        let image = bytes.len() / glimpse.x_start.dims()[0].max(1);
        for (stages, image) in self.stages[glimpse.first..].iter_mut().zip(bytes.chunks_exact(image)) {
            stages.extend(image);
        }
        Ok(())
    }

    /// A row for each image, noise on the left.
    pub(super) fn picture(&self, [_, height, width, channels]: [usize; 4]) -> Result<RgbImage, Failure> {
        let pixels = self.stages.concat();
        let count = pixels.len() / (height * width * channels).max(1);
        let layout = Layout { columns: Some(count / self.rows.max(1)), ..Layout::visible(height, width) };
        Ok(grid(&pixels, [count, height, width, channels], layout)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use candle_core::{Device, Tensor};
    use ddpm_model::diffusion::Timestep;

    /// Batches of 2 and 1 images of one pixel: image k at step s has the value of byte 10 k + s.
    #[test]
    fn every_row_is_the_way_of_one_image_whatever_the_batches() {
        let mut trajectory = Trajectory::new(3, 4);
        for (first, count) in [(0, 2), (2, 1)] {
            for step in 0..4 {
                let value = |k: usize| ((first + k) * 10 + step) as f32 / 127.5 - 1.0;
                let values: Vec<f32> = (0..count).map(value).collect();
                let x_start = Tensor::from_vec(values, (count, 1, 1, 1), &Device::Cpu).unwrap();
                let t = Timestep::new(0, 1).unwrap();
                trajectory.add(&Glimpse { first, t, x_start: &x_start }).unwrap();
            }
        }
        assert_eq!(trajectory.stages, [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]);
        let page = trajectory.picture([3, 1, 1, 1]).unwrap();
        assert_eq!(page.dimensions(), (4 * 66 + 2, 3 * 66 + 2));
    }

    #[test]
    fn long_ways_are_shown_from_their_first_to_their_last_step() {
        let shown = Trajectory::new(1, 1000).shown;
        assert_eq!((shown.len(), shown[0], shown[COLUMNS - 1]), (COLUMNS, 0, 999));
        assert_eq!(Trajectory::new(20, 1).shown, [0]);
    }
}
