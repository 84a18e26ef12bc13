//! The contents of a push, and its refusals.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use ddpm_tests::diffusers::{WEIGHTS, files};
use ddpm_tests::hub::{FakeHub, TOKEN};
use ddpm_tests::{assert_fields, fresh_run, trained_run};

use super::{COMMITS, PUSH, failing_place, place, spools};

#[test]
fn a_push_makes_the_repository_with_one_commit_of_everything() {
    let run = trained_run(&["train.steps=4", "log.every=1", "checkpoint.every=0", "sample.every=0"]);
    let hub = FakeHub::start();
    let pushed = hub.ddpm(&run, "push runs/tiny --repo me/clothes --samples 2 --licence mit").json();
    run.ddpm("export runs/tiny --to out --samples 2").succeeds();
    assert_eq!(hub.messages("me/clothes", "main"), ["initial commit", "tiny at step 4 (ddpm 0.1.0)"]);
    let sent = hub.files("me/clothes");
    for (path, bytes) in files(&run, "out").into_iter().filter(|(path, _)| path != "README.md") {
        assert!(sent.contains(&(path.clone(), bytes)), "{path}");
    }
    let repo = hub.repo("me/clothes").unwrap();
    assert!(!repo.private);
    assert_fields(&pushed, "repo, revision, model, files, bytes, commit, url");
    assert_eq!(pushed["commit"], repo.branches["main"][1].id);
    assert_eq!((&pushed["unchanged"], &pushed["dry_run"]), (&false.into(), &false.into()));
    assert_eq!(run.names("runs/tiny/hub"), ["LOCK"], "a spool was left");
}

#[test]
fn the_card_tells_what_the_hub_wants_to_know() {
    let run = trained_run(&["train.steps=4", "log.every=1", "checkpoint.every=0", "sample.every=0"]);
    let hub = FakeHub::start();
    hub.ddpm(&run, "push runs/tiny --repo me/clothes --samples 2 --licence mit").succeeds();
    let sent = hub.files("me/clothes");
    let card = sent.iter().find(|(path, _)| path == "README.md").unwrap();
    let card = String::from_utf8(card.1.clone()).unwrap();
    for part in [
        "---\nlibrary_name: diffusers\nlicense: mit\n",
        "![2 samples](samples.png)",
        "| training loss at the end | ",
        "| steps | 4 |",
        "block_out_channels = [16, 16]",
        "```sh\nddpm train tiny.toml --set train.steps=4",
        "DDPMPipeline.from_pretrained(\"me/clothes\")\n",
        "ddpm sample hf://me/clothes --num 16",
        "## Licence\n\nmit\n",
    ] {
        assert!(card.contains(part), "{part:?} in {card}");
    }
    assert!(!card.contains("DIR") && !card.contains('{'), "{card}");
    assert!(!card.contains(run.path("").to_str().unwrap()), "places of this machine: {card}");
}

#[test]
fn what_was_measured_is_on_the_card() {
    let (place, hub) = place();
    let nll = place.ddpm("eval nll theirs --data images --num 2 --steps 2 --json").succeeds().stdout;
    place.write("nll.json", &nll);
    hub.ddpm(&place, &format!("{PUSH} --metrics nll.json")).succeeds();
    let card = hub.files("me/clothes").into_iter().find(|(path, _)| path == "README.md").unwrap().1;
    let bits = serde_json::from_str::<serde_json::Value>(&nll).unwrap()["bits_per_dim"].as_f64().unwrap();
    let quality = format!("## Quality\n\n{bits:.4} +- ");
    assert!(String::from_utf8_lossy(&card).contains(&quality), "{quality} in {}", String::from_utf8_lossy(&card));
    for text in ["", "{}", "[1]", r#"{"bits_per_dim":"few"}"#] {
        place.write("bad.json", text);
        let refused = hub.ddpm(&place, &format!("{PUSH} --metrics bad.json")).fails_with(2);
        let _ = refused.stderr_has("--metrics bad.json: cannot be read").stderr_has("ddpm eval nll");
    }
}

#[test]
fn pushing_the_same_model_again_changes_nothing() {
    let (place, hub) = place();
    hub.ddpm(&place, PUSH).succeeds().stdout_has("pushed: ");
    hub.ddpm(&place, PUSH).succeeds().stdout_has("was there already: ");
    assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
    hub.ddpm(&place, &format!("{PUSH} --licence mit")).succeeds();
    assert_eq!(hub.messages("me/clothes", "main").len(), 3, "another card is another commit");
}

#[test]
fn other_files_and_commits_of_a_repository_stay() {
    let (place, hub) = place();
    hub.change("me/clothes", |repo| repo.add("main", "mine", &[("notes.txt", b"keep"), ("README.md", b"old")]));
    hub.ddpm(&place, PUSH).succeeds();
    let sent = hub.files("me/clothes");
    assert!(sent.contains(&("notes.txt".to_owned(), b"keep".to_vec())));
    assert!(!sent.contains(&("README.md".to_owned(), b"old".to_vec())));
    assert_eq!(hub.messages("me/clothes", "main").len(), 3);
    assert!(!hub.requests().iter().any(|request| request.ends_with("/create")), "{:?}", hub.requests());
}

#[test]
fn a_revision_is_a_branch_that_is_made() {
    let (place, hub) = place();
    let pushed = hub.ddpm(&place, &format!("{PUSH} --revision runs/second")).json();
    assert_eq!(hub.messages("me/clothes", "runs/second"), COMMITS);
    assert_eq!(hub.messages("me/clothes", "main").len(), 1);
    assert_eq!(pushed["revision"], "runs/second");
    hub.ddpm(&place, "sample hf://me/clothes@runs/second --num 1 --steps 2").succeeds();
    hub.ddpm(&place, &format!("{PUSH} --revision ../x")).fails_with(2).stderr_has("a branch");
}

#[test]
fn a_private_repository_is_made_private_and_no_public_one_is_taken_for_it() {
    let (place, hub) = place();
    hub.ddpm(&place, &format!("{PUSH} --private")).succeeds();
    assert!(hub.repo("me/clothes").unwrap().private);
    hub.ddpm(&place, "sample hf://me/clothes --num 1 --steps 2").succeeds();
    hub.change("me/public", |_| {});
    let refused = hub.ddpm(&place, "push theirs --repo me/public --private --samples 0").fails_with(7);
    refused.stderr_has("me/public: is public, expected a private repository");
    assert_eq!(hub.messages("me/public", "main").len(), 1);
}

#[test]
fn a_dry_run_makes_everything_and_touches_no_network() {
    let (place, hub) = place();
    let made = hub.without_token(&place, &format!("{PUSH} --dry-run")).json();
    assert_eq!((&made["dry_run"], &made["commit"]), (&true.into(), &serde_json::Value::Null));
    let folder = made["folder"].as_str().unwrap();
    assert!(place.exists(&format!("{folder}/{WEIGHTS}")) && place.exists(&format!("{folder}/README.md")));
    assert_eq!(hub.requests(), [""; 0]);
    hub.ddpm(&place, PUSH).succeeds().stderr_has("finishing a push");
    assert_eq!(hub.messages("me/clothes", "main"), COMMITS);
}

#[test]
fn nobody_is_asked_as_nobody() {
    let (place, hub) = place();
    let refused = hub.without_token(&place, PUSH).fails_with(7);
    refused.stderr_has("no token").stderr_has("set HF_TOKEN");
    assert_eq!(hub.requests(), [""; 0]);
    place.write(".cache/huggingface/token", format!("{TOKEN}\n"));
    hub.without_token(&place, PUSH).succeeds();
}

#[test]
fn names_that_no_repository_has_are_refused_at_once() {
    let (place, hub) = place();
    for name in ["clothes", "me/", "../me/x", "me/a--b", "me/x.git"] {
        hub.ddpm(&place, "push theirs").arg("--repo").arg(name).fails_with(2).stderr_has("--repo");
    }
    hub.ddpm(&place, "push theirs").fails_with(2).stderr_has("--repo is missing");
    hub.ddpm(&place, &format!("{PUSH} --licence")).arg("a\nb: c").fails_with(2).stderr_has("cc-by-4.0");
    hub.ddpm(&place, PUSH).env("HF_ENDPOINT", "hub").fails_with(2).stderr_has("HF_ENDPOINT = hub: expected https://");
    assert_eq!(hub.requests(), [""; 0]);
}

#[test]
fn offline_a_push_waits_for_the_network() {
    let (place, hub) = place();
    hub.ddpm(&place, PUSH).env("HF_HUB_OFFLINE", "1").fails_with(7).stderr_has("HF_HUB_OFFLINE is set");
    assert_eq!((spools(&place), hub.requests()), (vec!["me--clothes".to_owned()], Vec::new()));
    hub.ddpm(&place, PUSH).succeeds();
    assert_eq!(spools(&place), [""; 0]);
}

#[test]
fn a_large_file_is_never_sent_as_text() {
    let wide = ["model.block_out_channels=[128, 128]", "train.steps=1", "train.batch_size=1", "sample.every=0"];
    let run = fresh_run(&wide);
    run.train().succeeds();
    let hub = FakeHub::start();
    hub.has_no_xet();
    let push = "push runs/tiny --repo me/clothes --samples 0";
    let refused = hub.ddpm(&run, push).fails_with(7);
    refused.stderr_has(&format!("{WEIGHTS}: ")).stderr_has("expected at most 5000000");
    assert_eq!(hub.messages("me/clothes", "main").len(), 1);
    assert!(!hub.requests().iter().any(|request| request.contains("/commit/")), "{:?}", hub.requests());
}

#[test]
fn the_doctor_says_where_the_token_is_and_never_what_it_is() {
    let (place, hub) = place();
    let seen = hub.ddpm(&place, "doctor").succeeds().stdout_has("in HF_TOKEN").stdout_has(&hub.endpoint());
    seen.expect(!seen.stdout.contains(TOKEN), "no token");
    hub.without_token(&place, "doctor").succeeds().stdout_has("set HF_TOKEN");
    let wrong = place.ddpm("doctor").env("DDPM_HUB_TIMEOUT", "soon").succeeds();
    wrong.stdout_has("DDPM_HUB_TIMEOUT = soon: expected seconds");
}

/// A storage for large files that refuses every request, and records it.
fn refusing_storage() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::<Mutex<Vec<String>>>::default();
    let noted = Arc::clone(&asked);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut line = String::new();
            let _ = BufReader::new(&stream).read_line(&mut line);
            noted.lock().unwrap().push(line);
            let _ = stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (format!("http://{address}"), asked)
}

#[test]
fn nothing_is_reported_of_an_upload_unless_the_user_wants_it() {
    let (place, hub) = failing_place();
    for (wanted, reports) in [(None, false), (Some("0"), true)] {
        let (storage, asked) = refusing_storage();
        hub.stores_at(Some(&storage));
        let push = hub.ddpm(&place, PUSH);
        let push = wanted.map_or(push.clone(), |value| push.env("HF_HUB_DISABLE_TELEMETRY", value));
        let _ = push.run().has_code(7);
        let asked = asked.lock().unwrap();
        assert!(!asked.is_empty());
        assert_eq!(asked.iter().any(|line| line.contains("telemetry")), reports, "{asked:?}");
    }
}
