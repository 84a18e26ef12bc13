//! How fast images could come in if all there were to do is to decode them: what a loader can be compared with.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

use crate::decode::decode;
use crate::error::DataError;
use crate::format::Source;
use crate::image_limits::ImageLimits;

/// So many encoded bytes are held in memory for it.
const BYTES: usize = 256 << 20;
/// Images read in one call, as a batch would.
const AT_ONCE: usize = 64;
/// Repeated until it has taken so long: a few small images would measure how threads are begun.
const SECONDS: f64 = 0.5;

/// Images that `threads` threads decode in a second, of up to `images` images spread over `source` whose bytes are in memory.
///
/// # Errors
/// The source as a whole cannot be read.
pub fn decoder_limit(
    source: &dyn Source,
    images: usize,
    threads: usize,
    limits: ImageLimits,
) -> Result<f64, DataError> {
    let encoded = encoded(source, images, BYTES)?;
    let (begun, mut done) = (Instant::now(), 0usize);
    while done == 0 || begun.elapsed().as_secs_f64() < SECONDS {
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some(bytes) = encoded.get(next.fetch_add(1, Ordering::Relaxed)) {
                // What cannot be decoded takes its time as well.
                drop(std::hint::black_box(decode(bytes, limits)));
            }
        };
        std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(work))));
        done += encoded.len().max(1);
    }
    Ok(done as f64 / begun.elapsed().as_secs_f64())
}

/// The bytes of `images` images spread over `source`; no further ones once there are `most` bytes.
fn encoded(source: &dyn Source, images: usize, most: usize) -> Result<Vec<Bytes>, DataError> {
    let images = images.clamp(1, source.len());
    let indices: Vec<usize> =
        (0..images).map(|place| (place as u128 * source.len() as u128 / images as u128) as usize).collect();
    let (mut encoded, mut held, mut left) = (Vec::new(), 0, &indices[..]);
    while held < most && !left.is_empty() {
        let read = source.read_many(&left[..left.len().min(AT_ONCE)]);
        left = left.get(read.len()..).unwrap_or_default();
        for raw in read {
            match raw {
                Ok(raw) if held < most => {
                    held += raw.bytes.len();
                    // A copy, so that a sample does not keep its block in memory.
                    encoded.push(Bytes::copy_from_slice(&raw.bytes));
                }
                Ok(_) | Err(DataError::Unreadable { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(encoded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::OpenOptions;

    #[test]
    fn no_further_file_is_held_once_there_are_bytes_enough() {
        let source = crate::open("builtin:fashion10k", &OpenOptions::default()).unwrap();
        let size = source.read(0).unwrap().bytes.len();
        assert_eq!(encoded(&*source, 1000, 1).unwrap().len(), 1);
        assert_eq!(encoded(&*source, 1000, size + 1).unwrap().len(), 2);
        assert_eq!(encoded(&*source, 100, BYTES).unwrap().len(), 100);
    }
}
