//! A run that serves its numbers (`log.metrics_addr`), asked by a client while it goes on.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use ddpm_tests::{fresh_run, trained_run};

const SOON: Duration = Duration::from_secs(30);

/// A port that is free now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn ask(port: u16, request: &str) -> String {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).unwrap();
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn get(port: u16, path: &str) -> String {
    ask(port, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
}

/// The samples of a page in Prometheus' text format, which must be as its description has it: HELP and TYPE once and before the
/// samples of each family, names and labels of its letters, numbers that are numbers.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let (mut family, mut families, mut samples) = (String::new(), Vec::new(), BTreeMap::new());
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, help) = help.split_once(' ').unwrap();
            assert!(is_name(name) && !help.is_empty() && !families.contains(&name.to_owned()), "{line}");
            let kind = lines.next().unwrap().strip_prefix(&format!("# TYPE {name} ")).unwrap().to_owned();
            assert!(kind == "gauge" || kind == "counter", "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            name.clone_into(&mut family);
            families.push(name.to_owned());
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').map_or((sample, None), |(name, labels)| (name, Some(labels)));
        assert_eq!(name, family, "{line}");
        for pair in labels.iter().flat_map(|labels| labels.strip_suffix('}').unwrap().split("\",")) {
            let (label, value) = pair.split_once("=\"").unwrap();
            assert!(is_name(label) && !value.trim_end_matches('"').contains('"'), "{line}");
        }
        assert!(samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(), "{line} comes twice");
    }
    assert!(page.ends_with('\n'));
    samples
}

#[test]
fn a_run_serves_its_numbers_while_it_goes_on() {
    let port = free_port();
    let run = fresh_run(&["train.steps=100_000", "log.every=2", "checkpoint.every=10"]);
    let mut running = run.train().set(&format!("log.metrics_addr=127.0.0.1:{port}")).spawn();
    running.wait_for_stderr(&format!("metrics are served at http://127.0.0.1:{port}/metrics"));
    running.wait_for_stderr("step 40/");
    let answer = get(port, "/metrics");
    let (head, page) = answer.split_once("\r\n\r\n").unwrap();
    assert!(
        head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("Content-Type: text/plain; version=0.0.4"),
        "{head}"
    );
    assert!(head.contains(&format!("Content-Length: {}\r\n", page.len())), "{head}");
    let samples = samples(page);
    let number = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("no {name} in {page}"));
    assert!(number("ddpm_steps_total") >= 40.0 && number("ddpm_steps_planned") == 100_000.0);
    assert!(number("ddpm_images_total") >= 160.0 && number("ddpm_images_per_second") > 0.0);
    assert!(number("ddpm_loss") > 0.0 && number("ddpm_gradient_norm") > 0.0 && number("ddpm_learning_rate") == 1e-3);
    assert!(number("ddpm_checkpoint_step") >= 10.0 && number("ddpm_checkpoint_timestamp_seconds") > 1.7e9);
    assert!(number("process_resident_memory_bytes") > 1e7 && number("ddpm_stalled") == 0.0);
    assert!(page.contains("ddpm_run_info{run=\"tiny\",device=\"cpu ("), "{page}");
    assert_eq!(samples.iter().filter(|(name, value)| name.starts_with("ddpm_phase{") && **value == 1.0).count(), 1);
    assert!(get(port, "/readyz").ends_with("\r\n\r\nok\n") && get(port, "/healthz").ends_with("\r\n\r\nok\n"));
    running.signal("TERM");
    let _ = running.wait(SOON).has_code(75);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "it ended");
}

#[test]
fn requests_of_any_kind_leave_a_run_as_it_is() {
    let port = free_port();
    let settings = ["train.steps=60", "log.every=1"];
    let run = fresh_run(&settings);
    let mut running = run.train().set(&format!("log.metrics_addr={port}")).spawn();
    running.wait_for_stderr("metrics are served at");
    let mut silent = Vec::new();
    running.wait_until(|| {
        let Ok(mut connection) = TcpStream::connect(("127.0.0.1", port)) else { return true };
        let _ = connection.write_all(b"\x16\x03\x01 not HTTP \xff\r\n\r\n");
        silent.extend(TcpStream::connect(("127.0.0.1", port)));
        std::thread::sleep(Duration::from_millis(5));
        false
    });
    let finished = running.wait(SOON).has_code(0);
    finished.expect(!finished.stderr.contains("panic"), "no panic");
    assert_eq!(run.metrics(), trained_run(&settings).metrics());
}

#[test]
fn a_port_that_is_taken_is_a_warning_that_names_the_key() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let run = fresh_run(&["train.steps=4"]);
    let address = format!("log.metrics_addr=127.0.0.1:{port}");
    run.train()
        .set(&address)
        .succeeds()
        .stderr_has(&format!("warning: log.metrics_addr = \"127.0.0.1:{port}\": no metrics are served: "))
        .stderr_has("help: name another port")
        .stdout_has("done: step 4");
    let check = format!("config check tiny.toml --set {address}");
    let warning = format!("warning: log.metrics_addr: \"127.0.0.1:{port}\": no metrics are served: ");
    run.ddpm(&check).succeeds().stdout_has(&warning);
    drop(taken);
    assert!(!run.ddpm(&check).succeeds().stdout.contains("log.metrics_addr"), "it is free again");
    run.train().set("log.metrics_addr=nowhere").fails_with(2).stderr_has("expected host:port");
}
