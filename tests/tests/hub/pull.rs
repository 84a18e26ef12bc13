//! `hf://owner/name` wherever a model is accepted.

use std::time::{Duration, Instant};

use ddpm_tests::Place;
use ddpm_tests::diffusers::{WEIGHTS, files, forward_error};
use ddpm_tests::hub::{FakeHub, Fault, Route};
use ddpm_tests::trained_run;

use super::{PUSH, place};

const CACHE: &str = ".cache/huggingface/hub/models--me--clothes";

/// A hub that has a model, and a directory with the folder it was pushed from.
fn pushed() -> (Place, FakeHub) {
    let (place, hub) = place();
    hub.ddpm(&place, PUSH).succeeds();
    (place, hub)
}

/// The cache's contents under final names, which a user would trust.
fn blobs(place: &Place) -> Vec<String> {
    place.names(&format!("{CACHE}/blobs"))
}

#[test]
fn what_was_pushed_comes_back_to_the_byte() {
    let run = trained_run(&["train.steps=2", "checkpoint.every=0", "sample.every=0"]);
    let hub = FakeHub::start();
    hub.ddpm(&run, "push runs/tiny --repo me/clothes --samples 2").succeeds();
    let sampled = hub.ddpm(&run, "sample hf://me/clothes --num 1 --steps 2").succeeds();
    let _ = sampled.stderr_has("hf://me/clothes: fetching 5 files");
    let commit = hub.repo("me/clothes").unwrap().branches["main"][1].id.clone();
    let pulled = files(&run, &format!("{CACHE}/snapshots/{commit}"));
    let sent = hub.files("me/clothes");
    assert_eq!(pulled.len(), 5);
    assert!(pulled.iter().all(|file| sent.contains(file)));
    assert_eq!(run.text(&format!("{CACHE}/refs/main")), commit);
    let there = hub.ddpm(&run, "sample hf://me/clothes --num 1 --steps 2 --out again.png").succeeds();
    let _ = there.stderr_lacks("fetching");
    run.ddpm("sample runs/tiny --num 1 --steps 2 --out mine.png").succeeds();
    assert!(run.read("again.png") == run.read("mine.png"), "other pictures");
}

#[test]
fn every_command_that_takes_a_model_takes_one_of_the_hub() {
    let (place, hub) = pushed();
    let commit = hub.repo("me/clothes").unwrap().branches["main"][1].id.clone();
    let export = hub.ddpm(&place, "export hf://me/clothes --to out --samples 0").json();
    assert_eq!(export["model"], format!("hf://me/clothes@{commit}"));
    for line in [
        "forward hf://me/clothes --input in.safetensors --to out.safetensors",
        "schedule hf://me/clothes",
        "eval nll hf://me/clothes --data images --num 1 --steps 2",
        "import hf://me/clothes --to runs/mine",
        "push hf://me/clothes --repo me/copy --samples 0",
    ] {
        hub.ddpm(&place, line).succeeds();
    }
    assert!(forward_error(&place, "runs/mine") < 1e-5);
    let train = "train runs/mine/config.toml --set data.source=images --set train.batch_size=2 --max-steps 1";
    place.ddpm(train).set("sample.every=0").succeeds();
    place.ddpm("export runs/mine --to tuned --samples 0").succeeds();
    assert!(place.text("tuned/README.md").contains(&format!("| fine-tuned from | hf://me/clothes@{commit} |")));
}

#[test]
fn a_revision_is_a_branch_or_a_commit_and_a_commit_needs_no_hub_twice() {
    let (place, hub) = pushed();
    let first = hub.repo("me/clothes").unwrap().branches["main"][1].id.clone();
    hub.change("me/clothes", |repo| repo.add("main", "spoiled", &[("unet/config.json", b"{}")]));
    let sample = |model: &str| hub.ddpm(&place, &format!("sample {model} --num 1 --steps 2"));
    sample("hf://me/clothes").fails_with(6).stderr_has("unet/config.json");
    sample(&format!("hf://me/clothes@{first}")).succeeds();
    let asked = hub.requests().len();
    sample(&format!("hf://me/clothes@{first}")).succeeds();
    assert_eq!(hub.requests().len(), asked);
    place.truncate(&format!("{CACHE}/snapshots/{first}/{WEIGHTS}"));
    sample(&format!("hf://me/clothes@{first}")).succeeds().stderr_has("fetching 1 files");
    sample("hf://me/clothes@other").fails_with(7).stderr_has("the hub answered 404");
}

#[test]
fn offline_the_cache_is_enough_and_nothing_else_is_there() {
    let (place, hub) = pushed();
    let offline = |line: &str| place.ddpm(line).env("HF_HUB_OFFLINE", "1").env("HF_ENDPOINT", &hub.endpoint());
    let sample = "sample hf://me/clothes --num 1 --steps 2";
    offline(sample).fails_with(7).stderr_has("HF_HUB_OFFLINE is set").stderr_has("no copy of it is in ");
    hub.ddpm(&place, sample).succeeds();
    let asked = hub.requests().len();
    offline(sample).succeeds();
    assert_eq!(hub.requests().len(), asked);
}

#[test]
fn a_hub_that_is_away_is_replaced_by_the_cache() {
    let (place, hub) = pushed();
    let hub = hub.impatient();
    let sample = "sample hf://me/clothes --num 1 --steps 2";
    hub.ddpm(&place, sample).succeeds();
    hub.fails(Fault::stall(Route::Revision));
    hub.ddpm(&place, sample).succeeds().stderr_has("silent for 1.5 s: taking hf://me/clothes@");
    hub.recovers();
    hub.fails(Fault::status(Route::Revision, 401));
    hub.ddpm(&place, sample).fails_with(7).stderr_has("the hub answered 401");
}

#[test]
fn the_cache_is_where_python_has_it() {
    let (place, hub) = pushed();
    let sample = hub.ddpm(&place, "sample hf://me/clothes --num 1 --steps 2");
    sample.clone().env("HF_HOME", place.path("home").to_str().unwrap()).succeeds();
    sample.env("HUGGINGFACE_HUB_CACHE", place.path("other").to_str().unwrap()).succeeds();
    assert!(
        place.exists("home/hub/models--me--clothes/refs/main") && place.exists("other/models--me--clothes/refs/main")
    );
    assert!(!place.exists(CACHE));
}

#[test]
fn a_body_that_is_short_or_wrong_is_fetched_again_or_refused_and_never_kept() {
    for (fault, message) in
        [(Fault::short(Route::Resolve), "bytes came"), (Fault::damaged(Route::Resolve), "another hash")]
    {
        let (place, hub) = pushed();
        let hub = hub.impatient();
        let sample = hub.ddpm(&place, "sample hf://me/clothes --num 1 --steps 2");
        hub.fails(fault);
        sample.fails_with(7).stderr_has(message).stderr_has("expected ").stderr_has("nothing of it is kept");
        assert_eq!(blobs(&place), [""; 0]);
        hub.recovers();
        hub.fails(fault.times(2));
        sample.succeeds();
        assert!(blobs(&place).iter().all(|name| !name.contains('.')), "{:?}", blobs(&place));
    }
}

#[test]
fn a_silent_or_broken_download_ends_in_time() {
    for (fault, message) in [
        (Fault::stall(Route::Resolve), "was silent for 1.5 s"),
        (Fault::drop(Route::Resolve), "the connection broke"),
        (Fault::status(Route::Resolve, 503), "the hub answered 503"),
    ] {
        let (place, hub) = pushed();
        let hub = hub.impatient();
        hub.fails(fault);
        let start = Instant::now();
        let failed = hub.ddpm(&place, "sample hf://me/clothes").run().has_code(7).stderr_has(message);
        failed.expect(start.elapsed() < Duration::from_secs(15), "an end in time");
        assert_eq!(blobs(&place), [""; 0]);
    }
}

#[test]
fn a_cache_that_was_damaged_is_mended_or_named() {
    let (place, hub) = pushed();
    let sample = hub.ddpm(&place, "sample hf://me/clothes --num 1 --steps 2");
    sample.succeeds();
    let commit = place.text(&format!("{CACHE}/refs/main"));
    let weights = format!("{CACHE}/snapshots/{commit}/{WEIGHTS}");
    place.truncate(&weights);
    sample.clone().env("HF_HUB_OFFLINE", "1").fails_with(7).stderr_has(WEIGHTS).stderr_has("bytes of another hash");
    sample.succeeds().stderr_has("fetching 1 files");
    sample.clone().env("HF_HUB_OFFLINE", "1").succeeds();
}

#[test]
fn what_is_no_model_or_a_pickle_is_refused_by_name() {
    let (place, hub) = place();
    hub.change("me/pickle", |repo| {
        repo.add("main", "old", &[("unet/diffusion_pytorch_model.bin", b"x"), ("unet/config.json", b"{}")]);
    });
    hub.change("me/text", |repo| repo.add("main", "text", &[("README.md", b"x")]));
    let sample = |model: &str| hub.ddpm(&place, &format!("sample {model}"));
    sample("hf://me/pickle").fails_with(6).stderr_has("diffusion_pytorch_model.bin, a pickle").stderr_has("any code");
    sample("hf://me/text").fails_with(6).stderr_has("this is no model of ddpm or diffusers");
    sample("hf://me/nothing").fails_with(7).stderr_has("the hub answered 404 (Repository not found)");
    hub.without_token(&place, "sample hf://me/nothing").fails_with(7).stderr_has("401");
    for name in ["hf://me", "hf://me/x@", "hf://../x", "hf://"] {
        sample(name).fails_with(2).stderr_has(name).stderr_has("hf://owner/name");
    }
    assert_eq!(place.names(".cache/huggingface"), [""; 0]);
}
