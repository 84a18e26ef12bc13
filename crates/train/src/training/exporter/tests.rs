//! The service as a client finds it, over real connections.
#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::time::Instant;

use ddpm_run::{RunPhase, StatusFile};

use super::super::watchdog::{Activity, Watch};
use super::*;

fn ask(at: SocketAddr, request: &[u8]) -> String {
    let mut connection = TcpStream::connect(at).unwrap();
    connection.write_all(request).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    answer
}

fn get(at: SocketAddr, path: &str) -> String {
    ask(at, format!("GET {path} HTTP/1.1\r\nHost: here\r\n\r\n").as_bytes())
}

fn service(watch: &Watch) -> (Service, SocketAddr) {
    let service = Service::start("0", "mine", watch.watchdog());
    let at = service.listening.as_ref().unwrap().0;
    (service, at)
}

#[test]
fn a_run_is_ready_when_it_trains_and_not_while_it_is_set_up_or_stalls() {
    let watch = Watch::begin(Duration::from_millis(300), None).unwrap();
    let (service, at) = service(&watch);
    assert!(at.ip().is_loopback(), "{at}");
    assert!(get(at, "/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    assert!(get(at, "/readyz").contains("setting up"));
    let dir = tempfile::tempdir().unwrap();
    let mut status = StatusFile::new(dir.path().join("status.json"), 10, 100);
    status.enter(RunPhase::Training).unwrap();
    service.exporter().status(status.status());
    watch.watchdog().enter(Activity::Data);
    assert!(get(at, "/readyz").starts_with("HTTP/1.1 200 OK\r\n"));
    thread::sleep(Duration::from_millis(900));
    assert!(get(at, "/readyz").starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
    assert!(get(at, "/metrics").contains("\nddpm_stalled 1\n"));
    assert!(get(at, "/healthz").starts_with("HTTP/1.1 200 OK\r\n"), "the process lives");
    watch.watchdog().enter(Activity::Step);
    assert!(get(at, "/readyz").starts_with("HTTP/1.1 200 OK\r\n"), "it goes on");
}

#[test]
fn bad_requests_are_answered_and_do_no_harm() {
    let watch = Watch::begin(Duration::ZERO, None).unwrap();
    let (service, at) = service(&watch);
    assert!(get(at, "/etc/passwd").starts_with("HTTP/1.1 404 "));
    assert!(ask(at, b"DELETE /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 405 "));
    assert!(ask(at, b"nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
    let head = ask(at, b"HEAD /metrics HTTP/1.1\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
    // Endless, cut off, silent.
    let mut endless = TcpStream::connect(at).unwrap();
    let _ = endless.write_all(&b"GET /x".repeat(10_000));
    drop(TcpStream::connect(at).unwrap());
    let _silent: Vec<TcpStream> = (0..4).map(|_| TcpStream::connect(at).unwrap()).collect();
    assert!(get(at, "/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    drop(service);
}

#[cfg(target_os = "linux")]
#[test]
fn a_client_is_answered_though_every_thread_was_asked_where_it_is() {
    let watch = Watch::begin(Duration::ZERO, None).unwrap();
    let (_service, at) = service(&watch);
    let mut connection = TcpStream::connect(at).unwrap();
    connection.write_all(b"GET /healthz HTTP/1.1\r\n").unwrap();
    let reads = |stack: &String| stack.contains("metrics-answer") && stack.contains("read_head");
    let asked = (0..50).any(|_| {
        thread::sleep(Duration::from_millis(10));
        super::super::stacks::all().iter().any(reads)
    });
    assert!(asked, "the thread that reads was interrupted");
    connection.write_all(b"Host: here\r\n\r\n").unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

#[test]
fn clients_that_say_nothing_keep_nobody_waiting() {
    let watch = Watch::begin(Duration::ZERO, None).unwrap();
    let (_service, at) = service(&watch);
    let silent: Vec<TcpStream> = (0..20).map(|_| TcpStream::connect(at).unwrap()).collect();
    let begun = Instant::now();
    for _ in 0..20 {
        assert!(get(at, "/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
    }
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    drop(silent);
}

#[test]
fn an_address_that_is_taken_is_no_end_and_is_free_again_after_the_run() {
    let watch = Watch::begin(Duration::ZERO, None).unwrap();
    let (first, at) = service(&watch);
    let second = Service::start(&at.to_string(), "other", watch.watchdog());
    assert!(second.listening.is_none());
    drop((first, second));
    let free = (0..100).any(|_| {
        thread::sleep(Duration::from_millis(20));
        TcpListener::bind(at).is_ok()
    });
    assert!(free, "{at} is still held");
}
