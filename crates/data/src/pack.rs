//! Packs any source into tar shards: decoded, cut and resized once, as training would do it at every step, or as they are.
//!
//! Shard `k` holds the samples `k * n` to `(k + 1) * n` of the source, whatever was done before. So a shard that has its name is
//! done: it gets it by being renamed, after it was written, synced and read back. Another call makes those that are missing.
//! Beside each lies its index, `images-000000.index`, so that opening it over a network reads no headers. The folder gets `pack.json`,
//! which says of what and how it is made, and `classes.json`, if the classes have names.

mod record;
mod shard;

use std::fs::{self, File};
use std::io::{self, Cursor, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use ddpm_kernels::image_size::ImageSize;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde::{Deserialize, Serialize};

use self::record::{Record, claim};
use self::shard::ShardWriter;
use crate::batch::Unreadable;
use crate::decode::{Transform, decode};
use crate::error::{DataError, shown};
use crate::fitted::Fitted;
use crate::fitting::{Crop, Fitting};
use crate::format::{CLASSES_FILE, RawImage, Source, index_name, read_each, shard_index, verified_shard};
use crate::image_limits::ImageLimits;

/// What becomes of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackAs {
    /// PNGs of this size, as [`PackConfig::fitting`] says; what is cut is cut from the middle, as with `data.crop = "center"`.
    Size(ImageSize),
    /// The bytes as they are.
    Original,
}

/// How a source is packed.
#[derive(Clone, Copy, Debug)]
pub struct PackConfig {
    /// What becomes of the images.
    pub pack_as: PackAs,
    /// How images get their size; means nothing where they stay as they are.
    pub fitting: Fitting,
    /// Images of each shard; 0 chooses.
    pub shard_images: usize,
    /// Threads; 0 takes one per core.
    pub workers: usize,
    /// How large an image may be.
    pub limits: ImageLimits,
}

/// What was packed. Serialises to the JSON of `ddpm data pack`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Packed {
    /// [`Source::describe`].
    pub source: String,
    /// Shards in the folder.
    pub shards: usize,
    /// Those of them that were there already.
    pub kept: usize,
    /// Images in all shards.
    pub images: usize,
    /// Samples of the source that are in no shard, as they could not be read.
    pub skipped: usize,
    /// Those of them in shards made now.
    pub unreadable: Vec<Unreadable>,
    /// Of all shards.
    pub bytes: u64,
    /// What a person should know about how the images got their size, in shards made now.
    pub notices: Vec<String>,
}

/// Packs `source` into the folder `to`. `progress` is called with the number of samples done, from any thread.
///
/// Unreadable samples are left out and reported; an error is only what ends the work.
pub fn pack(
    source: &dyn Source,
    to: &Path,
    config: &PackConfig,
    progress: &(dyn Fn(usize) + Sync),
) -> Result<Packed, DataError> {
    if let PackAs::Size(size) = config.pack_as {
        // Checks the size before anything is written.
        Transform::new(0, size, 3, Crop::Center, config.fitting, false)?;
    }
    let (record, _held) = claim(source, to, config)?;
    if let Some(names) = source.class_names() {
        replace(&to.join(CLASSES_FILE), serde_json::json!(names).to_string().as_bytes())?;
    }
    let job = Job {
        source,
        to,
        record: &record,
        config,
        fitted: Mutex::default(),
        done: AtomicUsize::new(0),
        next: AtomicUsize::new(0),
        progress,
    };
    let shards = record.samples.div_ceil(record.shard_images);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = if config.workers == 0 { cores } else { config.workers }.min(shards);
    let parts = std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(|| job.run(shards))).collect();
        let joined = handles.into_iter().map(|handle| match handle.join() {
            Ok(part) => part,
            Err(payload) => std::panic::resume_unwind(payload),
        });
        joined.collect::<Result<Vec<_>, _>>()
    })?;
    let mut packed = Packed { source: source.describe(), shards, ..Packed::default() };
    for part in parts {
        packed.kept += part.kept;
        packed.images += part.images;
        packed.bytes += part.bytes;
        packed.unreadable.extend(part.unreadable);
    }
    packed.unreadable.sort_by_key(|sample| sample.index);
    packed.skipped = record.samples - packed.images;
    if let PackAs::Size(size) = config.pack_as {
        packed.notices = job.fitted.into_inner().unwrap_or_else(PoisonError::into_inner).notices_of_pack(size);
    }
    match packed.unreadable.last().filter(|_| packed.images == 0) {
        Some(last) => Err(DataError::NothingReadable { count: record.samples as u64, last: last.to_string() }),
        None => Ok(packed),
    }
}

/// The work of all threads.
struct Job<'a> {
    source: &'a dyn Source,
    to: &'a Path,
    record: &'a Record,
    config: &'a PackConfig,
    /// What was done to the images so far.
    fitted: Mutex<Fitted>,
    done: AtomicUsize,
    next: AtomicUsize,
    progress: &'a (dyn Fn(usize) + Sync),
}

impl Job<'_> {
    /// Makes shards until there is none left.
    fn run(&self, shards: usize) -> Result<Packed, DataError> {
        let mut packed = Packed::default();
        loop {
            let shard = self.next.fetch_add(1, Ordering::Relaxed);
            if shard >= shards {
                return Ok(packed);
            }
            let path = self.to.join(format!("images-{shard:06}.tar"));
            let range =
                shard * self.record.shard_images..((shard + 1) * self.record.shard_images).min(self.record.samples);
            let whole = verified_shard(&path).ok().flatten().and_then(|content| shard_index(&path, &content));
            let index = match whole.filter(|(images, _)| *images <= range.len()) {
                Some((images, index)) => {
                    packed.images += images;
                    packed.kept += 1;
                    self.count(range.len());
                    Some(index)
                }
                None => {
                    let (images, content) = self.make(&path, range, &mut packed.unreadable)?;
                    packed.images += images;
                    shard_index(&path, &content).map(|(_, index)| index)
                }
            };
            index.map_or(Ok(()), |index| keep_index(&path, &index))?;
            packed.bytes += fs::metadata(&path).map_err(failed("read", &path))?.len();
        }
    }

    fn count(&self, samples: usize) {
        (self.progress)(self.done.fetch_add(samples, Ordering::Relaxed) + samples);
    }

    /// Makes one shard under another name, reads it back and renames it; the number of its images, and the hash that it ends with.
    fn make(
        &self,
        path: &Path,
        range: std::ops::Range<usize>,
        unreadable: &mut Vec<Unreadable>,
    ) -> Result<(usize, blake3::Hash), DataError> {
        let beside = beside(path);
        let mut shard = ShardWriter::create(&beside)?;
        let mut images = 0;
        let indices: Vec<usize> = range.collect();
        read_each(self.source, &indices, |place, raw| {
            let index = indices[place];
            match raw.and_then(|raw| self.convert(raw)) {
                Ok((ending, bytes, label)) => {
                    shard.add(&format!("{index:09}.{ending}"), &bytes)?;
                    if let Some(label) = label {
                        shard.add(&format!("{index:09}.cls"), label.to_string().as_bytes())?;
                    }
                    images += 1;
                }
                Err(DataError::Unreadable { sample: id, reason }) => unreadable.push(Unreadable { index, id, reason }),
                Err(error) => return Err(error),
            }
            self.count(1);
            Ok(())
        })?;
        let content = shard.finish()?;
        fs::rename(&beside, path).map_err(failed("rename", &beside))?;
        Ok((images, content))
    }

    /// The ending, the bytes and the label of a sample as it is packed.
    fn convert(&self, raw: RawImage) -> Result<(&'static str, Vec<u8>, Option<u32>), DataError> {
        let decoded = match decode(&raw.bytes, self.config.limits) {
            Ok(decoded) => decoded,
            Err(reason) => return Err(DataError::Unreadable { sample: raw.id, reason }),
        };
        let PackAs::Size(size) = self.record.pack_as else {
            let ending = if decoded.format == "jpeg" { "jpg" } else { decoded.format };
            return Ok((ending, raw.bytes.to_vec(), raw.label));
        };
        // A grey image has the same pixels in one channel, unless something else lies under or around it.
        let fitting = self.config.fitting;
        let coloured = decoded.image.color().has_color() || !fitting.background.is_grey();
        let (channels, color) = if coloured { (3, ExtendedColorType::Rgb8) } else { (1, ExtendedColorType::L8) };
        let transform = Transform::new(0, size, channels, Crop::Center, fitting, false)?;
        transform.note(&mut self.fitted.lock().unwrap_or_else(PoisonError::into_inner), &decoded);
        let mut pixels = vec![0; transform.image_len()];
        transform.apply(decoded, &raw.id, 0, &mut pixels)?;
        let mut bytes = Cursor::new(Vec::new());
        match PngEncoder::new(&mut bytes).write_image(&pixels, size.width as u32, size.height as u32, color) {
            Ok(()) => Ok(("png", bytes.into_inner(), raw.label)),
            Err(error) => Err(DataError::Unreadable { sample: raw.id, reason: error.to_string() }),
        }
    }
}

/// A hidden name in the same folder.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    path.with_file_name(format!(".{name}.tmp"))
}

/// Writes the index of a shard, if it does not lie there already. Without it the shard is as good: a folder of its name is left alone.
fn keep_index(shard: &Path, index: &[u8]) -> Result<(), DataError> {
    let path = index_name(shard);
    let about = fs::metadata(&path).ok();
    if about.as_ref().is_some_and(fs::Metadata::is_dir) {
        tracing::warn!("{}: a folder lies where the index of a shard would", shown(&path.to_string_lossy()));
        return Ok(());
    }
    // What is no file, as a pipe, may have no end.
    let alike = about.is_some_and(|about| about.is_file() && about.len() == index.len() as u64);
    if alike && fs::read(&path).is_ok_and(|there| there == index) {
        return Ok(());
    }
    replace(&path, index)
}

/// Writes a small file beside its place, and renames it once its bytes are on the disk.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let beside = beside(path);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(failed("write", &beside))?;
    let renamed = fs::rename(&beside, path);
    if renamed.is_err() {
        // Nobody looks for it under this name.
        let _ = fs::remove_file(&beside);
    }
    renamed.map_err(failed("rename", &beside))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |cause| DataError::Io { action, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
