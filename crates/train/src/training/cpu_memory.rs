//! Whether a step fits into the memory of a CPU, asked before it is made: an operating system grants more than there is, and kills
//! some process once it is used.
//!
//! Only what surely does not fit is refused: the estimate has the parameters' buffers and the activations, and neither scratch
//! space, the loader nor the program itself; swap counts as memory where no limit forbids it.

use candle_core::Device;
use ddpm_run::limits;
use ddpm_run::memory::{self, format_bytes};

use super::gpu_memory::{GpuEstimate, GpuNeeds};
use crate::config::TrainConfig;
use crate::error::Error;

/// Refuses a step of `config` on a CPU that computes so many `images` at once if they cannot fit.
///
/// # Errors
/// [`Error::StepTooLarge`], with a `train.micro_batch` that fits.
pub(crate) fn require_room(config: &TrainConfig, images: usize, device: &Device) -> Result<(), Error> {
    match room() {
        Some(room) if device.is_cpu() => refuse_above(config, images, room),
        _ => Ok(()),
    }
}

fn refuse_above(config: &TrainConfig, images: usize, room: u64) -> Result<(), Error> {
    let estimate = GpuEstimate::new(config)?;
    let needed = |images| lasting_and_activations(&estimate.in_f32(images));
    if needed(images) <= room {
        return Ok(());
    }
    let (at_least, there) = (format_bytes(needed(images)), format_bytes(room));
    let plural = if images == 1 { "" } else { "s" };
    let message = format!(
        "a step with {images} image{plural} at once takes at least {at_least} of memory, and there are {there}"
    );
    let powers = (0..usize::BITS).map(|power| 1 << power).take_while(|&fewer| fewer < images);
    // Three quarters, because the rest of the program needs memory too.
    let fitting = powers.take_while(|&fewer| needed(fewer) <= room / 4 * 3).last();
    let advice = match fitting {
        Some(fewer) => format!("set train.micro_batch = {fewer}, which changes no update"),
        None => "make model.block_out_channels narrower or data.image_size smaller, or raise the limit".to_owned(),
    };
    Err(Error::StepTooLarge { message, advice: Some(advice), cause: None })
}

fn lasting_and_activations(needs: &GpuNeeds) -> u64 {
    needs.parameters_bytes + needs.gradients_bytes + needs.activations_bytes
}

fn room() -> Option<u64> {
    let total = memory::total()?;
    let machine = memory::of_machine("MemTotal:");
    let swap = memory::of_machine("SwapTotal:").filter(|_| limits::memory(machine).is_none());
    Some(total.saturating_add(swap.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::config::{Resolved, TrainPlan};

    #[test]
    fn a_step_that_cannot_fit_is_refused_with_a_micro_batch_that_can() {
        let text = "[data]\nsource = \"x\"\nimage_size = 32\n";
        let resolved = Resolved::from_layers(Path::new("my.toml"), text, [], &[]).unwrap();
        let plan = TrainPlan::new(&resolved).unwrap();
        let config = plan.config();
        let needs = |images| lasting_and_activations(&GpuEstimate::new(config).unwrap().in_f32(images));
        refuse_above(config, 64, needs(64)).unwrap();
        let Err(Error::StepTooLarge { message, advice, .. }) = refuse_above(config, 64, needs(16)) else {
            panic!("64 images in the room of 16 are accepted")
        };
        assert!(message.starts_with("a step with 64 images at once takes at least "), "{message}");
        assert_eq!(advice.unwrap(), "set train.micro_batch = 8, which changes no update");
        let Err(Error::StepTooLarge { advice, .. }) = refuse_above(config, 1, 1 << 20) else {
            panic!("it is accepted")
        };
        assert!(advice.unwrap().contains("narrower"));
    }
}
