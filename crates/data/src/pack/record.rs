//! `pack.json`: what a folder is packed from and how. Only the same is gone on with.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{PackAs, PackConfig, failed, replace};
use crate::error::DataError;
use crate::fitting::{Background, Fit, Fitting};
use crate::format::Source;

/// What and how a folder is packed.
pub(super) const NAME: &str = "pack.json";
/// Of images at training size; larger shards are no faster to read, and smaller ones are many files.
const MAX_SHARD_IMAGES: usize = 5000;
const MIN_SHARD_IMAGES: usize = 100;
/// Shards of a source between: as many threads may work.
const SHARDS: usize = 16;
/// How shards are made: another number once the same image gives other pixels (by decoding, colours or resampling), or a shard other
/// files.
const MADE: u32 = 2;

/// What must be the same for a folder to be gone on with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    fingerprint: String,
    pub(super) samples: usize,
    pub(super) shard_images: usize,
    pub(super) pack_as: PackAs,
    /// Older versions did not write it.
    how: Option<How>,
}

/// What decides on pixels, and on which images there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct How {
    made: u32,
    fit: Fit,
    upscale: bool,
    background: Background,
    max_pixels: u64,
    max_bytes: u64,
}

impl Record {
    fn new(source: &dyn Source, config: &PackConfig) -> Self {
        let chosen = source.len().div_ceil(SHARDS).clamp(MIN_SHARD_IMAGES, MAX_SHARD_IMAGES);
        // Bytes that stay as they are are not fitted.
        let fits = matches!(config.pack_as, PackAs::Size(_));
        let Fitting { fit, upscale, background } = if fits { config.fitting } else { Fitting::default() };
        let (max_pixels, max_bytes) = (config.limits.max_pixels, config.limits.max_bytes);
        Self {
            fingerprint: source.fingerprint().to_owned(),
            samples: source.len(),
            shard_images: if config.shard_images == 0 { chosen } else { config.shard_images },
            pack_as: config.pack_as,
            how: Some(How { made: MADE, fit, upscale, background, max_pixels, max_bytes }),
        }
    }

    /// Why a folder with this record cannot be gone on with as `now`.
    fn difference(&self, now: &Self) -> String {
        let what = |record: &Self| match record.pack_as {
            PackAs::Size(size) => format!("PNGs of {}", size.width_x_height()),
            PackAs::Original => "images as they are".to_owned(),
        };
        if self.fingerprint != now.fingerprint {
            return format!("it holds another source, or this one with {} samples and other content", self.samples);
        }
        if (self.pack_as, self.shard_images) != (now.pack_as, now.shard_images) {
            let (before, after) = (what(self), what(now));
            return format!(
                "it holds {before}, {} a shard, and not {after}, {} a shard",
                self.shard_images, now.shard_images
            );
        }
        match (&self.how, &now.how) {
            (Some(before), Some(after)) if before.made == after.made => {
                let options = before.options().into_iter().zip(after.options());
                let differ = options.filter(|(before, after)| before != after);
                let said = differ.map(|((name, before), (_, after))| format!("{name} = {before} and not {after}"));
                format!("it was packed with {}", said.collect::<Vec<_>>().join(", "))
            }
            _ => "it was packed by another version, which makes shards in another way, or did not write how".to_owned(),
        }
    }
}

impl How {
    fn options(&self) -> [(&'static str, String); 5] {
        let word =
            |value: serde_json::Value| value.as_str().filter(|text| !text.is_empty()).unwrap_or("none").to_owned();
        [
            ("fit", word(serde_json::json!(self.fit))),
            ("upscale", self.upscale.to_string()),
            ("background", word(serde_json::json!(self.background))),
            ("max_pixels", self.max_pixels.to_string()),
            ("max_bytes", self.max_bytes.to_string()),
        ]
    }
}

/// Makes the folder ours: an empty one, or one in which the same was begun. The file is the lock, which the system opens when
/// this process ends.
pub(super) fn claim(source: &dyn Source, to: &Path, config: &PackConfig) -> Result<(Record, File), DataError> {
    let record = Record::new(source, config);
    let refuse = |reason: String| DataError::PackTarget { to: to.to_owned(), reason };
    fs::create_dir_all(to).map_err(failed("make the folder", to))?;
    let path = to.join(NAME);
    match fs::read(&path) {
        // A record that a power failure took the bytes of: what is there counts if it fits.
        Ok(bytes) if bytes.is_empty() => replace(&path, serde_json::json!(record).to_string().as_bytes())?,
        Ok(bytes) => {
            let there: Record = serde_json::from_slice(&bytes).map_err(|e| refuse(format!("{NAME}: {e}")))?;
            if there != record {
                return Err(refuse(there.difference(&record)));
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
