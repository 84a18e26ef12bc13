//! `hf://datasets/owner/name`: which files a data set has at one commit. They are not pulled: whoever reads them asks for pieces.

use super::client::Hub;
use crate::error::HubError;
use crate::name::HubDataSet;
use crate::parcel::{DataSet, DataSetFile};
use crate::settings::Settings;

/// Asks for the commit of the revision and for its files.
///
/// # Errors
/// The hub does not have it, or cannot be asked.
pub fn open_data_set(name: &HubDataSet, settings: Settings) -> Result<DataSet, HubError> {
    let bearer = settings.token.as_ref().map(|token| token.secret().to_owned());
    let hub = Hub::of_data_set(settings, name.repo.clone())?;
    let (commit, tree) = hub.block_on(async {
        let commit = hub.head(&name.revision).await?.commit;
        let tree = hub.tree(&commit).await?;
        Ok((commit, tree))
    })?;
    let url = hub.url(&["datasets", name.repo.owner(), name.repo.name(), "resolve", &commit])?.to_string();
    let file = |(path, proof): (String, super::digest::Proof)| DataSetFile { path, size: proof.size, hash: proof.hash };
    Ok(DataSet { commit, url, bearer, files: tree.into_iter().map(file).collect() })
}
