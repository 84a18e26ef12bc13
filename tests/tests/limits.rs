//! Limits of the machine: memory, threads, open files, no home, a small disk. Each is said in words, with the right exit code, before
//! something is lost.
#![allow(clippy::unwrap_used)]

use std::process::{Command, Stdio};

use ddpm_tests::{Place, ddpm_binary, empty_place, fresh_run, trained_run};

/// Runs a script of `sh` in `place`, where `$DDPM` is the binary; its streams together, then its exit code.
fn shell(place: &Place, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec 2>&1\n{script}\necho code: $?")]).current_dir(place.path(""));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).env("HOME", place.path(""));
    command.env("DDPM", ddpm_binary()).env("RAYON_NUM_THREADS", "2").stdin(Stdio::null());
    let output = String::from_utf8(command.output().unwrap().stdout).unwrap();
    assert!(!output.contains("panicked") && !output.contains("this is a bug"), "$ {script}\n{output}");
    output
}

#[track_caller]
fn assert_has(output: &str, expected: &[&str]) {
    expected.iter().for_each(|text| assert!(output.contains(text), "expected `{text}` in\n{output}"));
}

/// A batch of this takes gigabytes, its weights some megabytes.
const LARGE: &str = "--set data.image_size=64 --set train.batch_size=4096 --set model.block_out_channels=[32,32]";

#[test]
fn a_step_that_cannot_fit_is_refused_with_what_would_before_anything_is_written() {
    let place = fresh_run(&[]);
    let output = shell(&place, &format!("ulimit -v 4000000; $DDPM train tiny.toml {LARGE}"));
    assert_has(
        &output,
        &["4096 images at once takes at least", "of memory, and there are 3.8 GiB", "train.micro_batch = ", "code: 4"],
    );
    assert!(!place.exists("runs"), "{:?}", place.names(""));
    let checked = shell(&place, &format!("ulimit -v 4000000; $DDPM config check tiny.toml {LARGE}"));
    assert_has(&checked, &["would need more memory than there is", "set train.micro_batch = ", "code: 0"]);
}

#[test]
fn the_doctor_knows_a_limit_of_memory() {
    let output = shell(&empty_place(), "ulimit -v 4000000; $DDPM doctor");
    assert_has(&output, &["available of 3.8 GiB that the limit of address space (ulimit -v) allows", "code: 0"]);
}

#[test]
fn a_number_of_threads_that_makes_no_sense_is_said_and_the_run_goes_on() {
    let place = fresh_run(&["train.steps=2"]);
    let run = "$DDPM train tiny.toml --max-steps 2";
    assert_has(
        &shell(&place, &format!("RAYON_NUM_THREADS=abc {run}")),
        &["\"abc\" is no number of threads", "code: 0"],
    );
    let many = shell(&place, "RAYON_NUM_THREADS=200 $DDPM doctor");
    assert_has(&many, &["RAYON_NUM_THREADS = 200 on ", "threads are used, for more make every step slower", "code: 0"]);
    assert!(!shell(&place, &format!("RAYON_NUM_THREADS=2 {run}")).contains("RAYON_NUM_THREADS"));
}

#[test]
fn few_open_files_no_home_and_a_home_that_is_no_place_do_not_matter_to_a_run() {
    let whole = trained_run(&["train.steps=20"]);
    let weights = "runs/tiny/checkpoints/step-000000020/model.safetensors";
    let train = "$DDPM train tiny.toml --set train.steps=20";
    for limited in ["ulimit -n 24;", "unset HOME;", "HOME=/proc;", "HOME=/nowhere LC_ALL=nowhere;"] {
        let place = fresh_run(&[]);
        assert_has(&shell(&place, &format!("{limited} {train}")), &["done: step 20", "code: 0"]);
        assert!(place.read(weights) == whole.read(weights), "{limited}");
        assert_has(&shell(&place, &format!("{limited} $DDPM doctor")), &["hub token", "code: 0"]);
    }
}

/// Mounting a small disk needs a user namespace; where the system allows none (some containers), this test says so and does nothing.
#[test]
fn a_disk_too_small_in_bytes_or_files_is_said_before_the_first_step() {
    let place = fresh_run(&[]);
    place.write(
        "small",
        "mkdir -p disk; mount -t tmpfs -o \"$1\" small disk || { echo NOT PERMITTED; exit; }\n\
         $DDPM config check tiny.toml --set run.dir=disk/run; $DDPM train tiny.toml --max-steps 2 --run-dir disk/run\n",
    );
    let small = |options: &str| {
        let output = shell(&place, &format!("unshare --user --map-root-user --mount sh small {options}"));
        (!output.contains("NOT PERMITTED") && output.contains("warning") || output.contains("done")).then_some(output)
    };
    let Some(bytes) = small("size=1m") else { return eprintln!("no user namespace here") };
    assert_eq!(bytes.matches("it cannot be saved there").count(), 2, "{bytes}");
    let later = small("size=3m").unwrap();
    assert_eq!(later.matches("later checkpoints will not fit").count(), 2, "{later}");
    let files = small("size=50m,nr_inodes=15").unwrap();
    assert_eq!(files.matches("more files: it cannot be saved there").count(), 2, "{files}");
    assert!(!small("size=50m").unwrap().contains("warning"));
}

#[test]
fn where_nothing_may_be_written_what_only_reads_works() {
    let place = trained_run(&["train.steps=2", "checkpoint.every=0", "sample.every=0"]);
    let before = place.files("runs");
    place.write(
        "read-only",
        "mount --bind . . && mount -o remount,bind,ro . || { echo NOT PERMITTED; exit; }\ncd \"$PWD\"\n\
         $DDPM data inspect builtin:fashion10k; echo inspect: $?\n\
         $DDPM push runs/tiny --repo me/x --samples 0 --dry-run; echo push: $?\n\
         $DDPM sample runs/tiny --num 1 --steps 1 --out $TMP/one.png; echo sample: $?\n\
         $DDPM runs; echo runs: $?\n$DDPM train tiny.toml --set train.steps=3; echo train: $?\n",
    );
    let home = tempfile::tempdir().unwrap();
    let set = format!("export TMP={0} HOME={0};", home.path().display());
    let output = shell(&place, &format!("{set} unshare --user --map-root-user --mount sh read-only"));
    if output.contains("NOT PERMITTED") || !output.contains("train:") {
        return eprintln!("no user namespace here: {output}");
    }
    assert_has(&output, &["10000 readable", "inspect: 0", "push: 0", "sample: 0", "done", "runs: 0"]);
    assert_has(&output, &["cannot open the lock", "Read-only file system", "train: 1"]);
    assert!(place.files("runs") == before);
}
