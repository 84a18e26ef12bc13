//! Reads a source once from end to end, and reports what a person should know before training on it.

mod alike;

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ddpm_kernels::image_size::ImageSize;
use image::ColorType;
use serde::ser::{Serialize, SerializeMap, Serializer};

pub use self::alike::Alike;
use self::alike::{duplicates, hash_of, is_near_black, named};
use crate::batch::Unreadable;
use crate::decode::{Colours, Transform, decode};
use crate::error::DataError;
use crate::fitting::{Crop, Fit, Fitting};
use crate::format::{RawImage, Source, read_each};
use crate::image_limits::ImageLimits;

/// Consecutive samples that a thread takes at a time: neighbours in a Parquet file are decoded together.
const CHUNK: usize = 64;
/// A damaged file may claim any number of samples. So many in a row that are none mean that there are no others.
const MOST_UNREADABLE_IN_A_ROW: usize = 1_000_000;

/// Names with their numbers, in an order that matters; a map in JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub Vec<(String, usize)>);

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, count) in &self.0 {
            map.serialize_entry(name, count)?;
        }
        map.end()
    }
}

/// What a source holds. Serialises to the JSON of `ddpm data inspect`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Inspection {
    /// What was read: [`Source::describe`].
    pub source: String,
    /// [`Source::fingerprint`].
    pub fingerprint: String,
    /// [`Source::notices`], and whether sizes are mixed.
    pub notices: Vec<String>,
    /// Samples in all.
    pub images: usize,
    /// Those that could be decoded.
    pub readable: usize,
    /// The others, by index.
    pub unreadable: Vec<Unreadable>,
    /// Readable images per class, in the order of the labels; empty where there are no labels.
    pub classes: Counts,
    /// Images per size ("28x28", width first), the most frequent first.
    pub sizes: Counts,
    /// Images by the length of their shorter side: "32 to 63" pixels, the smallest first.
    pub shorter_sides: Counts,
    /// Images of which 99 % is next to black.
    pub near_black: Alike,
    /// Images whose file has the same bytes as one before.
    pub duplicates: Alike,
    /// Images per file format ("png"), the most frequent first.
    pub formats: Counts,
    /// Images per colour type ("grey", "rgb", "rgba"), the most frequent first.
    pub colors: Counts,
    /// Images per colour profile other than sRGB's ("converted to sRGB", "ignored: CMYK"), the most frequent first.
    pub profiles: Counts,
    /// Encoded bytes of all readable images.
    pub bytes: u64,
    /// How long reading took.
    pub seconds: f64,
    /// Images read and decoded per second.
    pub images_per_s: f64,
    /// Threads that did it.
    pub threads: usize,
    /// The readable samples: index and label.
    #[serde(skip)]
    readable_samples: Vec<(usize, Option<u32>)>,
    #[serde(skip)]
    limits: ImageLimits,
}

/// A picture of a preview grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preview {
    /// The sample's name.
    pub id: String,
    /// The name of its class, where it has one.
    pub class: Option<String>,
    /// Pixels, `[H, W, C]`.
    pub pixels: Vec<u8>,
}

/// What one thread has seen.
#[derive(Default)]
struct Tally {
    unreadable: Vec<Unreadable>,
    /// Of them, those since the last readable one.
    in_a_row: usize,
    samples: Vec<(usize, Option<u32>)>,
    sizes: HashMap<(u32, u32), usize>,
    near_black: Vec<usize>,
    /// Hashes of the files, with the samples' indices.
    hashes: Vec<([u8; 16], usize)>,
    formats: HashMap<&'static str, usize>,
    colors: HashMap<&'static str, usize>,
    profiles: HashMap<String, usize>,
    bytes: u64,
}

/// Reads and decodes every sample of `source` with `threads` threads (0: one per core). `progress` is called now and
/// then with the number of samples done, from any of the threads.
///
/// Unreadable samples are part of the result; an error is only what ends reading altogether.
pub fn inspect(
    source: &dyn Source,
    threads: usize,
    limits: ImageLimits,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Inspection, DataError> {
    let started = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if threads == 0 { cores } else { threads }.min(source.len().div_ceil(CHUNK)).max(1);
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let tallies = std::thread::scope(|scope| {
        let run = || tally_chunks(source, limits, &next, &done, progress);
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let joined = handles.into_iter().map(|handle| match handle.join() {
            Ok(tally) => tally,
            Err(payload) => std::panic::resume_unwind(payload),
        });
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    let mut all = Tally::default();
    tallies.into_iter().for_each(|tally| all.merge(tally));
    all.into_inspection(source, limits, started.elapsed().as_secs_f64(), threads)
}

fn tally_chunks(
    source: &dyn Source,
    limits: ImageLimits,
    next: &AtomicUsize,
    done: &AtomicUsize,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Tally, DataError> {
    let mut tally = Tally::default();
    loop {
        let first = next.fetch_add(CHUNK, Ordering::Relaxed);
        let last = first.saturating_add(CHUNK).min(source.len());
        if first >= last {
            return Ok(tally);
        }
        let chunk: Vec<usize> = (first..last).collect();
        read_each(source, &chunk, |place, raw| tally.add(chunk[place], raw, limits))?;
        tally.refuse_endless_damage()?;
        progress(done.fetch_add(last - first, Ordering::Relaxed) + last - first);
    }
}

impl Tally {
    fn add(&mut self, index: usize, raw: Result<RawImage, DataError>, limits: ImageLimits) -> Result<(), DataError> {
        let raw = match raw {
            Ok(raw) => raw,
            Err(DataError::Unreadable { sample: id, reason }) => {
                self.unreadable.push(Unreadable { index, id, reason });
                self.in_a_row += 1;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        self.in_a_row = 0;
        match decode(&raw.bytes, limits) {
            Ok(decoded) => {
                *self.sizes.entry((decoded.image.width(), decoded.image.height())).or_default() += 1;
                if is_near_black(&decoded.image) {
                    self.near_black.push(index);
                }
                self.hashes.push((hash_of(&raw.bytes), index));
                *self.formats.entry(decoded.format).or_default() += 1;
                *self.colors.entry(color_name(decoded.image.color())).or_default() += 1;
                if let Some(name) = profile_name(&decoded.colours) {
                    *self.profiles.entry(name).or_default() += 1;
                }
                self.bytes += raw.bytes.len() as u64;
                self.samples.push((index, raw.label));
            }
            Err(reason) => self.unreadable.push(Unreadable { index, id: raw.id, reason }),
        }
        Ok(())
    }

    fn refuse_endless_damage(&self) -> Result<(), DataError> {
        match self.unreadable.last().filter(|_| self.in_a_row > MOST_UNREADABLE_IN_A_ROW) {
            Some(last) => Err(DataError::NothingReadable { count: self.in_a_row as u64, last: last.to_string() }),
            None => Ok(()),
        }
    }

    fn merge(&mut self, other: Self) {
        self.unreadable.extend(other.unreadable);
        self.samples.extend(other.samples);
        self.near_black.extend(other.near_black);
        self.hashes.extend(other.hashes);
        self.bytes += other.bytes;
        other.sizes.into_iter().for_each(|(size, n)| *self.sizes.entry(size).or_default() += n);
        other.formats.into_iter().for_each(|(name, n)| *self.formats.entry(name).or_default() += n);
        other.colors.into_iter().for_each(|(name, n)| *self.colors.entry(name).or_default() += n);
        other.profiles.into_iter().for_each(|(name, n)| *self.profiles.entry(name).or_default() += n);
    }

    fn into_inspection(
        mut self,
        source: &dyn Source,
        limits: ImageLimits,
        seconds: f64,
        threads: usize,
    ) -> Result<Inspection, DataError> {
        self.unreadable.sort_by_key(|sample| sample.index);
        self.samples.sort_unstable();
        self.near_black.sort_unstable();
        let images = source.len();
        Ok(Inspection {
            source: source.describe(),
            fingerprint: source.fingerprint().to_owned(),
            notices: source.notices().iter().cloned().chain(mixed_sizes(&self.sizes)).collect(),
            images,
            readable: self.samples.len(),
            unreadable: self.unreadable,
            classes: count_classes(source, &self.samples),
            shorter_sides: by_octave(&self.sizes),
            near_black: named(source, self.near_black.len(), self.near_black.iter().map(|&index| vec![index]))?,
            duplicates: duplicates(source, self.hashes)?,
            sizes: by_frequency(self.sizes.into_iter().map(|((w, h), n)| (format!("{w}x{h}"), n))),
            formats: by_frequency(self.formats.into_iter().map(|(name, n)| (name.to_owned(), n))),
            colors: by_frequency(self.colors.into_iter().map(|(name, n)| (name.to_owned(), n))),
            profiles: by_frequency(self.profiles.into_iter()),
            bytes: self.bytes,
            seconds,
            images_per_s: images as f64 / seconds.max(f64::MIN_POSITIVE),
            threads,
            readable_samples: self.samples,
            limits,
        })
    }
}

impl Inspection {
    /// Up to `num` pictures for a grid, each whole and in its own proportions: evenly spaced over the source, or over each class in
    /// turn where there are classes.
    pub fn preview(
        &self,
        source: &dyn Source,
        num: usize,
        image_size: ImageSize,
        channels: usize,
    ) -> Result<Vec<Preview>, DataError> {
        let fitting = Fitting { fit: Fit::Pad, ..Fitting::default() };
        let transform = Transform::new(0, image_size, channels, Crop::Center, fitting, false)?;
        let draw = |index| {
            let raw = source.read(index)?;
            let unreadable = |reason| DataError::Unreadable { sample: raw.id.clone(), reason };
            let decoded = decode(&raw.bytes, self.limits).map_err(unreadable)?;
            let mut pixels = vec![0; transform.image_len()];
            transform.apply(decoded, &raw.id, 0, &mut pixels)?;
            let class = raw.label.map(|label| class_name(source, label));
            Ok(Preview { id: raw.id, class, pixels })
        };
        self.choose(num).into_iter().map(draw).collect()
    }

    /// Indices of up to `num` readable samples, class after class.
    fn choose(&self, num: usize) -> Vec<usize> {
        let mut by_class = BTreeMap::<Option<u32>, Vec<usize>>::new();
        self.readable_samples.iter().for_each(|&(index, label)| by_class.entry(label).or_default().push(index));
        let classes = by_class.len();
        let chosen = by_class.values().enumerate().flat_map(|(k, members)| {
            let share = (num * (k + 1) / classes - num * k / classes).min(members.len());
            (0..share).map(move |i| members[i * members.len() / share])
        });
        chosen.collect()
    }
}

/// Images by the power of two that their shorter side has reached.
fn by_octave(sizes: &HashMap<(u32, u32), usize>) -> Counts {
    let mut octaves = BTreeMap::<u32, usize>::new();
    for (&(width, height), count) in sizes {
        *octaves.entry(width.min(height).max(1).ilog2()).or_default() += count;
    }
    let (Some(&first), Some(&last)) = (octaves.keys().next(), octaves.keys().next_back()) else {
        return Counts::default();
    };
    // What lies between is shown, also where it is empty.
    let name = |octave: u32| match octave {
        0 => "1".to_owned(),
        octave => format!("{} to {}", 1u64 << octave, (2u64 << octave) - 1),
    };
    Counts((first..=last).map(|octave| (name(octave), octaves.get(&octave).copied().unwrap_or(0))).collect())
}

fn color_name(color: ColorType) -> &'static str {
    match (color.has_color(), color.has_alpha()) {
        (false, false) => "grey",
        (false, true) => "grey and alpha",
        (true, false) => "rgb",
        (true, true) => "rgba",
    }
}

/// What a person should know about images of several sizes.
fn mixed_sizes(sizes: &HashMap<(u32, u32), usize>) -> Option<String> {
    let sides = || sizes.keys().map(|&(width, height)| width.min(height));
    let (least, most) = (sides().min()?, sides().max()?);
    (sizes.len() > 1).then(|| {
        format!(
            "images of {} sizes, whose shorter sides have {least} to {most} pixels: what is smaller than data.image_size is enlarged, \
             unless data.upscale = false; how the others are made to fit, data.fit says",
            sizes.len()
        )
    })
}

/// What becomes of a profile; nothing where it changes nothing.
fn profile_name(colours: &Colours) -> Option<String> {
    match colours {
        Colours::Srgb => None,
        Colours::Convert8(_) | Colours::Convert16(_) => Some("converted to sRGB".to_owned()),
        Colours::Ignored(profile) => Some(format!("ignored: {profile}")),
    }
}

fn class_name(source: &dyn Source, label: u32) -> String {
    let name = source.class_names().and_then(|names| names.get(label as usize));
    name.cloned().unwrap_or_else(|| label.to_string())
}

/// Every named class, also those without an image, then labels beyond the names, then what has no label.
fn count_classes(source: &dyn Source, samples: &[(usize, Option<u32>)]) -> Counts {
    if !source.has_labels() {
        return Counts::default();
    }
    let mut counts = BTreeMap::<u32, usize>::new();
    (0u32..).zip(source.class_names().unwrap_or_default()).for_each(|(label, _)| _ = counts.insert(label, 0));
    let labels = samples.iter().filter_map(|&(_, label)| label);
    labels.for_each(|label| *counts.entry(label).or_default() += 1);
    let mut named: Vec<_> = counts.into_iter().map(|(label, n)| (class_name(source, label), n)).collect();
    let unlabelled = samples.iter().filter(|(_, label)| label.is_none()).count();
    if unlabelled > 0 {
        named.push(("(no label)".into(), unlabelled));
    }
    Counts(named)
}

/// The most frequent first, then by name.
fn by_frequency(counts: impl Iterator<Item = (String, usize)>) -> Counts {
    let mut counts: Vec<_> = counts.collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    Counts(counts)
}

#[cfg(test)]
mod tests;
