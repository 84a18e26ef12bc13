//! A run's messages: on stderr, in `log.jsonl`, and as a trace.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ddpm_tests::fixtures::png;
use ddpm_tests::{Place, assert_fields, fresh_run, trained_run};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(30);

fn lines(run: &Place, file: &str) -> Vec<Value> {
    run.text(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn events(run: &Place, file: &str) -> Vec<Value> {
    let trace: Value = serde_json::from_str(&run.text(file)).unwrap();
    trace["traceEvents"].as_array().unwrap().clone()
}

/// Thread, begin and end of every span of this name, in microseconds.
fn spans(events: &[Value], name: &str) -> Vec<(u64, f64, f64)> {
    let spans = events.iter().filter(|event| event["ph"] == "X" && event["name"] == name);
    spans
        .map(|span| {
            let (start, time) = (span["ts"].as_f64().unwrap(), span["dur"].as_f64().unwrap());
            (span["tid"].as_u64().unwrap(), start, start + time)
        })
        .collect()
}

#[test]
fn every_line_of_the_log_says_when_where_and_what() {
    let run = trained_run(&["train.steps=20"]);
    run.write("runs/tiny/checkpoints/.tmp-step-000000030/half", "");
    run.train()
        .set("train.steps=25")
        .succeeds()
        .stderr_has("warning: .tmp-step-000000030: an unfinished save was removed");
    let log = lines(&run, "runs/tiny/log.jsonl");
    for line in &log {
        assert!(line["time"].as_str().unwrap().ends_with('Z') && line["message"].is_string(), "{line}");
        assert!(["debug", "info", "warning", "error"].contains(&line["level"].as_str().unwrap()), "{line}");
        assert!(line["target"].as_str().unwrap().starts_with("ddpm_"), "{line}");
        assert!(line["span"].as_str().unwrap().starts_with("run") && line["rank"] == 0, "{line}");
    }
    let find = |text: &str| log.iter().find(|line| line["message"].as_str().unwrap().contains(text)).unwrap();
    let begun = find("training to step 20 in runs/tiny");
    assert_eq!((&begun["step"], &begun["level"]), (&0.into(), &"info".into()));
    assert_eq!((&begun["fields"]["dir"], &begun["fields"]["end"]), (&"runs/tiny".into(), &20.into()));
    assert!(find("M parameters on cpu")["fields"]["parameters"].as_u64().unwrap() > 1000);
    assert_eq!(find("an unfinished save was removed")["level"], "warning");
    let saved = find("checkpoint runs/tiny/checkpoints/step-000000010");
    assert_eq!(
        (&saved["level"], &saved["fields"]["checkpoint"]),
        (&"debug".into(), &saved["message"].as_str().unwrap()["checkpoint ".len()..].into())
    );
    assert!(saved["step"].as_u64().unwrap() > 10 && saved["fields"]["seconds"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_log_that_is_full_makes_room_and_only_so_much_of_the_past_is_kept() {
    let run = fresh_run(&["train.steps=4"]);
    let line =
        format!("{{\"level\":\"warning\",\"time\":\"t\",\"step\":1,\"message\":\"{}\"}}\n", "long ago".repeat(1000));
    let full = line.repeat((16 << 20) / line.len() + 1);
    for name in ["log.jsonl", "log.1.jsonl", "log.2.jsonl", "log.3.jsonl"] {
        run.write(&format!("runs/tiny/{name}"), format!("{{\"was\":\"{name}\"}}\n{full}"));
    }
    run.train().succeeds();
    let was = |name: &str| run.text(&format!("runs/tiny/{name}")).lines().next().unwrap().to_owned();
    let older = ["log.1.jsonl", "log.2.jsonl", "log.3.jsonl"].map(was);
    assert_eq!(older, ["log.jsonl", "log.1.jsonl", "log.2.jsonl"].map(|name| format!("{{\"was\":\"{name}\"}}")));
    assert!(lines(&run, "runs/tiny/log.jsonl").iter().any(|line| line["message"] == "training to step 4 in runs/tiny"));
    assert!(!run.exists("runs/tiny/log.4.jsonl"));
}

#[test]
fn an_error_that_ends_a_run_is_in_its_log_and_once_on_stderr() {
    let run = fresh_run(&["train.lr=1e4", "train.warmup_steps=20", "train.clip_grad_norm=0"]);
    let failed = run.train().fails_with(5).stderr_has("error: ");
    assert_eq!(failed.stderr.matches("error: ").count(), 1, "{}", failed.stderr);
    let log = lines(&run, "runs/tiny/log.jsonl");
    let last = log.last().unwrap();
    assert_eq!((&last["level"], &last["fields"]["kind"]), (&"error".into(), &"Diverged".into()), "{last}");
    assert!(failed.stderr.contains(last["message"].as_str().unwrap()), "{last}");
}

#[test]
fn options_and_rust_log_choose_what_stderr_shows() {
    let train = |run: &Place| run.train().set("train.steps=6");
    let run = || fresh_run(&["sample.every=0", "log.every=1"]);
    let saved = "checkpoint runs/tiny/checkpoints/step-000000006";
    train(&run()).succeeds().stderr_has("training to step 6").stderr_has("step 1/6").stderr_lacks(saved);
    train(&run()).arg("-v").succeeds().stderr_has("step 1/6").stderr_has(saved);
    let quiet = train(&run()).arg("-q").succeeds();
    let warning = "warning: checkpoint.every: only the end is saved";
    quiet.expect(quiet.stderr.starts_with(warning) && quiet.stderr.lines().count() == 1, "a warning and nothing else");
    let asked = |filter: &str| train(&run()).env("RUST_LOG", filter).succeeds();
    asked("ddpm_train=debug").stderr_has(saved);
    let off = asked("off");
    off.expect(off.stderr.is_empty(), "nothing on stderr");
    asked("ddpm_train::progress=info").stderr_has("step 6/6").stderr_lacks("training to step");
    asked("ddpm=loud").stderr_has("warning: RUST_LOG").stderr_has("step 6/6");
    train(&run()).env("RUST_LOG", "off").arg("-v").succeeds().stderr_has(saved);
}

#[test]
fn a_trace_covers_the_phases_of_every_step_and_they_nest() {
    let run = fresh_run(&["train.steps=12", "sample.every=6"]);
    run.train().arg("--trace").arg("traces/run.json").succeeds();
    let events = events(&run, "traces/run.json");
    let steps = spans(&events, "step");
    assert_eq!(steps.len(), 12);
    // A picture has passes forward too.
    let in_a_step = |phase: &str| {
        let step_of = |start: f64| steps.iter().any(|step| step.1 <= start && start <= step.2);
        spans(&events, phase).into_iter().filter(|(_, start, _)| step_of(*start)).collect::<Vec<_>>()
    };
    for phase in ["data", "forward", "backward", "optimizer"] {
        let within = in_a_step(phase);
        assert_eq!(within.len(), 12, "{phase}");
        for ((thread, start, end), step) in within.iter().zip(&steps) {
            assert!(*thread == step.0 && step.1 <= *start && *end <= step.2 + 1e-2, "{phase} of {step:?}");
        }
    }
    let times: f64 = ["data", "forward", "backward", "optimizer"]
        .iter()
        .flat_map(|phase| in_a_step(phase))
        .map(|(_, start, end)| end - start)
        .sum();
    let all: f64 = steps.iter().map(|(_, start, end)| end - start).sum();
    assert!(times > 0.9 * all, "{times} us of {all} us of the steps are in no phase");
    let [run_span] = spans(&events, "run")[..] else { panic!("one run") };
    for (name, count) in [("sample", 2), ("snapshot", 2)] {
        let within = spans(&events, name);
        assert_eq!(within.len(), count, "{name}");
        assert!(within.iter().all(|(thread, start, end)| {
            *thread == run_span.0 && run_span.1 <= *start && *end <= run_span.2 + 1e-2
        }));
    }
    let saves = spans(&events, "save");
    assert!(saves.len() == 2 && saves.iter().all(|(thread, ..)| *thread != run_span.0), "{saves:?}");
    assert!(spans(&events, "batch").len() >= 12);
}

#[test]
fn samples_and_likelihoods_are_traced_too() {
    let run = trained_run(&["train.steps=2"]);
    run.ddpm("sample runs/tiny --num 2 --steps 2 --trace sample.json").succeeds();
    assert_eq!(spans(&events(&run, "sample.json"), "sample").len(), 1);
    run.ddpm("eval nll runs/tiny --data builtin:fashion10k --num 2 --steps 3 --trace eval.json").succeeds();
    assert_eq!(spans(&events(&run, "eval.json"), "eval").len(), 1);
}

#[test]
fn a_trace_is_json_however_the_run_ends() {
    for (signal, code) in [("INT", Some(75)), ("KILL", None)] {
        let run = fresh_run(&["train.steps=100_000", "log.every=1"]);
        let mut running = run.train().arg("--trace").arg("trace.json").spawn();
        running.wait_for_stderr("step 3/");
        std::thread::sleep(Duration::from_millis(1200));
        running.signal(signal);
        let finished = running.wait(SOON);
        finished.expect(code.is_none() || finished.code == code, "the code of its end");
        assert!(!spans(&events(&run, "trace.json"), "forward").is_empty(), "{signal}");
    }
}

#[test]
fn a_trace_that_cannot_be_written_is_an_error_before_the_run_begins() {
    let run = fresh_run(&[]);
    let trace = |path: &str| run.train().arg("--trace").arg(path);
    run.write("occupied/file", "");
    trace("occupied").fails_with(2).stderr_has("--trace occupied: a folder is there");
    trace("occupied/file/trace.json").fails_with(1).stderr_has("--trace occupied/file/trace.json: cannot");
    trace("/dev/full").fails_with(1).stderr_has("--trace /dev/full: cannot be written").stderr_has("help: ");
    assert!(!run.exists("runs/tiny"));
}

#[test]
fn a_run_whose_steps_starve_is_told_what_for_and_warned_once() {
    // Enough of them for seconds of waiting on a fast machine too: a moment is not said.
    let run = fresh_run(&["log.every=5", "train.steps=40", "data.source=photos", "data.workers=1"]);
    (0..4).for_each(|seed| run.write(&format!("photos/{seed}.png"), png(3000, seed)));
    let trained = run.train().succeeds();
    let line = |what: &str| trained.stderr.lines().filter(|line| line.contains(what)).count();
    trained.expect(line(", waiting for decoding") >= 3, "what steps wait for");
    trained.expect(line("steps wait for images") == 1, "one warning");
    let trained = trained.stderr_has("waiting for decoding: ").stderr_has("help: raise data.workers");
    let _ = trained.stderr_lacks("waiting for reads");
    let metrics = run.text("runs/tiny/metrics.jsonl");
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert_fields(&last["timing"]["loading"], "queue, file_bytes_per_s, decoded_per_s, reading");
    assert!(last["timing"]["loading"]["reading"].as_f64().unwrap() < 0.5, "{last}");
    let document = run.ddpm("watch runs/tiny").json();
    assert_eq!(document["waits_for"], "decoding");
}
