//! Signals and time limits: save, exit with 75, go on with the same command.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use ddpm_tests::{Place, assert_same_run, fresh_run};

const SOON: Duration = Duration::from_secs(30);

fn stopped_by(run: &Place, signal: &str, first_step: u64) -> u64 {
    // Who started the tests may ignore a hangup (nohup), and what is ignored is inherited.
    let mut running = run.train().arg("--json").heeds_hangups().spawn();
    running.wait_for_stderr(&format!("step {first_step}/"));
    running.signal(signal);
    let finished = running.wait(SOON).has_code(75);
    let document = finished.json();
    assert_eq!(document["status"], "stopped");
    let step = document["step"].as_u64().unwrap();
    let checkpoint = format!("runs/tiny/checkpoints/step-{step:09}");
    assert_eq!(document["checkpoint"], checkpoint);
    assert!(step >= first_step && run.exists(&format!("{checkpoint}/MANIFEST.json")));
    step
}

#[test]
fn a_signal_saves_and_the_same_command_goes_on() {
    let settings = [
        "train.steps=100_000",
        "log.every=1",
        "checkpoint.every=0",
        "checkpoint.keep_last=1",
        "sample.every=1_000_000",
    ];
    let run = fresh_run(&settings);
    let mut second = 0;
    for signal in ["TERM", "INT", "HUP", "USR1"] {
        second = stopped_by(&run, signal, second + 3);
    }
    run.train().max_steps(second + 5).succeeds().resumes_at(second);
    let whole = fresh_run(&settings);
    whole.train().max_steps(second + 5).succeeds();
    assert_same_run(&run, &whole);
}

#[test]
fn what_to_do_after_a_stop_is_said() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1"]);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 2/");
    running.signal("TERM");
    running.wait(SOON).has_code(75).stdout_has("stopped by a signal").stdout_has("ddpm train tiny.toml");
}

#[test]
fn a_signal_during_a_picture_does_not_wait_for_it_and_the_next_start_draws_it() {
    let run = fresh_run(&["train.steps=20", "log.every=1", "checkpoint.every=10", "sample.every=10", "sample.num=16"]);
    let slow = run.train().set("sample.steps=400").arg("--json");
    let mut running = slow.spawn();
    running.wait_for_stderr("step 10/");
    std::thread::sleep(Duration::from_millis(200));
    running.signal("TERM");
    let document = running.wait(Duration::from_secs(3)).has_code(75).json();
    assert_eq!((&document["step"], &document["samples"]), (&10.into(), &serde_json::Value::Null));
    let picture = "runs/tiny/samples/step-000000010.png";
    assert!(!run.exists(picture));
    run.train().max_steps(10).succeeds().resumes_at(10);
    assert!(run.exists(picture));
}

#[test]
fn a_second_ctrl_c_ends_at_once() {
    // A step of some seconds, so that the run is still in it when the second signal comes.
    let run = fresh_run(&["data.image_size=64", "train.batch_size=256", "train.micro_batch=16", "log.every=1"]);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 1/");
    running.signal("INT");
    std::thread::sleep(Duration::from_millis(100));
    let second = Instant::now();
    running.signal("INT");
    let finished = running.wait(SOON);
    finished.expect(finished.code != Some(75) && finished.code != Some(0), "an end without a save");
    assert!(second.elapsed() < Duration::from_millis(1500), "{:?} after the second one", second.elapsed());
    assert!(run.checkpoints().is_empty(), "{:?}", run.checkpoints());
}

#[test]
fn a_launcher_that_signals_twice_does_not_throw_the_save_away() {
    // A step of a second or so, so that the second signal comes before the first one's save.
    let run = fresh_run(&["data.image_size=32", "train.batch_size=256", "train.micro_batch=16", "log.every=1"]);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 1/");
    for _ in 0..2 {
        running.signal("TERM");
        std::thread::sleep(Duration::from_millis(20));
    }
    running.wait(SOON).has_code(75).stdout_has("stopped by a signal");
    assert_eq!(run.checkpoints().len(), 1);
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1", "sample.every=0"]);
    let mut running = run.train().ignoring_hangups().spawn();
    running.wait_for_stderr("step 2/");
    running.signal("HUP");
    running.wait_for_stderr("step 20/");
    running.signal("TERM");
    running.wait(SOON).has_code(75).stdout_has("stopped by a signal");
}

#[test]
fn a_save_may_be_asked_for_and_the_run_goes_on() {
    let run = fresh_run(&["train.steps=100_000", "log.every=1", "checkpoint.every=0", "sample.every=0"]);
    let mut running = run.train().spawn();
    running.wait_for_stderr("step 2/");
    running.signal("USR2");
    let saved = || run.checkpoints().iter().find_map(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
    assert!(running.wait_until(|| saved().is_some()), "the run ended");
    let step = saved().unwrap();
    running.wait_for_stderr(&format!("step {}/", step + 5));
    running.signal("TERM");
    running.wait(SOON).has_code(75).stdout_has("stopped by a signal");
}

#[test]
fn max_hours_saves_in_time_and_the_same_command_goes_on() {
    let run = fresh_run(&["train.steps=100_000"]);
    let limited = run.train().arg("--max-hours").arg("0.001");
    let start = Instant::now();
    let document = limited.clone().arg("--json").run().has_code(75).json();
    assert!(start.elapsed() < Duration::from_secs(15), "{:?} of 3.6 s", start.elapsed());
    assert_eq!(document["status"], "stopped");
    let step = document["step"].as_u64().unwrap();
    limited.run().has_code(75).stdout_has("stopped by the time limit").resumes_at(step);
}
