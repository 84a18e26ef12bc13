//! Damaged or manipulated checkpoints: each is refused with an error that names the file.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use super::manifest::{FileEntry, Manifest};
use super::testing::snapshot;
use super::{Checkpoint, CheckpointError, FORMAT_VERSION, MANIFEST_FILE, MODEL_FILE, STATE_FILE, newest_good, save};

/// A good checkpoint in a directory of its own.
struct Victim {
    root: tempfile::TempDir,
    path: PathBuf,
}

impl Victim {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let path = save(root.path(), &snapshot(10, 1.0)).unwrap().path;
        Self { root, path }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The error of opening it, which also makes it skipped.
    fn refusal(&self) -> CheckpointError {
        let (newest, skipped) = newest_good(self.root.path()).unwrap();
        assert!(newest.is_none() && skipped.len() == 1);
        let error = Checkpoint::open(&self.path).unwrap_err();
        assert_eq!(error.to_string(), skipped[0].reason.to_string());
        assert!(!error.help().is_empty());
        error
    }

    /// Replaces a file and makes the manifest agree, as an attacker would.
    fn forge(&self, name: &str, bytes: &[u8]) {
        fs::write(self.file(name), bytes).unwrap();
        let mut manifest = Manifest::read(&self.path).unwrap();
        manifest.files.retain(|entry| entry.name != name);
        let blake3 = blake3::hash(bytes).to_hex().to_string();
        manifest.files.push(FileEntry { name: name.into(), size: bytes.len() as u64, blake3 });
        self.write_manifest(&manifest);
    }

    fn write_manifest(&self, manifest: &Manifest) {
        fs::write(self.file(MANIFEST_FILE), manifest.to_json().unwrap()).unwrap();
    }
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn every_flipped_bit_of_every_file_is_noticed() {
    let victim = Victim::new();
    for path in all_files(&victim.path) {
        let good = fs::read(&path).unwrap();
        for position in 0..good.len() {
            let mut bad = good.clone();
            bad[position] ^= 1 << (position % 8);
            fs::write(&path, &bad).unwrap();
            assert!(Checkpoint::open(&victim.path).is_err(), "{}: byte {position}", path.display());
        }
        fs::write(&path, &good).unwrap();
    }
    Checkpoint::open(&victim.path).unwrap();
}

#[test]
fn every_truncation_and_every_extra_byte_of_every_file_is_noticed() {
    let victim = Victim::new();
    for path in all_files(&victim.path) {
        let good = fs::read(&path).unwrap();
        for length in 0..good.len() {
            fs::write(&path, &good[..length]).unwrap();
            assert!(Checkpoint::open(&victim.path).is_err(), "{}: cut to {length}", path.display());
        }
        fs::write(&path, [&good[..], b"x"].concat()).unwrap();
        assert!(Checkpoint::open(&victim.path).is_err(), "{}: one byte more", path.display());
        fs::write(&path, &good).unwrap();
    }
    Checkpoint::open(&victim.path).unwrap();
}

#[test]
fn a_missing_file_is_named() {
    let victim = Victim::new();
    fs::remove_file(victim.file(MODEL_FILE)).unwrap();
    assert!(matches!(victim.refusal(), CheckpointError::MissingFile { path } if path.ends_with(MODEL_FILE)));
}

#[test]
fn a_missing_manifest_means_no_checkpoint() {
    let victim = Victim::new();
    fs::remove_file(victim.file(MANIFEST_FILE)).unwrap();
    assert!(matches!(victim.refusal(), CheckpointError::NoManifest { .. }));
}

#[test]
fn a_directory_or_a_link_in_place_of_a_file_is_refused() {
    for name in [MODEL_FILE, STATE_FILE, MANIFEST_FILE] {
        let victim = Victim::new();
        let elsewhere = victim.root.path().join("elsewhere");
        fs::rename(victim.file(name), &elsewhere).unwrap();
        fs::create_dir(victim.file(name)).unwrap();
        assert!(matches!(victim.refusal(), CheckpointError::NotAFile { path } if path.ends_with(name)));
        fs::remove_dir(victim.file(name)).unwrap();
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&elsewhere, victim.file(name)).unwrap();
            assert!(matches!(victim.refusal(), CheckpointError::NotAFile { path } if path.ends_with(name)));
        }
    }
}

#[test]
fn a_manifest_that_leads_out_of_the_checkpoint_is_refused() {
    for name in ["../step-000000010/model.safetensors", "/etc/passwd", "..", "", ".hidden", "a\\b", "a\0b", "a/b"] {
        let victim = Victim::new();
        let mut manifest = Manifest::read(&victim.path).unwrap();
        manifest.files[0].name = name.into();
        victim.write_manifest(&manifest);
        let error = victim.refusal();
        assert!(error.to_string().contains("is not a plain file name"), "{name:?}: {error}");
    }
}

#[test]
fn a_manifest_that_lists_twice_or_itself_or_no_state_is_refused() {
    let good = Manifest::read(&Victim::new().path).unwrap();
    let mut twice = good.clone();
    twice.files.push(good.files[0].clone());
    let mut itself = good.clone();
    itself.files[0].name = MANIFEST_FILE.into();
    let mut stateless = good;
    stateless.files.retain(|entry| entry.name != STATE_FILE);
    let cases = [(twice, "twice"), (itself, "cannot list itself"), (stateless, "lists no state.json")];
    for (manifest, expected) in cases {
        let victim = Victim::new();
        victim.write_manifest(&manifest);
        let error = victim.refusal();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn a_manifest_that_is_no_manifest_is_refused() {
    let deep = "[".repeat(100_000);
    let extra = format!(r#"{{"format_version": {FORMAT_VERSION}, "files": [], "more": 1}}"#);
    let repeated =
        format!(r#"{{"format_version": {FORMAT_VERSION}, "format_version": {FORMAT_VERSION}, "files": []}}"#);
    let negative = format!(
        r#"{{"format_version": {FORMAT_VERSION}, "files": [{{"name": "state.json", "size": -1, "blake3": ""}}]}}"#
    );
    for text in ["", "null", "{}", "\u{0}", deep.as_str(), extra.as_str(), repeated.as_str(), negative.as_str()] {
        let victim = Victim::new();
        fs::write(victim.file(MANIFEST_FILE), text).unwrap();
        let error = victim.refusal();
        assert!(error.to_string().contains("not a manifest"), "{error}");
    }
}

#[test]
fn an_enormous_manifest_is_not_read() {
    let victim = Victim::new();
    fs::File::options().write(true).open(victim.file(MANIFEST_FILE)).unwrap().set_len(1 << 40).unwrap();
    assert!(matches!(victim.refusal(), CheckpointError::Size { .. }));
}

#[test]
fn another_format_version_is_told_from_damage() {
    let victim = Victim::new();
    fs::write(victim.file(MANIFEST_FILE), r#"{"format_version": 99, "anything": []}"#).unwrap();
    let error = victim.refusal();
    assert!(matches!(error, CheckpointError::FormatVersion { found: 99, .. }), "{error}");
    assert!(error.help().contains("newer ddpm"));
}

#[test]
fn a_forged_tensor_file_is_refused_whatever_its_header_says() {
    let header = |json: &str| [&(json.len() as u64).to_le_bytes()[..], json.as_bytes()].concat();
    let tensor = |offsets: &str, shape: &str, dtype: &str| {
        header(&format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#))
    };
    let with_data = |mut bytes: Vec<u8>, count: usize| {
        bytes.resize(bytes.len() + count, 0);
        bytes
    };
    let cases = [
        Vec::new(),
        vec![1, 2, 3],
        u64::MAX.to_le_bytes().to_vec(),
        99u64.to_le_bytes().to_vec(),
        header("not json"),
        header(&"[".repeat(10_000)),
        with_data(tensor("[0,8]", "[2]", "F32"), 4),
        with_data(tensor("[0,8]", "[2]", "F32"), 12),
        with_data(tensor("[0,8]", "[3]", "F32"), 8),
        with_data(tensor("[8,0]", "[2]", "F32"), 8),
        with_data(tensor("[4,12]", "[2]", "F32"), 12),
        with_data(tensor("[0,8]", "[4294967296,4294967296,16]", "F32"), 8),
        with_data(tensor("[0,8]", "[1]", "F64"), 8),
        with_data(tensor("[0,8]", "[1]", "WHAT"), 8),
    ];
    for bytes in cases {
        let victim = Victim::new();
        victim.forge(MODEL_FILE, &bytes);
        let error = victim.refusal();
        assert!(matches!(&error, CheckpointError::Tensors { path, .. } if path.ends_with(MODEL_FILE)), "{error}");
    }
}

#[test]
fn a_forged_state_is_refused() {
    let good = String::from_utf8(fs::read(Victim::new().file(STATE_FILE)).unwrap()).unwrap();
    let cases = [
        ("{}".to_owned(), "not a state"),
        (good.replace("\"step\"", "\"stop\""), "not a state"),
        (good.replace("\"step\": 10", "\"step\": 11"), "step is 11, expected 10"),
        (good.replace("\"format_version\": 1", "\"format_version\": 2"), "format version 2, expected 1"),
    ];
    for (text, expected) in cases {
        let victim = Victim::new();
        victim.forge(STATE_FILE, text.as_bytes());
        let error = victim.refusal();
        assert!(error.to_string().contains(expected), "{error}");
    }
}
