//! Disks that lack what a run relies on (fsync of directories, locks, renames of directories), and run directories that vanish: a
//! warning, never a refusal, and the same results.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use ddpm_tests::{Ddpm, Place, assert_same_run, fresh_run, repository, trained_run};

const SOON: Duration = Duration::from_secs(60);

/// Makes commands of `place` see a disk that lacks this; none where there is no C compiler.
fn weak(place: &Place, lacking: &str) -> Option<impl Fn(Ddpm) -> Ddpm> {
    let library = place.path("weak_disk.so");
    let source = repository().join("tests/fixtures/weak_disk.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    let lacking = lacking.to_owned();
    built
        .is_ok_and(|status| status.success())
        .then_some(move |command: Ddpm| command.env("LD_PRELOAD", library.to_str().unwrap()).env("WEAK_DISK", &lacking))
}

#[test]
fn a_run_on_a_weak_disk_warns_once_and_ends_like_any_other() {
    let whole = trained_run(&[]);
    for (lacking, warning) in [
        ("dirsync", "cannot sync directories"),
        ("flock", "cannot lock files"),
        ("rename", "cannot rename directories"),
        ("dirsync,flock,rename", "cannot"),
    ] {
        let run = fresh_run(&[]);
        let Some(weak) = weak(&run, lacking) else { return };
        let first = weak(run.train()).max_steps(23).succeeds().stderr_has(warning);
        first.expect(first.stderr.matches(warning).count() <= lacking.split(',').count(), "each warning once");
        weak(run.train()).succeeds().resumes_at(23);
        // The stop has left a picture of its own.
        fs::remove_file(run.path("runs/tiny/samples/step-000000023.png")).unwrap();
        assert_same_run(&run, &whole);
        assert!(!run.exists("runs/tiny/LEASE"), "a lease stays behind");
        for command in
            ["sample runs/tiny --num 1 --steps 1", "export runs/tiny --to out --samples 1", "import out --to in"]
        {
            weak(run.ddpm(command)).succeeds();
        }
        assert_eq!(run.names("in/checkpoints"), ["step-000000000"]);
    }
}

#[test]
fn without_locks_a_lease_keeps_a_second_process_out_and_one_that_was_killed_does_not() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1", "sample.every=0"]);
    let Some(weak) = weak(&run, "flock") else { return };
    let mut first = weak(run.train()).spawn();
    first.wait_for_stderr("step 2/");
    weak(run.train()).fails_with(8).stderr_has("LEASE").stderr_has("held by process");
    // Nor a machine on which the same disk can lock.
    run.train().fails_with(8).stderr_has("held by process");
    run.ddpm("runs").succeeds().stdout_has("running");
    first.wait_for_stderr("step 30/");
    assert!(first.kill());
    run.ddpm("runs").succeeds().stdout_has("killed");
    let start = Instant::now();
    let mut second = weak(run.train()).spawn();
    second.wait_for_stderr("going on from");
    second.wait_for_stderr("step 40/");
    assert!(start.elapsed() < Duration::from_secs(30), "nobody waits for a process that is known to be gone");
    second.signal("TERM");
    second.wait(SOON).has_code(75).stdout_has("everything is saved");
}

#[test]
fn a_slow_disk_delays_saves_and_not_steps_and_is_said_to_be_slow() {
    let run = fresh_run(&["train.steps=1_000_000", "log.every=1", "checkpoint.every=2", "sample.every=0"]);
    let Some(weak) = weak(&run, "slow") else { return };
    let mut running = weak(run.train()).spawn();
    // A step waits at most 2 of the 5 seconds.
    running.wait_for_stderr("the disk is slow: at step 4 ");
    running.wait_for_stderr("step 7/");
    assert!(!run.exists("runs/tiny/checkpoints/step-000000004"), "it was to wait");
    let saved = || run.checkpoints().iter().any(|name| name.starts_with("step-") && name.as_str() > "step-000000006");
    assert!(running.wait_until(saved), "the save that waited is made later");
    running.signal("TERM");
    running.wait(SOON).has_code(75).stdout_has("everything is saved");
    run.ddpm("runs").succeeds();
}

#[test]
fn a_run_whose_directory_is_removed_makes_it_again_and_saves_into_it() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1", "checkpoint.every=5", "sample.every=1_000_000"]);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 12/");
    // As another disk would hide it, all at once.
    fs::rename(run.path("runs/tiny"), run.path("hidden")).unwrap();
    let saved = || run.checkpoints().iter().any(|name| name.starts_with("step-"));
    assert!(running.wait_until(saved), "the run ended");
    assert!(run.exists("runs/tiny/config.toml") && run.exists("runs/tiny/run.json"));
    run.train().fails_with(8).stderr_has("held by process");
    running.signal("TERM");
    let finished = running.wait(SOON).has_code(75).stderr_has("runs/tiny is gone");
    let step =
        run.checkpoints().iter().filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok()).max().unwrap();
    finished.stdout_has(&format!("at step {step}"));
    run.train().max_steps(step + 5).succeeds().resumes_at(step);
    let lines = run.metrics();
    assert!(lines.last().unwrap().contains(&format!("\"step\":{}", step + 5)), "{lines:?}");
    assert_eq!(run.names("runs/tiny/events").len(), 2);
}

#[test]
fn a_run_whose_directory_vanishes_after_its_last_save_still_leaves_its_last_step() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1", "checkpoint.every=1", "sample.every=0"]);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 5/");
    fs::rename(run.path("runs/tiny"), run.path("hidden")).unwrap();
    running.signal("TERM");
    let finished = running.wait(SOON).has_code(75).stderr_has("runs/tiny is gone").stdout_has("everything is saved");
    let step =
        run.checkpoints().iter().filter_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok()).max().unwrap();
    finished.stdout_has(&format!("at step {step}"));
}

#[test]
fn a_start_that_is_refused_leaves_everything_as_it_was() {
    let run = trained_run(&["train.steps=20"]);
    fs::create_dir(run.path("runs/tiny/checkpoints/.tmp-step-000000099")).unwrap();
    run.write("runs/tiny/checkpoints/.tmp-step-000000099/model.safetensors", "half");
    let before = run.files("runs");
    let refused = run.train().arg("--run-dir").arg("runs/new/deep");
    for wrong in ["runs/tiny", "nowhere", "tiny.toml", "runs/tiny/samples", "runs/tiny/checkpoints/step-000000099"] {
        let refused = refused.clone().arg("--resume").arg(wrong).fails_with(6).stderr_lacks("the run directory itself");
        refused.expect(!run.exists("runs/new"), "no directory");
    }
    refused.set("train.lr=2").set("data.source=nowhere").fails_with(3);
    run.train().set("train.lr=5e-4").fails_with(2);
    assert!(run.files("runs") == before, "a refused start changed something");
    assert_eq!(run.names("runs"), ["tiny"]);
    run.train().set("train.steps=22").succeeds().stderr_has("an unfinished save was removed").resumes_at(20);
}
