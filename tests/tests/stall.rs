//! A run that does not go on: its data comes from a disk that does not answer.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::time::Duration;

use ddpm_tests::fixtures::image_folder;
use ddpm_tests::fresh_run;

#[test]
#[cfg(target_os = "linux")]
fn a_stalled_source_is_reported_with_the_functions_that_its_reader_is_in_and_ends_the_process_where_asked() {
    let settings = ["train.steps=1_000_000", "log.every=1", "checkpoint.every=0", "sample.every=1_000_000"];
    let run = fresh_run(&settings);
    image_folder(&run, "photos", 8);
    let train = run.train().set("data.source=photos").set("run.stall_after=1").set("run.exit_on_stall=true");
    let mut running = train.spawn();
    running.wait_for_stderr("step 2/");
    // Who opens such a file waits until somebody writes into it, which nobody does: a hung disk.
    for name in run.names("photos") {
        let path = run.path(format!("photos/{name}"));
        std::fs::remove_file(&path).unwrap();
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
    }
    let finished = running.wait(Duration::from_secs(60)).has_code(76);
    let finished = finished.stderr_has("waiting for images; its threads: ").stderr_has("data-0 S");
    // The reader, in the function that opens files; and the loop, in one of those that wait for a batch.
    let finished = finished.stderr_has("read_piece  local.rs:").stderr_has("next_unless  loader.rs:");
    assert!(!finished.stderr.contains("stacks.rs:"), "the handler is no part of it:\n{}", finished.stderr);
    assert!(run.text("runs/tiny/log.jsonl").contains("local.rs:"), "the log has it too");
}
