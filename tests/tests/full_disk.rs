//! A full disk costs the checkpoints that do not fit, never the run and never a checkpoint that exists.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use ddpm_tests::{Place, ddpm_binary, fresh_run, trained_run};

/// Runs a script of `sh` in `place`, where `$DDPM` is the binary; its streams, one after the other.
fn shell(place: &Place, wrapper: &[&str], script: &str) -> String {
    let (program, first) = wrapper.split_first().map_or(("sh", &[][..]), |(program, first)| (*program, first));
    let mut command = Command::new(program);
    if !wrapper.is_empty() {
        command.args(first).arg("sh");
    }
    command.args(["-c", &format!("exec 2>&1\n{script}")]).current_dir(place.path("")).stdin(Stdio::null());
    let output = command.env("DDPM", ddpm_binary()).env("RAYON_NUM_THREADS", "2").output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn assert_has(output: &str, expected: &[&str]) {
    for text in expected {
        assert!(output.contains(text), "expected `{text}` in\n{output}");
    }
    assert!(!output.contains("panicked"), "{output}");
}

/// A disk of 2.3 MB holds one checkpoint of 1.5 MB, but not two. Mounting one needs a user namespace; where the system allows
/// none (some containers), only `a_limit_on_file_sizes_is_survived_too` tests this.
#[test]
fn a_full_disk_does_not_end_a_run_and_later_saves_succeed() {
    let namespace = ["unshare", "--user", "--map-root-user", "--mount"];
    let run = fresh_run(&[]);
    std::fs::create_dir(run.path("disk")).unwrap();
    let output = shell(
        &run,
        &namespace,
        "mount -t tmpfs -o size=2300k small disk || { echo NOT PERMITTED; exit; }
         $DDPM train tiny.toml --run-dir disk/run; echo full: $?
         ls disk/run/checkpoints; cp -r disk/run full
         mount -o remount,size=20m disk
         $DDPM train tiny.toml --run-dir disk/run; echo roomy: $?
         ls -A disk/run/checkpoints; cp -r disk/run roomy",
    );
    if output.is_empty() || output.contains("NOT PERMITTED") {
        eprintln!("no user namespace here: {output}");
        return;
    }
    assert_has(
        &output,
        &["the checkpoint was not written", "step-000000020", "No space left", "training goes on", "free disk space"],
    );
    assert_has(&output, &["step 40 could not be saved; the same command goes on from step 10", "full: 1", "roomy: 0"]);
    assert_has(&output, &["going on from disk/run/checkpoints/step-000000010"]);
    assert_eq!(run.names("full/checkpoints"), ["step-000000010"]);
    assert_eq!(run.text("full/metrics.jsonl").lines().count(), 13, "the run went on to its end");
    assert_eq!(run.names("roomy/checkpoints"), ["step-000000030", "step-000000040"]);
    let whole = trained_run(&[]);
    let weights = "checkpoints/step-000000040/model.safetensors";
    assert!(run.read(&format!("roomy/{weights}")) == whole.read(&format!("runs/tiny/{weights}")));
}

/// As with a quota or `ulimit -f`, single files cannot grow. This works for any user; the signal that comes with it is ignored,
/// as under systemd.
#[test]
fn a_limit_on_file_sizes_is_survived_too() {
    let run = trained_run(&["train.steps=10"]);
    let before = run.files("runs/tiny/checkpoints");
    let output = shell(&run, &[], "trap '' XFSZ; ulimit -f 150; $DDPM train tiny.toml; echo code: $?");
    assert_has(
        &output,
        &["going on from runs/tiny/checkpoints/step-000000010", "the checkpoint was not written", "step-000000020"],
    );
    assert_has(&output, &["training goes on", "step 39/40", "ulimit -f", "code: 1"]);
    assert!(run.files("runs/tiny/checkpoints") == before, "{:?}", run.checkpoints());
    let waiting = "$DDPM train tiny.toml --set checkpoint.async=false; echo code: $?";
    assert_has(
        &shell(&run, &[], &format!("trap '' XFSZ; ulimit -f 150; {waiting}")),
        &["could not be saved", "code: 1"],
    );
    run.train().set("train.steps=40").succeeds().resumes_at(10);
}
