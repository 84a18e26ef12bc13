//! Finding and believing checkpoints: the newest one whose manifest verifies is the truth, whatever else lies around.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::manifest::{Manifest, check_size, read_small, verify_file};
use super::save::{ASIDE_PREFIX, TEMPORARY_PREFIX, move_checkpoint, remove_checkpoint};
use super::{
    CheckpointError, FORMAT_VERSION, MODEL_FILE, NamedTensor, STATE_FILE, Snapshot, State, TensorFile, parse_dir_name,
    tensors,
};
use crate::disk::sync_dir;
use crate::lock::RunLock;

/// State is a page of JSON; this bounds what a hostile one can make us read.
const MAX_STATE_BYTES: u64 = 16 << 20;

/// A checkpoint every byte of which was found as its manifest says.
#[derive(Debug)]
pub struct Checkpoint {
    /// Its directory.
    pub path: PathBuf,
    /// Where the run stood.
    pub state: State,
    manifest: Manifest,
}

impl Checkpoint {
    /// Reads and verifies the checkpoint in the directory `path`: manifest, sizes, hashes, state, tensor headers.
    ///
    /// # Errors
    /// Whatever keeps it from being a complete checkpoint of this format, naming the file.
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read(path)?;
        for entry in &manifest.files {
            verify_file(path, entry)?;
            if entry.name.ends_with(".safetensors") {
                tensors::open(&path.join(&entry.name))?;
            }
        }
        let state = read_state(path)?;
        Ok(Self { path: path.into(), state, manifest })
    }

    /// The names of its tensor files, in the order they were written.
    pub(crate) fn tensor_files(&self) -> impl Iterator<Item = &str> {
        self.manifest.files.iter().map(|entry| entry.name.as_str()).filter(|name| name.ends_with(".safetensors"))
    }

    /// Everything it holds, as it was saved.
    ///
    /// # Errors
    /// It changed since it was verified.
    pub fn snapshot(&self) -> Result<Snapshot, CheckpointError> {
        let read = |name: &str| Ok(TensorFile { name: name.to_owned(), tensors: self.tensors(name)? });
        let files = self.tensor_files().map(read).collect::<Result<_, _>>()?;
        Ok(Snapshot { files, state: self.state.clone() })
    }

    /// All tensors of `file`, in the order they were written; PyTorch's layout.
    ///
    /// # Errors
    /// The checkpoint has no such file, or it changed since it was verified.
    pub fn tensors(&self, file: &str) -> Result<Vec<NamedTensor>, CheckpointError> {
        if !self.tensor_files().any(|name| name == file) {
            let present = self.tensor_files().map(str::to_owned).collect();
            return Err(CheckpointError::NoSuchFile { path: self.path.clone(), name: file.into(), present });
        }
        tensors::read(&self.path.join(file))
    }
}

/// What a checkpoint says of itself, for whoever only compares: nothing of it is verified.
#[derive(Debug, Clone, PartialEq)]
pub struct Claims {
    /// Where the run stood.
    pub state: State,
    /// The hash of the file of the weights, where there is one.
    pub weights: Option<String>,
}

impl Claims {
    /// Reads manifest and state of the checkpoint at `path`.
    ///
    /// # Errors
    /// One of them cannot be read.
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let manifest = Manifest::read(path)?;
        let weights = manifest.entry(MODEL_FILE).map(|entry| entry.blake3.clone());
        Ok(Self { state: read_state(path)?, weights })
    }
}

/// A directory that carries a checkpoint's name but is none.
#[derive(Debug)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why it does not count.
    pub reason: CheckpointError,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is skipped: {}", self.name, self.reason)
    }
}

/// The checkpoints named in `dir`, newest first, not verified; none if there is no `dir`.
///
/// # Errors
/// `dir` cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let mut found: Vec<_> = entries(dir)?
        .into_iter()
        .filter_map(|path| Some((parse_dir_name(path.file_name()?.to_str()?)?, path)))
        .collect();
    found.sort_by_key(|(step, _)| std::cmp::Reverse(*step));
    Ok(found)
}

/// The newest checkpoint in `dir` that verifies, and the newer ones that were skipped, newest first.
///
/// # Errors
/// `dir` cannot be read. A damaged checkpoint is no error here: it is skipped.
pub fn newest_good(dir: &Path) -> Result<(Option<Checkpoint>, Vec<Skipped>), CheckpointError> {
    let mut skipped = Vec::new();
    for (_, path) in list(dir)? {
        match Checkpoint::open(&path) {
            Ok(checkpoint) => return Ok((Some(checkpoint), skipped)),
            Err(reason) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                skipped.push(Skipped { name, reason });
            }
        }
    }
    Ok((None, skipped))
}

/// Whether the manifest parses and every file has its size: a look without reading, for [`super::Retention`].
pub(super) fn looks_complete(path: &Path) -> bool {
    Manifest::read(path).is_ok_and(|manifest| manifest.files.iter().all(|entry| check_size(path, entry).is_ok()))
}

/// Gives a checkpoint that a killed save had moved aside its name again, unless its successor is whole. To be called before the
/// newest one is looked for.
///
/// # Errors
/// It cannot be put back.
pub fn put_back(dir: &Path, _held: &RunLock) -> Result<(), CheckpointError> {
    for aside in entries(dir)? {
        let name = aside.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let Some(original) = name.strip_prefix(ASIDE_PREFIX).filter(|name| parse_dir_name(name).is_some()) else {
            continue;
        };
        let original = dir.join(original);
        if Checkpoint::open(&original).is_err() && Checkpoint::open(&aside).is_ok() {
            remove_checkpoint(&original)
                .and_then(|()| move_checkpoint(&aside, &original))
                .map_err(CheckpointError::io("put back the checkpoint", &original))?;
        }
    }
    Ok(())
}

/// Removes what a killed save or deletion left in `dir` and [`put_back`] did not take, and returns the names removed. The lock is
/// asked for because the same names belong to the save in progress of the process that holds the run.
///
/// # Errors
/// Something cannot be removed.
pub fn remove_stale(dir: &Path, _held: &RunLock) -> Result<Vec<String>, CheckpointError> {
    let mut removed = Vec::new();
    for path in entries(dir)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let of_a_checkpoint = [TEMPORARY_PREFIX, ASIDE_PREFIX]
            .iter()
            .any(|prefix| name.strip_prefix(prefix).is_some_and(|name| parse_dir_name(name).is_some()));
        if of_a_checkpoint {
            remove_checkpoint(&path).map_err(CheckpointError::io("remove the leftover", &path))?;
            removed.push(name);
        }
    }
    if !removed.is_empty() {
        sync_dir(dir).map_err(CheckpointError::io("sync the directory", dir))?;
    }
    removed.sort();
    Ok(removed)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(CheckpointError::io("list the checkpoints", dir))?,
    };
    entries.map(|entry| Ok(entry.map_err(CheckpointError::io("list the checkpoints", dir))?.path())).collect()
}

fn read_state(dir: &Path) -> Result<State, CheckpointError> {
    let path = dir.join(STATE_FILE);
    let text = read_small(&path, MAX_STATE_BYTES)?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|error| CheckpointError::State { path: path.clone(), reason: format!("not a state: {error}") })?;
    if state.format_version != FORMAT_VERSION {
        return Err(CheckpointError::FormatVersion { path, found: state.format_version });
    }
    let named = dir.file_name().and_then(|name| name.to_str()).and_then(parse_dir_name);
    if let Some(step) = named.filter(|step| *step != state.step) {
        let reason = format!("step is {}, expected {step} as the directory says", state.step);
        return Err(CheckpointError::State { path, reason });
    }
    Ok(state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::testing::snapshot;
    use super::super::{MODEL_FILE, save};
    use super::*;

    #[test]
    fn no_directory_means_no_checkpoints() {
        let dir = tempfile::tempdir().unwrap();
        let (newest, skipped) = newest_good(&dir.path().join("checkpoints")).unwrap();
        assert!(newest.is_none() && skipped.is_empty());
    }

    #[test]
    fn the_newest_good_one_is_taken_and_newer_bad_ones_are_named() {
        let dir = tempfile::tempdir().unwrap();
        for step in [10, 20, 30] {
            save(dir.path(), &snapshot(step, 1.0)).unwrap();
        }
        fs::remove_file(dir.path().join("step-000000030/MANIFEST.json")).unwrap();
        fs::write(dir.path().join("step-000000040"), "a file").unwrap();
        fs::create_dir(dir.path().join("unrelated")).unwrap();
        let (newest, skipped) = newest_good(dir.path()).unwrap();
        assert_eq!(newest.unwrap().state.step, 20);
        let names: Vec<_> = skipped.iter().map(|skipped| skipped.name.as_str()).collect();
        assert_eq!(names, ["step-000000040", "step-000000030"]);
        assert!(matches!(skipped[1].reason, CheckpointError::NoManifest { .. }), "{}", skipped[1].reason);
    }

    #[test]
    fn the_claims_of_equal_weights_are_equal_and_those_of_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let weights = |step: u64, seed: f32| {
            let saved = save(dir.path(), &snapshot(step, seed)).unwrap();
            let claims = Claims::read(&saved.path).unwrap();
            assert_eq!(claims.state, snapshot(step, seed).state);
            claims.weights.unwrap()
        };
        assert_eq!(weights(10, 1.0), weights(20, 1.0));
        assert_ne!(weights(10, 1.0), weights(30, 2.0));
        assert!(matches!(Claims::read(dir.path()), Err(CheckpointError::NoManifest { .. })));
    }

    #[test]
    fn a_renamed_checkpoint_is_refused_but_a_copy_under_a_free_name_opens() {
        let dir = tempfile::tempdir().unwrap();
        let saved = save(dir.path(), &snapshot(10, 1.0)).unwrap();
        let renamed = dir.path().join("step-000000011");
        fs::rename(&saved.path, &renamed).unwrap();
        let error = Checkpoint::open(&renamed).unwrap_err();
        assert!(error.to_string().contains("step is 10, expected 11"), "{error}");
        let free = dir.path().join("best");
        fs::rename(&renamed, &free).unwrap();
        assert_eq!(Checkpoint::open(&free).unwrap().state.step, 10);
    }

    #[test]
    fn asking_for_a_file_that_is_not_there_lists_those_that_are() {
        let dir = tempfile::tempdir().unwrap();
        let saved = save(dir.path(), &snapshot(10, 1.0)).unwrap();
        let error = Checkpoint::open(&saved.path).unwrap().tensors("ema-0.9.safetensors").unwrap_err();
        assert!(
            error.to_string().ends_with("holds no ema-0.9.safetensors, only model.safetensors, optimizer.safetensors")
        );
    }

    #[test]
    fn leftovers_of_a_kill_are_removed_and_a_checkpoint_aside_is_put_back() {
        let root = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(root.path()).unwrap();
        let dir = root.path().join("checkpoints");
        fs::create_dir(&dir).unwrap();
        let aside = save(&dir, &snapshot(10, 1.0)).unwrap().path;
        fs::rename(&aside, dir.join(".old-step-000000010")).unwrap();
        let newer = save(&dir, &snapshot(20, 1.0)).unwrap().path;
        fs::create_dir(dir.join(".old-step-000000020")).unwrap();
        fs::create_dir(dir.join(".tmp-step-000000030")).unwrap();
        fs::write(dir.join(".tmp-step-000000030/model.safetensors"), "half").unwrap();
        fs::create_dir(dir.join(".tmp-mine")).unwrap();

        put_back(&dir, &lock).unwrap();
        let removed = remove_stale(&dir, &lock).unwrap();
        assert_eq!(removed, [".old-step-000000020", ".tmp-step-000000030"]);
        assert!(Checkpoint::open(&aside).unwrap().tensors(MODEL_FILE).is_ok());
        assert!(newer.exists() && dir.join(".tmp-mine").exists());
    }
}
