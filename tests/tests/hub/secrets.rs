//! Secrets stay secret: the hub's token goes into the headers of requests and nowhere else, and a password in an address is
//! refused. And what a hub answers names no file outside of the cache.

use ddpm_tests::diffusers::{WEIGHTS, published};
use ddpm_tests::hub::{FakeHub, Fault, Route, TOKEN, XET_TOKEN};
use ddpm_tests::{Finished, Place, fresh_run};

use super::{PUSH, place};

/// A user's password, and a token of the hub as they look.
const PASSWORD: &str = "correct-horse";
const REAL_TOKEN: &str = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz01234567";

/// Asserts that none of the secrets is in any file below the place, but for the token's own file, or in the outputs.
#[track_caller]
fn assert_nowhere(secrets: &[&str], place: &Place, outputs: &[Finished]) {
    let has = |bytes: &[u8], secret: &str| bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
    let files = place.files(".");
    assert!(!files.is_empty());
    for secret in secrets {
        for (name, bytes) in &files {
            assert!(!has(bytes, secret) || name.ends_with("huggingface/token"), "{secret} is in {name}");
        }
        for output in outputs {
            output.expect(!output.stdout.contains(secret), &format!("no {secret} on stdout"));
            output.expect(!output.stderr.contains(secret), &format!("no {secret} on stderr"));
        }
    }
}

/// Everything that asks the hub, with all that can be logged about it.
#[test]
fn the_token_is_in_no_file_no_log_and_no_output() {
    let hub = FakeHub::start();
    let settings = ["hub.repo=me/run", "train.steps=4", "checkpoint.every=2", "sample.every=0", "log.every=1"];
    let place = fresh_run(&settings);
    let loud = |line: &str| hub.ddpm(&place, line).env("RUST_LOG", "trace");
    let train = place.train().arg("--trace").arg("trace.json").env("HF_TOKEN", TOKEN).env("RUST_LOG", "trace");
    let train = hub.environment().iter().fold(train, |train, (name, value)| train.env(name, value));
    let mut outputs = vec![train.succeeds()];
    assert!(outputs[0].stderr.contains("reqwest") || outputs[0].stderr.contains("hyper"), "{}", outputs[0].stderr);
    for line in [
        "push runs/tiny --repo me/clothes --samples 2",
        "sample hf://me/clothes --num 1 --steps 2 --trace sample.json",
        "import hf://me/clothes --to imported",
        "export hf://me/clothes --to exported --samples 1",
        "config show tiny.toml",
        "doctor --json",
        "doctor",
    ] {
        outputs.push(loud(line).succeeds());
        outputs.push(hub.ddpm(&place, line).arg("-v").run());
    }
    for (name, bytes) in hub.files("me/clothes").into_iter().chain(hub.files("me/run")) {
        place.write(&format!("sent/{name}"), bytes);
    }
    assert_nowhere(&[TOKEN, XET_TOKEN], &place, &outputs);
}

#[test]
fn a_hub_that_repeats_the_token_in_its_answers_gives_it_to_nobody() {
    let (place, hub) = place();
    for (route, status) in [(Route::Revision, 401), (Route::Commit, 401), (Route::Tree, 403)] {
        hub.fails(Fault::answer(route, status, r#"{"error":"Invalid token: hf_of_the_tests"}"#));
        let push = hub.ddpm(&place, PUSH).env("RUST_LOG", "trace");
        let failed = push.fails_with(7).stderr_has("Invalid token: ***");
        assert_nowhere(&[TOKEN], &place, &[failed, push.arg("--json").run()]);
        hub.recovers();
    }
}

#[test]
fn a_token_in_a_file_is_read_there_and_copied_nowhere() {
    let (place, hub) = place();
    place.write(".cache/huggingface/token", format!("{TOKEN}\n"));
    let pushed = hub.without_token(&place, PUSH).env("RUST_LOG", "trace").succeeds();
    let pulled = hub.without_token(&place, "sample hf://me/clothes --num 1 --steps 2").arg("-v").succeeds();
    let doctor = hub.without_token(&place, "doctor").succeeds();
    assert_nowhere(&[TOKEN], &place, &[pushed, pulled, doctor]);
}

#[test]
fn a_password_in_an_address_is_refused_and_neither_shown_nor_kept() {
    let place = published();
    place.write("tiny.toml", ddpm_tests::TINY);
    let address = format!("https://me:{PASSWORD}@example.org/photos");
    let in_file = ddpm_tests::TINY.replace("builtin:fashion10k", &address);
    let mut outputs = Vec::new();
    let mut refused = |command: ddpm_tests::Ddpm| {
        let command = command.env("RUST_LOG", "trace");
        outputs.push(command.fails_with(2).stderr_has("***"));
        outputs.push(command.arg("--json").run());
    };
    refused(place.ddpm("train tiny.toml").set(&format!("data.source={address}")));
    refused(place.ddpm("config show tiny.toml").env("DDPM_DATA__SOURCE", &address));
    refused(place.ddpm("data inspect").arg(&address));
    refused(place.ddpm("eval nll theirs --data").arg(&address));
    refused(place.ddpm("sample").arg(&address));
    refused(place.ddpm("train tiny.toml").set(&format!("train.lr={REAL_TOKEN}")));
    refused(place.ddpm("train tiny.toml").arg(format!("--max-steps={REAL_TOKEN}")));
    outputs.push(place.ddpm("train tiny.toml").set(&format!("hub.token={REAL_TOKEN}")).fails_with(2));
    assert_nowhere(&[PASSWORD, REAL_TOKEN], &place, &outputs);
    // The configuration is the user's own file; what is made of it is ours.
    place.write("own.toml", in_file);
    let failed =
        place.ddpm("train own.toml").fails_with(2).stderr_has("own.toml").stderr_has("data.source = https://***@");
    failed.expect(!failed.stderr.contains(PASSWORD), "no password");
    assert!(!place.exists("runs"));
}

#[test]
fn a_secret_on_a_command_line_is_not_recorded_with_the_run() {
    let place = fresh_run(&["train.steps=2", "checkpoint.every=0", "sample.every=0"]);
    let command = place.train().set(&format!("run.name={REAL_TOKEN}")).arg("--run-dir").arg("runs/tiny");
    let trained = command.env("RUST_LOG", "trace").succeeds();
    assert!(place.text("runs/tiny/run.json").contains("run.name=hf_***"));
    trained.expect(!trained.stderr.contains(REAL_TOKEN), "no token on stderr");
}

#[test]
fn an_endpoint_with_a_password_is_refused_without_showing_it() {
    let (place, hub) = place();
    let endpoint = hub.endpoint().replace("://", &format!("://me:{PASSWORD}@"));
    let push = hub.ddpm(&place, PUSH).env("HF_ENDPOINT", &endpoint).env("RUST_LOG", "trace");
    let failed = push.fails_with(2).stderr_has("HF_ENDPOINT holds a user name or a password");
    let doctor = hub.ddpm(&place, "doctor").env("HF_ENDPOINT", &endpoint).run();
    assert_nowhere(&[PASSWORD, TOKEN], &place, &[failed, doctor]);
}

#[test]
fn no_answer_of_a_hub_names_a_file_outside_of_the_cache() {
    let (place, hub) = place();
    hub.ddpm(&place, PUSH).succeeds();
    let before = place.names(".");
    let config = br#"{"sample_size": 16}"#;
    hub.change("me/clothes", |repo| {
        let escaping: [&str; 4] = ["../../../../escaped", "unet/../../../../../escaped", "/escaped", "unet/../escaped"];
        repo.add("main", "escaping", &escaping.map(|path| (path, config.as_slice())));
    });
    let sample = hub.ddpm(&place, "sample hf://me/clothes --num 1 --steps 2 --out .cache/out.png");
    sample.succeeds();
    for (route, text, message) in [
        (Route::Revision, r#"{"sha":"../../../../escaped"}"#, "it names no commit"),
        (
            Route::Tree,
            r#"[{"type":"file","path":"unet/diffusion_pytorch_model.safetensors","size":2,"oid":"../../escaped"}]"#,
            "so this is no model of ddpm or diffusers",
        ),
    ] {
        hub.fails(Fault::answer(route, 200, text));
        let _ = sample.run().stderr_has(message);
        hub.recovers();
    }
    assert_eq!(place.names("."), before);
    let cached = place.files(".cache/huggingface");
    assert!(cached.keys().any(|name| name.ends_with(WEIGHTS)));
    assert!(cached.keys().all(|name| !name.contains("escaped")), "{:?}", cached.keys());
}
