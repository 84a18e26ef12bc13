//! The JSON files of a folder.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use serde_json::Value;

use crate::error::{Cause, Error};

/// A config file of diffusers has about a page; this bounds how much of a hostile one is read.
const MAX_JSON_BYTES: u64 = 1 << 20;

/// What to do about a damaged file.
pub(super) const DAMAGED: &str = "the file is damaged: download the model again";

pub(super) fn read_json(path: &Path) -> Result<Value, Error> {
    let damaged = |cause: Cause, what: &str| Error::unreadable_for(path, what, DAMAGED, cause);
    let bytes = read_limited(path).map_err(|error| damaged(error.into(), "cannot be read"))?;
    serde_json::from_slice(&bytes).map_err(|error| damaged(error.into(), "not JSON"))
}

pub(super) fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_JSON_BYTES {
        let message = format!("longer than {MAX_JSON_BYTES} bytes, so not a config");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(bytes)
}
