//! How stores are read: where copies are kept, and how long a network is waited for.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Settings of the table `data` that change no batch.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// `data.cache_dir`: the folder of indices and of copies of what came over a network; where `None`, `ddpm` in the user's
    /// cache directory.
    pub cache_dir: Option<PathBuf>,
    /// `data.cache_bytes`: what the copies may take; 0 keeps none.
    pub cache_bytes: u64,
    /// `data.retry_for`: how long a read over a network is tried again.
    pub retry_for: Duration,
    /// Once set, reading over a network ends with [`crate::DataError::Stopped`].
    pub stop: Option<Arc<AtomicBool>>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { cache_dir: None, cache_bytes: 10 << 30, retry_for: Duration::from_secs(300), stop: None }
    }
}

impl StoreOptions {
    /// Where indices and copies are kept; `None` where there is no home, and in unit tests, which leave the user's alone.
    pub(crate) fn cache_folder(&self) -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base =
            || set("XDG_CACHE_HOME").filter(|path| path.is_absolute()).or_else(|| Some(set("HOME")?.join(".cache")));
        self.cache_dir.clone().or_else(|| base().filter(|_| !cfg!(test)).map(|base| base.join("ddpm")))
    }
}
