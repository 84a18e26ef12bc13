//! Indexable image sources, a seeded order, decoding and a prefetching loader.
//!
//! ```text
//! bytes (disk, embedded) -> Source -> Order -> decode -> Batch { images u8 [N, H, W, C], labels, sample ids }
//! ```
//! - [`open`] turns `data.source` into a [`Source`]: anything that answers `len()` and `read(i)`.
//! - [`Order`] is the permutation of each epoch, computed and not stored.
//! - [`Batcher`] makes batch `k`, a pure function of (seed, source, settings, `k`); [`Loader`] runs it in threads,
//!   ahead of the training step, and changes nothing about the result.
//! - [`inspect()`] reads everything once and tells what a person should know before training on it.
//!
//! Position, everywhere, is the number of images seen before: `step * batch_size + place in the batch`. A resumed run
//! needs the step and nothing else from here.

mod batch;
mod decode;
mod error;
mod inspect;
mod loader;
mod order;
mod source;
#[cfg(test)]
mod testing;

pub use batch::{Batch, Batcher, LoaderConfig, OnCorrupt, Unreadable};
pub use decode::Crop;
pub use error::DataError;
pub use inspect::{Counts, Inspection, Preview, inspect};
pub use loader::Loader;
pub use order::Order;
pub use source::{Format, OpenOptions, RawImage, Source, open};
