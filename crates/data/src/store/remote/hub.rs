//! A data set of the Hugging Face hub: one commit, whose files `ddpm-hub` lists and the web client reads.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};

use ddpm_hub::{DataSet, HubDataSet, HubError, Settings, open_data_set};

use super::fetch::{LOOK_UP, Patience};
use super::version_of;
use crate::error::{DataError, Refusal};
use crate::store::address::{Address, Scheme};
use crate::store::{FileInfo, StoreError};

/// See [`open`].
pub(super) struct Opened {
    /// Where the files are read, without the path in the data set.
    pub(super) root: String,
    pub(super) bearer: Option<String>,
    /// Those below the path, relative to it.
    pub(super) files: Vec<FileInfo>,
}

/// Asks the hub what the data set has.
pub(super) fn open(address: &Address, patience: &Patience) -> Result<Opened, DataError> {
    let place = || PathBuf::from(address.place());
    let refused = |reason| DataError::Refused { place: place(), refusal: Refusal::Other(reason) };
    let name: HubDataSet = address.root.parse().map_err(refused)?;
    let failed = |error: HubError| match error {
        error if error.is_absence() && !matches!(error, HubError::Offline { .. }) => {
            DataError::Unavailable { place: place(), reason: error.to_string() }
        }
        error => {
            let refusal = Refusal::Hub { what: error.to_string(), help: error.help() };
            DataError::Refused { place: place(), refusal }
        }
    };
    let settings = Settings::from_environment().map_err(failed)?;
    // On a thread of its own, which is left behind where the run is to stop: the hub may be silent for minutes.
    let (send, receive) = channel();
    let ask = move || _ = send.send(open_data_set(&name, settings));
    std::thread::Builder::new().name("hub".into()).spawn(ask).map_err(|error| refused(error.to_string()))?;
    let DataSet { url, bearer, files, .. } = loop {
        match receive.recv_timeout(LOOK_UP) {
            Ok(answer) => break answer.map_err(failed)?,
            Err(RecvTimeoutError::Timeout) if patience.is_over() => return Err(StoreError::Stopped.into()),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(refused("the hub's client has failed".to_owned())),
        }
    };
    let below = format!("{}/", address.path);
    let relative = |path: String| match address.path.as_str() {
        "" => Some(path),
        _ => path.strip_prefix(&below).map(str::to_owned),
    };
    let file = |file: ddpm_hub::DataSetFile| {
        let name = relative(file.path).filter(|name| !name.split('/').any(|part| part.starts_with('.')))?;
        Some(FileInfo { name: name.into(), size: file.size, version: version_of(&file.hash) })
    };
    Ok(Opened { root: url, bearer, files: files.into_iter().filter_map(file).collect() })
}

impl Opened {
    /// The address that the client is made for.
    pub(super) fn address(&self, address: &Address) -> Address {
        address.served_at(Scheme::Hub, &self.root)
    }
}
