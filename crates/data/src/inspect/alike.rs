//! Images that a person may want to look at: next to black ones, and files that are there more than once.

use image::{DynamicImage, GenericImageView};

use crate::error::DataError;
use crate::format::Source;

/// Pixels that are looked at, in each direction, to see whether an image is black.
const LOOKED_AT: u32 = 32;
/// Values below it are next to black, of 255.
const DARK: u8 = 16;
/// Samples that are named where many are alike.
const EXAMPLES: usize = 3;

/// Samples that a person may want to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Alike {
    /// All of them.
    pub count: usize,
    /// The names of the first; of a duplicate with that of its original: `b.png = a.png`.
    pub examples: Vec<String>,
}

/// Whether nearly all of an image is next to black where it is seen; transparent pixels are not.
pub(super) fn is_near_black(image: &DynamicImage) -> bool {
    let (columns, rows) = (image.width().min(LOOKED_AT), image.height().min(LOOKED_AT));
    let dark = |row: u32, column: u32| {
        let place = |at: u32, of: u32, length: u32| (u64::from(at) * u64::from(length) / u64::from(of)) as u32;
        let pixel = image.get_pixel(place(column, columns, image.width()), place(row, rows, image.height()));
        let [colour @ .., alpha] = pixel.0;
        alpha > 255 - DARK && colour.iter().all(|&value| value < DARK)
    };
    let looked_at = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column)));
    let bright = looked_at.filter(|&(row, column)| !dark(row, column)).count();
    bright * 100 <= (rows * columns) as usize
}

pub(super) fn hash_of(bytes: &[u8]) -> [u8; 16] {
    let mut short = [0; 16];
    blake3::Hasher::new().update(bytes).finalize_xof().fill(&mut short);
    short
}

/// The files that are there more than once, but for the first of each.
pub(super) fn duplicates(source: &dyn Source, mut hashes: Vec<([u8; 16], usize)>) -> Result<Alike, DataError> {
    hashes.sort_unstable();
    let same = hashes.chunk_by(|a, b| a.0 == b.0);
    let mut pairs: Vec<[usize; 2]> =
        same.flat_map(|same| same[1..].iter().map(|(_, index)| [*index, same[0].1])).collect();
    pairs.sort_unstable();
    named(source, pairs.len(), pairs.iter().map(|pair| pair.to_vec()))
}

/// Names the first of `count` groups of samples.
pub(super) fn named(
    source: &dyn Source,
    count: usize,
    groups: impl Iterator<Item = Vec<usize>>,
) -> Result<Alike, DataError> {
    let mut examples = Vec::new();
    for group in groups.take(EXAMPLES) {
        let names: Result<Vec<String>, _> = group.iter().map(|&index| source.read(index).map(|raw| raw.id)).collect();
        match names {
            Ok(names) => examples.push(names.join(" = ")),
            // It was there a moment ago.
            Err(DataError::Unreadable { sample, .. }) => examples.push(sample),
            Err(error) => return Err(error),
        }
    }
    Ok(Alike { count, examples })
}
