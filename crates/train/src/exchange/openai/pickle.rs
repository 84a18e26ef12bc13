//! Tensors out of a file that `torch.save` wrote, through candle's reader. It knows the few instructions that build dictionaries and
//! tensors, and calls nothing: a file that would run code is refused, or the code is a name without effect.

use std::collections::HashMap;
use std::fs;
use std::io::{BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use candle_core::DType;
use candle_core::pickle::{PthTensors, TensorInfo};

use zip::ZipArchive;

use super::modest::is_modest;
use super::structure::Shapes;
use crate::error::Error;

/// What to do about a file that is no such file.
const ADVICE: &str = "expected a state_dict that torch.save wrote, with PyTorch 1.6 or later; an older or another one is made \
                      readable where it is trusted: torch.save(torch.load(FILE, map_location=\"cpu\"), NEW)";

/// The largest pickle: a model's has some hundred bytes for each tensor.
const LARGEST_PICKLE: u64 = 64 << 20;

/// An opened file.
pub(super) struct File {
    path: PathBuf,
    tensors: PthTensors,
}

impl File {
    /// Reads what tensors there are.
    ///
    /// # Errors
    /// It is no such file, or a tensor is larger than the file.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let refused = |what: String| Error::unreadable(path, what, ADVICE);
        let size = match fs::metadata(path) {
            Ok(metadata) if metadata.is_file() => metadata.len(),
            Ok(_) => return Err(refused("a directory, expected a file of PyTorch".to_owned())),
            Err(error) => return Err(Error::NotAModel { path: path.to_owned(), what: error.to_string() }),
        };
        if !is_readable(path) {
            return Err(refused(
                "it stands for a structure that no model has: deeper, or larger, than is read".to_owned(),
            ));
        }
        let tensors =
            guarded(|| PthTensors::new(path, None)).map_err(|why| refused(format!("no file of PyTorch: {why}")))?;
        if tensors.tensor_infos().is_empty() {
            return Err(refused("no tensors, expected a state_dict".to_owned()));
        }
        let is_larger = |info: &&TensorInfo| bytes_of(info).is_none_or(|bytes| bytes > size);
        if let Some(info) = tensors.tensor_infos().values().filter(is_larger).min_by_key(|info| &info.name) {
            let shape = info.layout.dims();
            return Err(refused(format!("`{}` of shape {shape:?} is larger than the file, {size} bytes", info.name)));
        }
        Ok(Self { path: path.to_owned(), tensors })
    }

    fn infos(&self) -> &HashMap<String, TensorInfo> {
        self.tensors.tensor_infos()
    }

    /// The names of all tensors, in no order.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.infos().keys()
    }

    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.infos().get(name).map(|info| info.layout.dims())
    }

    pub(super) fn shapes(&self) -> Shapes {
        self.infos().iter().map(|(name, info)| (name.clone(), info.layout.dims().to_vec())).collect()
    }

    /// A tensor's values, row-major.
    ///
    /// # Errors
    /// There is none, or it cannot be read.
    pub(super) fn values(&self, name: &str) -> Result<Vec<f32>, Error> {
        let read = || {
            let tensor = self.tensors.get(name)?.ok_or_else(|| candle_core::Error::Msg("it is missing".to_owned()))?;
            tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
        };
        guarded(read).map_err(|why| Error::unreadable(&self.path, format!("`{name}` cannot be read: {why}"), ADVICE))
    }
}

/// Whether the pickles of an archive are such that they can be read. An archive that cannot be opened is candle's to refuse.
fn is_readable(path: &Path) -> bool {
    let Some(mut archive) = fs::File::open(path).ok().and_then(|file| ZipArchive::new(BufReader::new(file)).ok())
    else {
        return true;
    };
    (0..archive.len()).all(|number| {
        let Ok(entry) = archive.by_index(number) else { return true };
        if !entry.name().is_ok_and(|name| name.ends_with("data.pkl")) {
            return true;
        }
        let mut pickle = Vec::new();
        // After an error too: candle may read all that comes before it, and never sees that a checksum is wrong.
        let _ = entry.take(LARGEST_PICKLE + 1).read_to_end(&mut pickle);
        pickle.len() as u64 <= LARGEST_PICKLE && is_modest(&pickle)
    })
}

/// The bytes up to the tensor's last value; none if no memory holds so many.
fn bytes_of(info: &TensorInfo) -> Option<u64> {
    let values = info.layout.dims().iter().try_fold(1_u64, |count, &side| count.checked_mul(side as u64))?;
    let bytes = values.checked_mul(info.dtype.size_in_bytes() as u64)?;
    bytes.checked_add(info.layout.start_offset() as u64)
}

/// Runs the reader, which panics over some damaged files.
fn guarded<T>(read: impl FnOnce() -> candle_core::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(read)) {
        Ok(read) => read.map_err(|error| error.to_string().lines().next().unwrap_or_default().to_owned()),
        Err(_) => Err("it is damaged".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_text_of_4_gib_is_refused_though_the_checksum_is_wrong_too() {
        let good = fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/openai/improved.pt")).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.pt");
        let open = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            File::open(&path).map(|file| file.names().count())
        };
        assert!(open(&good).unwrap() > 0);
        // An instruction X, the length in four bytes, the text.
        let text = good.windows(10).position(|part| part == b"time_embed").unwrap();
        let mut damaged = good.clone();
        assert_eq!((damaged[text - 5], &damaged[text - 3..text]), (b'X', &[0; 3][..]));
        damaged[text - 4..text].fill(0xFF);
        assert!(open(&damaged).unwrap_err().to_string().contains("deeper, or larger, than is read"));
    }
}
