//! Large files. The upload library cuts them into chunks and writes those to a folder (`local://`), as it would send them to
//! the hub's storage; this puts a file together again, so that a pull gets what a push really sent.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use xet::xet_session::{XetFileInfo, XetSessionBuilder};
use xet_core_structures::merklehash::MerkleHash;
use xet_core_structures::metadata_shard::MDBShardInfo;

use super::store::hex;

/// Whether such bytes were uploaded.
pub(super) fn has(folder: &Path, sha256: &str) -> bool {
    hash_of(folder, sha256).is_some()
}

/// The bytes whose SHA-256 is `sha256`. Not to be called while a push runs: the library then owns the folder.
pub(super) async fn read(folder: &Path, sha256: &str, size: u64) -> Vec<u8> {
    let hash = hash_of(folder, sha256).unwrap();
    let to = tempfile::NamedTempFile::new().unwrap();
    let session = XetSessionBuilder::new().build().unwrap();
    let group = session.new_file_download_group().unwrap();
    let group = group.with_endpoint(endpoint(folder)).build().await.unwrap();
    group.download_file_to_path(XetFileInfo::new(hash, size), to.path().to_owned()).await.unwrap();
    group.finish().await.unwrap();
    let bytes = std::fs::read(to.path()).unwrap();
    assert_eq!(hex(&Sha256::digest(&bytes)), sha256);
    bytes
}

/// Where uploads go.
pub(super) fn endpoint(folder: &Path) -> String {
    format!("local://{}", folder.display())
}

/// The storage's own name for a file, from the shards.
fn hash_of(folder: &Path, sha256: &str) -> Option<String> {
    let sha256 = MerkleHash::from_hex(sha256).ok()?;
    files(folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "mdb")).find_map(|shard| {
        let infos = MDBShardInfo::read_file_info_ranges(&mut BufReader::new(File::open(shard).ok()?)).ok()?;
        infos.into_iter().find_map(|(hash, _, _, found)| (found == Some(sha256)).then(|| hash.hex()))
    })
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}
