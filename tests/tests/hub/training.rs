//! Uploads during training: beside the loop, without delaying it.

use std::time::{Duration, Instant};

use ddpm_tests::hub::{FakeHub, Fault, Route, TOKEN};
use ddpm_tests::{Ddpm, Place, fresh_run};

fn run() -> Place {
    fresh_run(&[
        "hub.repo=me/clothes",
        "hub.push_every=20",
        "hub.private=true",
        "checkpoint.every=10",
        "sample.every=0",
        "log.every=10",
    ])
}

fn train(run: &Place, hub: &FakeHub) -> Ddpm {
    let train = run.train().env("HF_TOKEN", TOKEN);
    hub.environment().iter().fold(train, |train, (name, value)| train.env(name, value))
}

/// The losses of a run.
fn losses(run: &Place) -> Vec<String> {
    let metrics = run.text("runs/tiny/metrics.jsonl");
    let loss = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["loss"].to_string();
    metrics.lines().map(loss).collect()
}

#[test]
fn checkpoints_are_pushed_as_they_come_and_the_last_one_for_certain() {
    let (run, hub) = (run(), FakeHub::start());
    train(&run, &hub).succeeds().stderr_has("step 40 pushed: ");
    let messages = hub.messages("me/clothes", "main");
    // The push of step 20 may have been replaced by a newer one.
    assert!((2..=3).contains(&messages.len()), "{messages:?}");
    assert_eq!(messages.last().unwrap(), "tiny at step 40 (ddpm 0.1.0)");
    assert!(hub.repo("me/clothes").unwrap().private);
    let alone = fresh_run(&["checkpoint.every=10", "sample.every=0", "log.every=10"]);
    alone.train().succeeds();
    assert_eq!(losses(&run), losses(&alone), "an upload changed the training");
    train(&run, &hub).succeeds().stderr_has("step 40 is on the hub already");
    assert_eq!(hub.messages("me/clothes", "main"), messages);
}

#[test]
fn a_hub_that_is_down_stops_nothing_and_push_sends_what_is_left() {
    let (run, hub) = (run(), FakeHub::start().impatient());
    hub.fails(Fault::status(Route::Revision, 503));
    let trained = train(&run, &hub).succeeds().stderr_has("warning: no upload to me/clothes");
    let _ =
        trained.stderr_has("503").stderr_has("`ddpm push runs/tiny` sends what is left").stdout_has("done: step 40");
    assert!(run.text("runs/tiny/log.jsonl").contains("no upload to me/clothes"));
    assert_eq!(run.names("runs/tiny/hub"), ["LOCK", "me--clothes"]);
    hub.recovers();
    hub.ddpm(&run, "push runs/tiny").succeeds().stderr_has("finishing a push that waits in runs/tiny/hub/me--clothes");
    assert_eq!(hub.messages("me/clothes", "main"), ["initial commit", "tiny at step 40 (ddpm 0.1.0)"]);
    assert!(hub.repo("me/clothes").unwrap().private);
    assert_eq!(run.names("runs/tiny/hub"), ["LOCK"]);
}

#[test]
fn a_silent_hub_delays_the_end_of_a_run_by_a_bounded_time() {
    let (run, hub) = (run(), FakeHub::start().impatient());
    hub.fails(Fault::stall(Route::Commit));
    let start = Instant::now();
    train(&run, &hub).succeeds().stderr_has("the hub was silent for ");
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert_eq!(run.names("runs/tiny/hub"), ["LOCK", "me--clothes"]);
}

#[test]
fn a_stopped_run_waits_for_no_hub() {
    let (run, hub) = (run(), FakeHub::start());
    hub.fails(Fault::stall(Route::Commit));
    let mut running = train(&run, &hub).set("train.steps=100000").env("DDPM_HUB_TIMEOUT", "60").spawn();
    assert!(running.wait_until(|| hub.requests().iter().any(|it| it.contains("/commit/"))));
    let second = hub.ddpm(&run, "push runs/tiny").fails_with(8);
    let _ = second.stderr_has("runs/tiny/hub/LOCK: held by process").stderr_has("another process pushes from there");
    running.signal("TERM");
    let start = Instant::now();
    let stopped = running.wait(Duration::from_secs(60)).has_code(75).stderr_has("had not ended");
    stopped.expect(start.elapsed() < Duration::from_secs(20), "an end in time");
    assert_eq!(run.names("runs/tiny/hub"), ["LOCK", "me--clothes"]);
}

#[test]
fn without_a_token_a_run_warns_at_its_beginning() {
    let (run, hub) = (run(), FakeHub::start());
    let trained = run.train().env("HF_ENDPOINT", &hub.endpoint()).succeeds();
    let _ = trained.stderr_has("nothing will reach me/clothes: there is no token (HF_TOKEN)");
    assert_eq!(hub.requests(), [""; 0]);
}

#[test]
fn a_dry_run_pushes_nothing_and_a_bad_name_begins_nothing() {
    let (run, hub) = (run(), FakeHub::start());
    train(&run, &hub).arg("--dry-run").succeeds();
    train(&run, &hub).set("hub.repo=clothes").fails_with(2).stderr_has("hub.repo = \"clothes\": expected owner/name");
    assert_eq!(hub.requests(), [""; 0]);
    assert!(!run.exists("runs/tiny"));
}
