//! Indexable image sources, a seeded order, decoding and a prefetching loader.
//!
//! ```text
//! Store (bytes) -> Source (samples) -> Order -> decode -> Batch { images u8 [N, H, W, C], labels, sample ids }
//! ```
//! - `store`: files, listed once and read in pieces, on a disk or elsewhere.
//! - [`open`] turns `data.source` into a [`Source`]: anything that answers `len()` and `read(i)`.
//! - `order`: the permutation of each epoch, computed and not stored; in windows over a network.
//! - [`Batcher`] makes batch `k`, a pure function of (seed, source, settings, `k`); [`Loader`] runs it in threads,
//!   ahead of the training step, and changes nothing about the result.
//! - [`pack()`] writes any source as tar shards, decoded and cut once.
//! - [`inspect()`] reads everything once and reports what a person should know before training on it.
//!
//! Position, everywhere, is the number of images before, of all ranks together: `step * batch + place in the batch`, unless
//! the run has left this line ([`Origin`]). A resumed run needs the step and nothing else from here. Of several ranks each makes its [`Share`] of every
//! batch.

mod batch;
mod cache_file;
mod decode;
mod decoder_limit;
mod error;
mod fitted;
mod fitting;
mod format;
mod image_limits;
mod inspect;
mod loader;
mod meter;
mod order;
mod origin;
mod pack;
mod resample;
mod store;
#[cfg(test)]
mod testing;

pub use batch::{Batch, Batcher, LoaderConfig, OnCorrupt, Unreadable};
pub use ddpm_kernels::image_size::ImageSize;
pub use ddpm_kernels::share::Share;
pub use decode::MAX_IMAGE_SIZE;
pub use decoder_limit::decoder_limit;
pub use error::{DataError, Refusal, counted, shown};
pub use fitting::{Background, Crop, Fit, Fitting};
pub use format::{Format, Objects, OpenOptions, RawImage, Source, open, with_classes};
pub use image_limits::ImageLimits;
pub use inspect::{Alike, Counts, Inspection, Preview, inspect};
pub use loader::Loader;
pub use meter::Flow;
pub use order::Shuffle;
pub use origin::Origin;
pub use pack::{PackAs, PackConfig, Packed, pack};
pub use store::StoreOptions;
pub use store::address::without_query;
