//! Errors of a network's configuration.

use ddpm_kernels::image_size::ImageSize;
use thiserror::Error;

/// A key of `[model]` with an impossible value. Keys are named without the section, which the caller knows.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UNetConfigError {
    /// A number that must be at least 1 is 0.
    #[error("model.{key} = 0")]
    Zero {
        /// The key.
        key: &'static str,
    },
    /// A key that is missing and does not follow from others.
    #[error("model.{key} is missing")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// A list with another number of entries than `block_out_channels`.
    #[error("model.{key} has {found} entries, but model.block_out_channels has {expected}")]
    Length {
        /// The key.
        key: &'static str,
        /// Its entries.
        found: usize,
        /// The number of levels.
        expected: usize,
    },
    /// Groups or heads that leave a remainder.
    #[error("model.{key} = {divisor} does not divide model.block_out_channels[{level}] = {channels}")]
    DoesNotDivide {
        /// The key.
        key: &'static str,
        /// Its value.
        divisor: usize,
        /// The level.
        level: usize,
        /// The level's channels.
        channels: usize,
    },
    /// An image that cannot be halved once per level.
    #[error("images of {} x {} pixels cannot be halved {} times (model.block_out_channels has {levels} levels)", size.width, size.height, levels - 1)]
    ImageSize {
        /// Height and width, in pixels.
        size: ImageSize,
        /// Entries of `block_out_channels`.
        levels: usize,
        /// What each side must be a multiple of.
        divisor: usize,
    },
    /// A number outside its range.
    #[error("model.{key} = {found} is not {expected}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it may be.
        expected: &'static str,
    },
}

impl UNetConfigError {
    /// What to do about it.
    pub fn help(&self) -> Option<String> {
        Some(match self {
            Self::Zero { .. } => "use at least 1".to_owned(),
            Self::Missing { key: "block_out_channels" } => {
                "give each level its channels, as in [64, 128, 128]".to_owned()
            }
            Self::Missing { key } => format!("write `{key}` into [model], or set [data] image_size and channels"),
            Self::Length { expected, .. } => format!("give exactly {expected}, one for each level"),
            Self::DoesNotDivide { divisor, channels, .. } => {
                let divisors: Vec<String> = (1..=*channels)
                    .filter(|d| channels % d == 0 && *d <= divisor.saturating_mul(2))
                    .rev()
                    .take(3)
                    .map(|d| d.to_string())
                    .collect();
                // The first level must be even, so an even width is safe everywhere.
                let step = if divisor % 2 == 0 { *divisor } else { 2 * divisor };
                let wider = channels.div_ceil(step) * step;
                format!("use a divisor of {channels} ({}), or widen the level to {wider}", divisors.join(", "))
            }
            Self::ImageSize { size, divisor, .. } => {
                let next = |side: usize| side.div_ceil(*divisor).max(1).saturating_mul(*divisor);
                let fitting = ImageSize { height: next(size.height), width: next(size.width) };
                let multiple = if fitting.is_square() { "a multiple" } else { "multiples" };
                format!("set data.image_size = {fitting} ({multiple} of {divisor}), or use fewer levels")
            }
            Self::Range { .. } => return None,
        })
    }
}
