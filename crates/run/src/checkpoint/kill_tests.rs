//! SIGKILL at any instant of saving, replacing and deleting: what is found afterwards is complete, and never older than
//! what was found before. The processes that are killed are this test program itself, which a variable tells to save.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use super::testing::snapshot;
use super::{NamedTensor, Retention, Snapshot, Writer, list, newest_good, put_back, remove_stale};
use crate::lock::RunLock;

const DIRECTORY: &str = "DDPM_KILL_TEST_DIRECTORY";
const ROUNDS: u64 = 20;

/// Large enough that kills fall into its writing.
fn large_snapshot(step: u64) -> Snapshot {
    let mut snapshot = snapshot(step, step as f32);
    let data = vec![step as f32; 1 << 16];
    snapshot.files[0].tensors.push(NamedTensor { name: "large".into(), shape: vec![data.len()], data });
    snapshot
}

/// The process to be killed: goes on from the newest good step, and saves every step twice, so that it also replaces.
#[test]
fn child_process_of_the_kill_test() {
    let Some(dir) = std::env::var_os(DIRECTORY) else { return };
    let dir = Path::new(&dir);
    let (newest, _) = newest_good(dir).unwrap();
    let first = newest.map_or(0, |checkpoint| checkpoint.state.step);
    let mut writer = Writer::new(dir.into(), Retention { keep_last: 2, keep_every: 0 });
    for step in (first + 1..).flat_map(|step| [step, step]) {
        if let Some(earlier) = writer.submit(step, move || Ok(large_snapshot(step))) {
            earlier.unwrap().removed.unwrap();
        }
    }
}

fn spawn_child(dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "checkpoint::kill_tests::child_process_of_the_kill_test"])
        .env(DIRECTORY, dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn wait_for_progress(dir: &Path, last: u64) {
    let patience = Instant::now() + Duration::from_secs(60);
    while list(dir).unwrap().first().is_none_or(|(step, _)| *step <= last) {
        assert!(Instant::now() < patience, "the child saved nothing after step {last}");
        thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_kill_at_any_instant_leaves_the_newest_complete_checkpoint_and_no_damaged_one() {
    let root = tempfile::tempdir().unwrap();
    let lock = RunLock::acquire(root.path()).unwrap();
    let dir = root.path().join("checkpoints");
    std::fs::create_dir(&dir).unwrap();
    let (mut last, mut leftovers) = (0, 0);
    for round in 0..ROUNDS {
        let mut child = spawn_child(&dir);
        wait_for_progress(&dir, last);
        // A save takes some milliseconds and the next one follows at once: where the kill falls is up to the disk.
        thread::sleep(Duration::from_micros(7919 * round % 20_000));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success());

        put_back(&dir, &lock).unwrap();
        leftovers += remove_stale(&dir, &lock).unwrap().len();
        let (newest, skipped) = newest_good(&dir).unwrap();
        assert!(skipped.is_empty(), "round {round}: {skipped:?}");
        let newest = newest.unwrap();
        let step = newest.state.step;
        let tensors = newest.tensors(super::MODEL_FILE).unwrap();
        assert_eq!(tensors, large_snapshot(step).files[0].tensors, "round {round}");
        assert!(step > last, "round {round}: step {step} after {last}");
        assert!(list(&dir).unwrap().len() <= 3);
        last = step;
    }
    assert!(leftovers > 0, "no kill fell into a save");
}
