//! What needs the network, in a program without it: the same names, each refused.

use std::path::{Path, PathBuf};

use crate::error::HubError;
use crate::name::{HubDataSet, HubModel};
use crate::parcel::{Content, DataSet, Pulled, Pushed, Target};
use crate::settings::Settings;

/// Fetches nothing.
///
/// # Errors
/// Always [`HubError::WithoutNet`].
pub fn pull(_: &HubModel, _: &[&str], _: Settings) -> Result<Pulled, HubError> {
    Err(HubError::WithoutNet)
}

/// Opens nothing.
///
/// # Errors
/// Always [`HubError::WithoutNet`].
pub fn open_data_set(_: &HubDataSet, _: Settings) -> Result<DataSet, HubError> {
    Err(HubError::WithoutNet)
}

/// A push on this disk; there is none.
#[derive(Debug)]
pub enum Spool {}

impl Spool {
    /// Makes none.
    ///
    /// # Errors
    /// Always [`HubError::WithoutNet`].
    pub fn open<E: From<HubError>>(
        _: &Path,
        _: Target,
        _: Content,
        _: impl FnOnce(&Path) -> Result<Vec<PathBuf>, E>,
    ) -> Result<Self, E> {
        Err(HubError::WithoutNet.into())
    }

    /// Whether it was there already.
    pub fn was_there(&self) -> bool {
        match *self {}
    }

    /// Where it is.
    pub fn place(&self) -> &Path {
        match *self {}
    }

    /// The folder that is to be sent.
    pub fn folder(&self) -> PathBuf {
        match *self {}
    }

    /// Its files, and the size of each.
    pub fn files(&self) -> std::iter::Empty<(&str, u64)> {
        match *self {}
    }

    /// Sends it.
    ///
    /// # Errors
    /// There is nothing to send.
    pub fn push(self, _: Settings) -> Result<Pushed, HubError> {
        match self {}
    }
}
