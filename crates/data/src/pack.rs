//! Packs any source into tar shards: decoded, cut and resized once, as training would do it at every step, or as they are.
//!
//! Shard `k` holds the samples `k * n` to `(k + 1) * n` of the source, whatever was done before. So a shard that has its name is
//! done: it gets it by being renamed, after it was written, synced and read back. Another call makes those that are missing.
//! Beside each lies its index, `images-000000.index`, so that opening it reads no headers. The folder gets `pack.json`, which says of
//! what and how it is made, and `classes.json`, if the classes have names.

use std::fs::{self, File, TryLockError};
use std::io::{self, BufWriter, Cursor, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use ddpm_kernels::image_size::ImageSize;
use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder};
use serde::{Deserialize, Serialize};

use crate::batch::Unreadable;
use crate::decode::{Crop, Transform, decode};
use crate::error::DataError;
use crate::fitting::Fitting;
use crate::format::{CLASSES_FILE, RawImage, Source, file_header, index_name, read_each, shard_index};
use crate::image_limits::ImageLimits;

/// What and how a folder is packed.
const RECORD: &str = "pack.json";
/// Of images at training size; larger shards are no faster to read, and smaller ones are many files.
const MAX_SHARD_IMAGES: usize = 5000;
const MIN_SHARD_IMAGES: usize = 100;
/// Shards of a source between: as many threads may work.
const SHARDS: usize = 16;
/// Headers and contents begin at multiples of it.
const BLOCK: usize = 512;
/// Of a shard, when it is read back.
const BUFFER: usize = 1 << 20;

/// What becomes of the images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PackAs {
    /// PNGs of this size, from the middle of larger images, as with `data.crop = "center"`.
    Size(ImageSize),
    /// The bytes as they are.
    Original,
}

/// How a source is packed.
#[derive(Clone, Copy, Debug)]
pub struct PackConfig {
    /// What becomes of the images.
    pub pack_as: PackAs,
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
}

/// `pack.json`: what must be the same for a folder to be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    fingerprint: String,
    samples: usize,
    shard_images: usize,
    pack_as: PackAs,
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
    let (record, _held) = claim(source, to, config)?;
    if let Some(names) = source.class_names() {
        replace(&to.join(CLASSES_FILE), serde_json::json!(names).to_string().as_bytes())?;
    }
    let job = Job {
        source,
        to,
        record: &record,
        limits: config.limits,
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
    match packed.unreadable.last().filter(|_| packed.images == 0) {
        Some(last) => Err(DataError::NothingReadable { count: record.samples as u64, last: last.to_string() }),
        None => Ok(packed),
    }
}

/// Makes the folder ours: an empty one, or one in which the same was begun. The file is the lock, which the system opens when
/// this process ends.
fn claim(source: &dyn Source, to: &Path, config: &PackConfig) -> Result<(Record, File), DataError> {
    if let PackAs::Size(size) = config.pack_as {
        // Checks the size.
        Transform::new(0, size, 3, Crop::Center, Fitting::default(), false)?;
    }
    let chosen = source.len().div_ceil(SHARDS).clamp(MIN_SHARD_IMAGES, MAX_SHARD_IMAGES);
    let record = Record {
        fingerprint: source.fingerprint().to_owned(),
        samples: source.len(),
        shard_images: if config.shard_images == 0 { chosen } else { config.shard_images },
        pack_as: config.pack_as,
    };
    let refuse = |reason: String| DataError::PackTarget { to: to.to_owned(), reason };
    fs::create_dir_all(to).map_err(failed("make the folder", to))?;
    let path = to.join(RECORD);
    match fs::read(&path) {
        // A record that a power failure took the bytes of: what is there counts if it fits.
        Ok(bytes) if bytes.is_empty() => replace(&path, serde_json::json!(record).to_string().as_bytes())?,
        Ok(bytes) => {
            let there: Record = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("{RECORD}: {e}")))?;
            if there != record {
                return Err(refuse(difference(&there, &record)));
            }
        }
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
            let mut entries = fs::read_dir(to).map_err(failed("list the folder", to))?;
            if let Some(Ok(entry)) = entries.next() {
                return Err(refuse(format!("it is not empty: {:?} is there", entry.file_name())));
            }
            replace(&path, serde_json::json!(record).to_string().as_bytes())?;
        }
        Err(cause) => return Err(DataError::Io { action: "read", path, cause }),
    }
    let file = File::open(&path).map_err(failed("open", &path))?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(refuse("another process packs into it now".to_owned())),
        // Some file systems have no locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok((record, file)),
    }
}

/// Why a folder cannot be gone on with.
fn difference(there: &Record, now: &Record) -> String {
    let what = |record: &Record| match record.pack_as {
        PackAs::Size(size) => format!("PNGs of {}", size.width_x_height()),
        PackAs::Original => "images as they are".to_owned(),
    };
    if there.fingerprint != now.fingerprint {
        return format!("it holds another source, or this one with {} samples and other content", there.samples);
    }
    let (before, after) = (what(there), what(now));
    format!("it holds {before}, {} a shard, and not {after}, {} a shard", there.shard_images, now.shard_images)
}

/// The work of all threads.
struct Job<'a> {
    source: &'a dyn Source,
    to: &'a Path,
    record: &'a Record,
    limits: ImageLimits,
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
            match shard_index(&path).filter(|(images, _)| *images <= range.len()) {
                Some((images, index)) => {
                    packed.images += images;
                    packed.kept += 1;
                    keep_index(&path, &index)?;
                    self.count(range.len());
                }
                None => {
                    packed.images += self.make(&path, range, &mut packed.unreadable)?;
                    if let Some((_, index)) = shard_index(&path) {
                        keep_index(&path, &index)?;
                    }
                }
            }
            packed.bytes += fs::metadata(&path).map_err(failed("read", &path))?.len();
        }
    }

    fn count(&self, samples: usize) {
        (self.progress)(self.done.fetch_add(samples, Ordering::Relaxed) + samples);
    }

    /// Makes one shard under another name, reads it back and renames it; the number of its images.
    fn make(
        &self,
        path: &Path,
        range: std::ops::Range<usize>,
        unreadable: &mut Vec<Unreadable>,
    ) -> Result<usize, DataError> {
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
        shard.finish()?;
        fs::rename(&beside, path).map_err(failed("rename", &beside))?;
        Ok(images)
    }

    /// The ending, the bytes and the label of a sample as it is packed.
    fn convert(&self, raw: RawImage) -> Result<(&'static str, Vec<u8>, Option<u32>), DataError> {
        let decoded = match decode(&raw.bytes, self.limits) {
            Ok(decoded) => decoded,
            Err(reason) => return Err(DataError::Unreadable { sample: raw.id, reason }),
        };
        let PackAs::Size(size) = self.record.pack_as else {
            let ending = if decoded.format == "jpeg" { "jpg" } else { decoded.format };
            return Ok((ending, raw.bytes.to_vec(), raw.label));
        };
        // A grey image has the same pixels in one channel.
        let (channels, color) =
            if decoded.image.color().has_color() { (3, ExtendedColorType::Rgb8) } else { (1, ExtendedColorType::L8) };
        let transform = Transform::new(0, size, channels, Crop::Center, Fitting::default(), false)?;
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

/// A tar file that is written, and hashed at the same time.
struct ShardWriter {
    path: PathBuf,
    file: BufWriter<File>,
    hash: blake3::Hasher,
}

impl ShardWriter {
    fn create(path: &Path) -> Result<Self, DataError> {
        let file = File::create(path).map_err(failed("write", path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::with_capacity(BUFFER, file), hash: blake3::Hasher::new() })
    }

    fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), DataError> {
        let header = file_header(name, bytes.len() as u64).ok_or_else(|| DataError::PackTarget {
            to: self.path.clone(),
            reason: format!("{name} with {} bytes does not fit into a tar file", bytes.len()),
        })?;
        self.write(&header)?;
        self.write(bytes)?;
        self.write(&[0; BLOCK][..bytes.len().next_multiple_of(BLOCK) - bytes.len()])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), DataError> {
        self.hash.update(bytes);
        self.file.write_all(bytes).map_err(failed("write", &self.path))
    }

    /// Ends the archive, and compares what is on the disk with what was written.
    fn finish(mut self) -> Result<(), DataError> {
        self.write(&[0; 2 * BLOCK])?;
        let file = self.file.into_inner().map_err(|error| failed("write", &self.path)(error.into_error()))?;
        file.sync_all().map_err(failed("write", &self.path))?;
        let mut file = File::open(&self.path).map_err(failed("open", &self.path))?;
        let (mut hash, mut buffer) = (blake3::Hasher::new(), vec![0; BUFFER]);
        loop {
            match file.read(&mut buffer).map_err(failed("read", &self.path))? {
                0 => break,
                read => _ = hash.update(&buffer[..read]),
            }
        }
        if hash.finalize() == self.hash.finalize() {
            return Ok(());
        }
        let reason = "the disk gives other bytes than were written".to_owned();
        Err(DataError::PackTarget { to: self.path, reason })
    }
}

/// Writes the index of a shard, if it does not lie there already.
fn keep_index(shard: &Path, index: &[u8]) -> Result<(), DataError> {
    let path = index_name(shard);
    if fs::read(&path).is_ok_and(|there| there == index) { Ok(()) } else { replace(&path, index) }
}

/// Writes a small file beside its place, and renames it once its bytes are on the disk.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), DataError> {
    let beside = beside(path);
    let written = File::create(&beside).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    written.map_err(failed("write", &beside))?;
    fs::rename(&beside, path).map_err(failed("rename", &beside))
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DataError {
    move |cause| DataError::Io { action, path: path.to_owned(), cause }
}

#[cfg(test)]
mod tests;
