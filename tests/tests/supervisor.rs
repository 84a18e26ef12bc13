//! The loop of docs/launchers.md: it starts a run again as long as that can help, and no longer.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use ddpm_tests::{Place, ddpm_binary, fresh_run, repository, trained_run};

/// The loop as the page has it, around `command`; its streams together.
fn supervise(place: &Place, command: &str) -> (Option<i32>, String) {
    let page = std::fs::read_to_string(repository().join("docs/launchers.md")).unwrap();
    let script = page.split("<!-- supervisor -->\n```sh\n").nth(1).unwrap().split("```").next().unwrap();
    let script = script.replace("ddpm train my.toml", command).replace("sleep 60", "sleep 0");
    let output = Command::new("sh")
        .args(["-c", &format!("exec 2>&1\n{script}")])
        .current_dir(place.path(""))
        .stdin(Stdio::null())
        .env("PATH", format!("{}:{}", ddpm_binary().parent().unwrap().display(), std::env::var("PATH").unwrap()))
        .env("RAYON_NUM_THREADS", "2")
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_run_that_is_stopped_again_and_again_is_started_again_until_it_is_done() {
    let run = fresh_run(&["train.steps=400"]);
    let set = "--set train.steps=400";
    let (code, output) = supervise(&run, &format!("ddpm train tiny.toml {set} --max-hours 0.00167"));
    assert_eq!(code, Some(0), "{output}");
    assert!(output.contains("stopped by the time limit") && output.contains("done: step 400"), "{output}");
    // Each stop has left a checkpoint and a picture of its own beside them.
    let whole = trained_run(&["train.steps=400"]);
    assert_eq!(run.metrics(), whole.metrics());
    let last = "runs/tiny/checkpoints/step-000000400";
    assert!(run.files(last) == whole.files(last));
}

#[test]
fn codes_that_a_watchdog_or_a_full_disk_leave_are_tried_again_and_then_success_ends_it() {
    let place = fresh_run(&[]);
    // Each start takes the next code from the list; a run that gets on writes checkpoints.
    place.write(
        "fake",
        "#!/bin/sh\nn=$(cat n 2>/dev/null || echo 1)\necho $((n + 1)) > n\nmkdir -p runs/tiny/checkpoints/step-00000000$n\n\
         exit $(echo 75 76 1 137 75 0 | cut -d' ' -f$n)\n",
    );
    let (code, output) = supervise(&place, "sh fake");
    assert_eq!((code, place.text("n").trim()), (Some(0), "7"), "{output}");
}

#[test]
fn a_failure_that_repeats_at_the_same_step_is_given_up() {
    let place = fresh_run(&[]);
    place.write("fake", "#!/bin/sh\nn=$(cat n 2>/dev/null || echo 0)\necho $((n + 1)) > n\nexit 76\n");
    let (code, output) = supervise(&place, "sh fake");
    assert_eq!((code, place.text("n").trim()), (Some(76), "3"), "{output}");
    assert!(output.contains("giving up"), "{output}");
}

#[test]
fn a_failure_that_would_repeat_is_not_tried_again() {
    let run = fresh_run(&[]);
    let (code, output) = supervise(&run, "ddpm train tiny.toml --set data.source=nowhere");
    assert_eq!((code, output.matches("error:").count()), (Some(3), 1), "{output}");
}
