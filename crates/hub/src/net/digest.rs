//! What proves that a file is the one the hub has: SHA-256 of a large one (LFS, xet), git's own hash of a small one.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

const PIECE: usize = 1 << 20;

/// Both hashes of a file, and its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Digests {
    pub(super) size: u64,
    pub(super) sha256: String,
    /// Of a git blob, as `git hash-object` prints it.
    pub(super) git_sha1: String,
}

impl Digests {
    /// Of a file.
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let mut hasher = Hasher::new(size);
        let mut piece = vec![0; PIECE];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(hasher.finish()),
                count => hasher.update(&piece[..count]),
            }
        }
    }
}

/// Both hashes, of bytes as they come.
pub(super) struct Hasher {
    size: u64,
    sha256: Sha256,
    git_sha1: Sha1,
}

impl Hasher {
    /// Of a file of `size` bytes; git hashes the size first.
    pub(super) fn new(size: u64) -> Self {
        let git_sha1 = Sha1::new().chain_update(format!("blob {size}\0"));
        Self { size: 0, sha256: Sha256::new(), git_sha1 }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.size += bytes.len() as u64;
        self.sha256.update(bytes);
        self.git_sha1.update(bytes);
    }

    pub(super) fn finish(self) -> Digests {
        let (sha256, git_sha1) = (hex(&self.sha256.finalize()), hex(&self.git_sha1.finalize()));
        Digests { size: self.size, sha256, git_sha1 }
    }
}

/// What a file must be, by one hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Proof {
    pub(super) size: u64,
    /// 64 hexadecimal digits of SHA-256, or 40 of git's hash; also the file's name in a cache.
    pub(super) hash: String,
}

impl Proof {
    /// Whether `text` can be such a hash, and so also the name of a file.
    pub(super) fn is_hash(text: &str) -> bool {
        matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }

    /// Whether these are the digests of the file.
    pub(super) fn holds(&self, digests: &Digests) -> bool {
        let hash = if self.hash.len() == 64 { &digests.sha256 } else { &digests.git_sha1 };
        self.size == digests.size && self.hash == *hash
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_hashes_are_those_of_git_and_of_sha256sum() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hello\n").unwrap();
        let digests = Digests::of(file.path()).unwrap();
        // printf 'hello\n' | git hash-object --stdin; printf 'hello\n' | sha256sum
        assert_eq!(digests.git_sha1, "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(digests.sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        let proof = |size, hash: &str| Proof { size, hash: hash.to_owned() };
        assert!(proof(6, &digests.git_sha1).holds(&digests) && proof(6, &digests.sha256).holds(&digests));
        assert!(!proof(7, &digests.sha256).holds(&digests) && !proof(6, &digests.sha256[..40]).holds(&digests));
        assert!(!Proof::is_hash("../../etc/passwd") && !Proof::is_hash(""));
    }
}
