//! safetensors files: eight bytes of header length, a JSON header, then the arrays.
//!
//! Header parsing and its checks are the `safetensors` crate's; the arrays are streamed here, because that crate wants
//! the whole file in memory to read it and cannot hash or sync while it writes.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::manifest::FileEntry;
use super::{CheckpointError, NamedTensor, TensorFile};

/// The format's own limit on headers; it keeps a hostile length from becoming an allocation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Arrays cross between f32 and little-endian bytes in pieces of this many values, whatever their size.
const CHUNK: usize = 1 << 16;

/// A writer that hashes and counts what passes through it.
pub(super) struct HashingWriter<W> {
    inner: W,
    hasher: blake3::Hasher,
    size: u64,
}

impl<W: Write> HashingWriter<W> {
    /// Around `inner`.
    pub(super) fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), size: 0 }
    }

    /// The inner writer, and the manifest entry for what was written.
    pub(super) fn finish(self, name: &str) -> (W, FileEntry) {
        let blake3 = self.hasher.finalize().to_hex().to_string();
        (self.inner, FileEntry { name: name.into(), size: self.size, blake3 })
    }
}

impl<W: Write> Write for HashingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// The header of `file`: length, JSON, padded with spaces so that the arrays start at a multiple of 8.
///
/// # Errors
/// A sentence on what contradicts itself: a repeated name, or a shape that does not hold the data.
pub fn header(file: &TensorFile) -> Result<Vec<u8>, String> {
    let mut names = HashSet::new();
    let mut offset = 0;
    let mut infos = Vec::with_capacity(file.tensors.len());
    for NamedTensor { name, shape, data } in &file.tensors {
        if !names.insert(name) {
            return Err(format!("{}: two tensors are called {name:?}", file.name));
        }
        if shape.iter().try_fold(1usize, |product, extent| product.checked_mul(*extent)) != Some(data.len()) {
            return Err(format!("{}: {name:?} has shape {shape:?} but {} values", file.name, data.len()));
        }
        let end = offset + 4 * data.len();
        infos.push((name.clone(), TensorInfo { dtype: Dtype::F32, shape: shape.clone(), data_offsets: (offset, end) }));
        offset = end;
    }
    // transformers and diffusers refuse a file whose metadata does not name its framework.
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(about), infos).map_err(|error| format!("{}: {error}", file.name))?;
    let json = serde_json::to_vec(&metadata).map_err(|error| format!("{}: {error}", file.name))?;

    let padded = json.len().next_multiple_of(8);
    let mut header = (padded as u64).to_le_bytes().to_vec();
    header.extend(json);
    header.resize(8 + padded, b' ');
    Ok(header)
}

/// Writes `header` (see [`header`]) and the arrays of `tensors`.
pub fn write(out: impl Write, header: &[u8], tensors: &[NamedTensor]) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(4 * CHUNK, out);
    out.write_all(header)?;
    let mut bytes = Vec::with_capacity(4 * CHUNK);
    for values in tensors.iter().flat_map(|tensor| tensor.data.chunks(CHUNK)) {
        bytes.clear();
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&bytes)?;
    }
    out.flush()
}

/// The whole file.
///
/// # Errors
/// As [`header`].
pub fn to_bytes(file: &TensorFile) -> Result<Vec<u8>, String> {
    let header = header(file)?;
    let mut bytes = Vec::new();
    write(&mut bytes, &header, &file.tensors).map_err(|error| format!("{}: {error}", file.name))?;
    Ok(bytes)
}

/// Reads all tensors of the file at `path`, in the order of its bytes.
pub fn read(path: &Path) -> Result<Vec<NamedTensor>, CheckpointError> {
    let (mut file, metadata) = open(path)?;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let data = read_numbers(&mut file, info.data_offsets.1 - info.data_offsets.0, f32::from_le_bytes)
            .map_err(CheckpointError::io("read the file", path))?;
        tensors.push(NamedTensor { name, shape: info.shape.clone(), data });
    }
    Ok(tensors)
}

/// Reads all tensors of a file that another program wrote: also of f16 and bf16, whose values f32 has exactly.
///
/// # Errors
/// The file is damaged, or a tensor is of another type.
pub fn read_foreign(path: &Path) -> Result<Vec<NamedTensor>, CheckpointError> {
    let (mut file, metadata) = open_any(path, &[Dtype::F32, Dtype::F16, Dtype::BF16])?;
    let mut tensors = Vec::new();
    for name in metadata.offset_keys() {
        let Some(info) = metadata.info(&name) else { continue };
        let byte_count = info.data_offsets.1 - info.data_offsets.0;
        let data = match info.dtype {
            Dtype::F16 => read_numbers(&mut file, byte_count, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => read_numbers(&mut file, byte_count, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            _ => read_numbers(&mut file, byte_count, f32::from_le_bytes),
        };
        let data = data.map_err(CheckpointError::io("read the file", path))?;
        tensors.push(NamedTensor { name, shape: info.shape.clone(), data });
    }
    Ok(tensors)
}

/// Opens the file at `path`, checks that header and length agree and that every tensor is f32; the arrays come next.
pub(super) fn open(path: &Path) -> Result<(BufReader<File>, Metadata), CheckpointError> {
    open_any(path, &[Dtype::F32])
}

fn open_any(path: &Path, types: &[Dtype]) -> Result<(BufReader<File>, Metadata), CheckpointError> {
    let damaged = |reason: String| CheckpointError::Tensors { path: path.into(), reason };
    let read_error = || CheckpointError::io("read the file", path);

    let file = File::open(path).map_err(read_error())?;
    let size = file.metadata().map_err(read_error())?.len();
    let mut file = BufReader::with_capacity(4 * CHUNK, file);
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(|_| damaged(format!("{size} bytes, too short for a safetensors file")))?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > size.saturating_sub(8) {
        return Err(damaged(format!("a header of {length} bytes is announced in a file of {size}")));
    }
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header).map_err(read_error())?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| damaged(format!("header cannot be read: {error}")))?;

    let announced = metadata.data_len() as u64;
    let present = size - 8 - length;
    if announced != present {
        return Err(damaged(format!("{present} bytes of tensors, expected {announced}")));
    }
    if let Some((name, info)) = metadata.tensors().into_iter().find(|(_, info)| !types.contains(&info.dtype)) {
        let types: Vec<_> = types.iter().map(Dtype::to_string).collect();
        return Err(damaged(format!("{name:?} is {}, expected {}", info.dtype, types.join(" or "))));
    }
    Ok((file, metadata))
}

/// Numbers of `N` bytes each.
fn read_numbers<const N: usize>(
    file: &mut impl Read,
    byte_count: usize,
    number: impl Fn([u8; N]) -> f32,
) -> io::Result<Vec<f32>> {
    let mut values = Vec::with_capacity(byte_count / N);
    let mut bytes = vec![0; byte_count.min(N * CHUNK)];
    let mut left = byte_count;
    while left > 0 {
        let piece = &mut bytes[..left.min(N * CHUNK)];
        file.read_exact(piece)?;
        values.extend(piece.as_chunks::<N>().0.iter().map(|bytes| number(*bytes)));
        left -= piece.len();
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::snapshot;
    use super::*;

    fn file_of(tensors: Vec<NamedTensor>) -> TensorFile {
        TensorFile { name: "model.safetensors".into(), tensors }
    }

    #[test]
    fn the_safetensors_crate_reads_what_is_written() {
        let file = snapshot(1, 0.5).files.remove(0);
        let mut bytes = Vec::new();
        write(&mut bytes, &header(&file).unwrap(), &file.tensors).unwrap();
        let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(read.len(), 2);
        let weight = read.tensor("conv_in.weight").unwrap();
        assert_eq!((weight.dtype(), weight.shape()), (Dtype::F32, [2, 1, 3, 3].as_slice()));
        let expected: Vec<u8> = file.tensors[0].data.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert_eq!(weight.data(), expected);
        let (header_len, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        assert_eq!(header_len % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }

    #[test]
    fn arrays_longer_than_a_chunk_come_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut data: Vec<f32> = (0..2 * CHUNK + 3).map(|i| (i as f32).sin()).collect();
        data[5] = f32::NAN;
        data[6] = -0.0;
        let file = file_of(vec![NamedTensor { name: "w".into(), shape: vec![data.len()], data }]);
        write(File::create(&path).unwrap(), &header(&file).unwrap(), &file.tensors).unwrap();
        let bits = |tensors: &[NamedTensor]| tensors[0].data.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&read(&path).unwrap()), bits(&file.tensors));
    }

    #[test]
    fn numbers_of_16_bits_are_read_exactly() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("half.safetensors");
        // 1.5, -2 and the smallest number above zero, in f16; 1.5 and -2 in bf16.
        let [f16, bf16] = [[0x00, 0x3E, 0x00, 0xC0, 0x01, 0x00].as_slice(), &[0xC0, 0x3F, 0x00, 0xC0]];
        let view = |dtype, bytes: &'static [u8]| {
            safetensors::tensor::TensorView::new(dtype, vec![bytes.len() / 2], bytes).unwrap()
        };
        let tensors = [("a", view(Dtype::F16, f16)), ("b", view(Dtype::BF16, bf16))];
        std::fs::write(&path, safetensors::serialize(tensors, None).unwrap()).unwrap();
        let mut found = read_foreign(&path).unwrap();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found[0].data, [1.5, -2.0, 2.0_f32.powi(-24)]);
        assert_eq!(found[1].data, [1.5, -2.0]);
        assert!(read(&path).unwrap_err().to_string().contains("expected F32"), "a checkpoint of ours has f32");
    }

    #[test]
    fn a_repeated_name_or_a_wrong_shape_is_refused_before_anything_is_written() {
        let tensor = |shape: Vec<usize>| NamedTensor { name: "w".into(), shape, data: vec![0.0; 2] };
        assert!(header(&file_of(vec![tensor(vec![2]), tensor(vec![2])])).unwrap_err().contains("two tensors"));
        assert!(header(&file_of(vec![tensor(vec![3])])).unwrap_err().contains("shape [3] but 2 values"));
        assert!(header(&file_of(vec![tensor(vec![usize::MAX, 2])])).is_err());
    }

    #[test]
    fn a_full_disk_is_an_error_of_its_kind() {
        let file = snapshot(1, 0.5).files.remove(0);
        let error = write(File::create("/dev/full").unwrap(), &header(&file).unwrap(), &file.tensors).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }
}
