//! How fast images could come in if all there were to do is to decode them: what a loader can be compared with.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;

use crate::decode::decode;
use crate::error::DataError;
use crate::format::{Source, read_each};
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
    let images = images.clamp(1, source.len());
    let indices: Vec<usize> =
        (0..images).map(|place| (place as u128 * source.len() as u128 / images as u128) as usize).collect();
    let (mut encoded, mut held) = (Vec::<Bytes>::new(), 0);
    for chunk in indices.chunks(AT_ONCE) {
        if held >= BYTES {
            break;
        }
        read_each(source, chunk, |_, raw| {
            match raw {
                Ok(raw) => {
                    held += raw.bytes.len();
                    // A copy, so that a sample does not keep its block in memory.
                    encoded.push(Bytes::copy_from_slice(&raw.bytes));
                }
                Err(DataError::Unreadable { .. }) => {}
                Err(error) => return Err(error),
            }
            Ok(())
        })?;
    }
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
