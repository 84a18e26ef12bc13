//! Models to and from the hub: a push, and a pull of what was pushed.
#![allow(clippy::unwrap_used)]

use ddpm_tests::diffusers::files;
use ddpm_tests::hub::FakeHub;
use ddpm_tests::{Place, trained_run};

const PUSH: &str = "push runs/tiny --repo me/clothes --samples 2 --licence mit";

fn trained() -> Place {
    trained_run(&["train.steps=2", "checkpoint.every=0", "sample.every=0"])
}

#[test]
fn a_push_makes_the_repository_with_one_commit_of_everything() {
    let (run, hub) = (trained(), FakeHub::start());
    let pushed = hub.ddpm(&run, PUSH).json();
    run.ddpm("export runs/tiny --to out --samples 2").succeeds();
    assert_eq!(hub.messages("me/clothes", "main"), ["initial commit", "tiny at step 2 (ddpm 0.1.0)"]);
    let sent = hub.files("me/clothes");
    for (path, bytes) in files(&run, "out").into_iter().filter(|(path, _)| path != "README.md") {
        assert!(sent.contains(&(path.clone(), bytes)), "{path}");
    }
    println!("{pushed}");
}
