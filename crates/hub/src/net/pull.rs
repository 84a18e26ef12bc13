//! `hf://owner/name`: a model of the hub, on this disk.
//!
//! The cache is huggingface_hub's own, so that Python finds what was pulled here and the other way round:
//! ```text
//! models--owner--name/
//!   blobs/HASH                       a file under the hash that the hub has for it
//!   snapshots/COMMIT/unet/...        links to blobs
//!   refs/main                        the commit that `main` was when it was last asked
//! ```
//! A blob gets its name after its length and hash were checked, and is checked again whenever it is used: another program that
//! writes there may have been interrupted.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ddpm_run::disk::sync_dir;
use ddpm_run::durable::{parent_of, replace_file};
use ddpm_run::memory::format_bytes;
use reqwest::Method;

use super::client::Hub;
use super::convert::disk;
use super::digest::{Digests, Hasher, Proof};
use crate::error::HubError;
use crate::name::{HubModel, SCHEME, is_commit};
use crate::parcel::Pulled;
use crate::settings::Settings;

/// How often a damaged file is fetched.
const ATTEMPTS: usize = 3;
/// How the names of weights end.
const WEIGHTS: &str = ".safetensors";

/// Fetches those of the `wanted` files, weights among them, that the model has and the cache lacks, and checks all of
/// them; says what takes time.
///
/// # Errors
/// The hub does not have it, or it has no weights (`.safetensors`) among those files.
pub fn pull(model: &HubModel, wanted: &[&str], settings: Settings) -> Result<Pulled, HubError> {
    let cache = Cache::new(&settings.cache, model);
    if settings.offline {
        let offline = HubError::Offline { doing: format!("looking for {model}") };
        return cache.latest(model, wanted)?.ok_or_else(|| cache.missing(offline));
    }
    // A copy that is damaged is mended below.
    if model.revision.is_commit()
        && let Ok(Some(pulled)) = cache.latest(model, wanted)
    {
        return Ok(pulled);
    }
    let hub = Hub::new(settings, model.repo.clone())?;
    match fetch(&hub, model, wanted, &cache) {
        Err(error) if error.is_absence() => {
            let Some(pulled) = cache.latest(model, wanted)? else { return Err(cache.missing(error)) };
            tracing::info!(model = pulled.name, "{error}: taking {} from the cache", pulled.name);
            Ok(pulled)
        }
        fetched => fetched,
    }
}

fn fetch(hub: &Hub, model: &HubModel, wanted: &[&str], cache: &Cache) -> Result<Pulled, HubError> {
    let (commit, tree) = hub.block_on(async {
        let commit = hub.head(&model.revision).await?.commit;
        let tree = hub.tree(&commit).await?;
        Ok((commit, tree))
    })?;
    let files: BTreeMap<_, _> = tree.iter().filter(|(path, _)| wanted.contains(&path.as_str())).collect();
    if !files.keys().any(|path| path.ends_with(WEIGHTS)) {
        return Err(HubError::NoWeights { model: model.to_string(), files: tree.into_keys().collect() });
    }
    let missing: Vec<_> = files.iter().filter(|(_, proof)| !cache.holds(proof)).collect();
    if !missing.is_empty() {
        let (files, bytes) = (missing.len(), missing.iter().map(|(_, proof)| proof.size).sum());
        tracing::info!(%model, files, bytes, "{model}: fetching {files} files, {}", format_bytes(bytes));
    }
    for (path, proof) in missing {
        cache.fetch(hub, &commit, path, proof)?;
    }
    cache.link(model, &commit, &files)
}

/// The place of one repository in the cache.
struct Cache {
    root: PathBuf,
    repo: String,
}

impl Cache {
    fn new(cache: &Path, model: &HubModel) -> Self {
        Self { root: cache.join(format!("models--{}", model.repo.folder())), repo: model.repo.to_string() }
    }

    fn blob(&self, proof: &Proof) -> PathBuf {
        self.root.join("blobs").join(&proof.hash)
    }

    fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// Whether the blob is there and undamaged.
    fn holds(&self, proof: &Proof) -> bool {
        let path = self.blob(proof);
        path.is_file() && Digests::of(&path).is_ok_and(|digests| proof.holds(&digests))
    }

    /// Fetches one file, in several attempts if need be. A damaged one is not kept.
    fn fetch(&self, hub: &Hub, commit: &str, path: &str, proof: &Proof) -> Result<(), HubError> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs).map_err(disk("made", &blobs))?;
        let temporary = blobs.join(format!("{}.{}.incomplete", proof.hash, std::process::id()));
        let mut fetched = Ok(());
        for _ in 0..ATTEMPTS {
            fetched = hub.block_on(hub.download(commit, path, proof, &temporary));
            if !matches!(&fetched, Err(error) if error.is_passing() || matches!(error, HubError::Damaged { .. })) {
                break;
            }
        }
        let blob = self.blob(proof);
        let kept = fetched.and_then(|()| {
            fs::rename(&temporary, &blob).and_then(|()| sync_dir(&blobs)).map_err(disk("written", &blob))
        });
        if kept.is_err() {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
        }
        kept
    }

    /// The snapshot of a commit whose blobs are all there. The weights are linked last: where they are, all files are.
    fn link(&self, model: &HubModel, commit: &str, files: &BTreeMap<&String, &Proof>) -> Result<Pulled, HubError> {
        let snapshot = self.snapshot(commit);
        let mut order: Vec<_> = files.iter().collect();
        order.sort_by_key(|(path, _)| path.ends_with(WEIGHTS));
        for (path, proof) in order {
            let link = snapshot.join(path);
            let folder = parent_of(&link);
            fs::create_dir_all(folder).map_err(disk("made", folder))?;
            let up = "../".repeat(2 + path.matches('/').count());
            let target = PathBuf::from(format!("{up}blobs/{}", proof.hash));
            if fs::read_link(&link).is_ok_and(|there| there == target) {
                continue;
            }
            let temporary = link.with_extension(format!("{}.incomplete", std::process::id()));
            let linked = symlink(&target, &temporary).and_then(|()| fs::rename(&temporary, &link));
            linked.map_err(disk("linked", &link))?;
        }
        if !model.revision.is_commit() {
            let path = self.reference(model);
            let folder = parent_of(&path);
            fs::create_dir_all(folder).map_err(disk("made", folder))?;
            replace_file(&path, commit.as_bytes()).map_err(disk("written", &path))?;
        }
        Ok(self.pulled(commit))
    }

    fn reference(&self, model: &HubModel) -> PathBuf {
        self.root.join("refs").join(model.revision.as_str())
    }

    /// What the revision was when the hub was last asked; nothing if it never was.
    fn recorded_commit(&self, model: &HubModel) -> Result<String, HubError> {
        let path = self.reference(model);
        match fs::read_to_string(&path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
            Err(error) => Err(disk("read", &path)(error)),
        }
    }

    fn pulled(&self, commit: &str) -> Pulled {
        Pulled { folder: self.snapshot(commit), name: format!("{}{}@{commit}", SCHEME, self.repo) }
    }

    /// The newest snapshot of the revision that is here, checked; none if there is none with weights.
    fn latest(&self, model: &HubModel, wanted: &[&str]) -> Result<Option<Pulled>, HubError> {
        let commit = if model.revision.is_commit() { model.revision.to_string() } else { self.recorded_commit(model)? };
        let snapshot = self.snapshot(&commit);
        let found: Vec<_> = wanted.iter().map(|file| snapshot.join(file)).filter(|path| path.is_file()).collect();
        if !is_commit(&commit) || !found.iter().any(|path| path.extension().is_some_and(|end| end == "safetensors")) {
            return Ok(None);
        }
        found.iter().try_for_each(|path| check_link(path))?;
        Ok(Some(self.pulled(&commit)))
    }

    /// The error for a model that neither the hub nor the cache has.
    fn missing(&self, error: HubError) -> HubError {
        HubError::NotInCache { error: Box::new(error), place: self.root.clone() }
    }
}

/// Checks a file of a snapshot by the name of the blob that it links to.
fn check_link(link: &Path) -> Result<(), HubError> {
    let target = fs::read_link(link).ok();
    let name = target.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    // A cache without links, as huggingface_hub makes it where there are none, has nothing to check by.
    let Some(hash) = name.filter(|name| Proof::is_hash(name)) else { return Ok(()) };
    let digests = Digests::of(link).map_err(disk("read", link))?;
    let proof = Proof { size: digests.size, hash: hash.to_owned() };
    if proof.holds(&digests) {
        return Ok(());
    }
    Err(HubError::Damaged {
        file: link.display().to_string(),
        found: format!("{} bytes of another hash", digests.size),
        expected: hash.to_owned(),
    })
}

impl Hub {
    /// Fetches a file of a commit into `to`, and proves it.
    async fn download(&self, commit: &str, path: &str, proof: &Proof, to: &Path) -> Result<(), HubError> {
        let doing = format!("fetching {path} of {}", self.repo);
        let segments: Vec<_> =
            [self.repo.owner(), self.repo.name(), "resolve", commit].into_iter().chain(path.split('/')).collect();
        let url = self.url(&segments)?;
        let mut response = self.patiently(|| self.send(&doing, self.request(Method::GET, url.clone()))).await?;
        let mut file = File::create(to).map_err(disk("written", to))?;
        let mut hasher = Hasher::new(proof.size);
        let lost = |error| HubError::of_request(&doing, error, self.settings.timeout);
        let mut received = 0;
        while let Some(piece) = response.chunk().await.map_err(lost)? {
            received += piece.len() as u64;
            if received > proof.size {
                break;
            }
            hasher.update(&piece);
            file.write_all(&piece).map_err(disk("written", to))?;
        }
        file.sync_all().map_err(disk("written", to))?;
        let digests = hasher.finish();
        if received == proof.size && proof.holds(&digests) {
            return Ok(());
        }
        let file = format!("{path} of {}", self.repo);
        let (found, expected) = match received.cmp(&proof.size) {
            std::cmp::Ordering::Less => (format!("{received} bytes came"), format!("{}", proof.size)),
            std::cmp::Ordering::Greater => ("more bytes came than announced".to_owned(), format!("{}", proof.size)),
            std::cmp::Ordering::Equal => ("bytes of another hash came".to_owned(), proof.hash.clone()),
        };
        Err(HubError::Damaged { file, found, expected })
    }
}
