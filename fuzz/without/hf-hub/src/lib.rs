//! What candle-datasets names of hf-hub, to download data sets, which nothing here does: a client that there never is. The real one
//! would be more than a third of all that fuzzing compiles.

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

/// Why there is no client.
#[derive(Debug)]
pub enum HFError {
    LocalEntryNotFound {},
}

impl fmt::Display for HFError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("there is no hub here")
    }
}

impl std::error::Error for HFError {}

const NONE: HFError = HFError::LocalEntryNotFound {};

pub enum HFClientSync {}

impl HFClientSync {
    pub fn new() -> Result<Self, HFError> {
        Err(NONE)
    }

    pub fn dataset(&self, _: impl Into<String>, _: impl Into<String>) -> HFRepositorySync<RepoTypeDataset> {
        match *self {}
    }
}

pub struct RepoTypeDataset;
pub struct HFRepositorySync<T>(PhantomData<T>);

impl<T> HFRepositorySync<T> {
    pub fn download_file(&self) -> Request<PathBuf> {
        Request(PhantomData)
    }

    pub fn info(&self) -> Request<Info> {
        Request(PhantomData)
    }
}

pub struct Request<T>(PhantomData<T>);

impl<T> Clone for Request<T> {
    fn clone(&self) -> Self {
        Self(PhantomData)
    }
}

impl<T> Request<T> {
    pub fn filename(self, _: impl Into<String>) -> Self {
        self
    }

    pub fn revision(self, _: impl Into<String>) -> Self {
        self
    }

    pub fn local_files_only(self, _: bool) -> Self {
        self
    }

    pub fn send(self) -> Result<T, HFError> {
        Err(NONE)
    }
}

pub struct Info {
    pub siblings: Option<Vec<Sibling>>,
}

pub struct Sibling {
    pub rfilename: String,
}

pub fn split_id(id: &str) -> (&str, &str) {
    id.split_once('/').unwrap_or(("", id))
}
