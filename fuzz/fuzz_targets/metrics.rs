//! `metrics.jsonl`, read whole, from its end, and cut where a run goes back; where the first byte is a brace too many, `run.json`.
#![no_main]

use ddpm_run::{RunView, history, jsonl, metrics};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    if bytes.starts_with(b"{{") {
        ddpm_fuzz::put("run/run.json", &bytes[1..]);
        ddpm_fuzz::put("run/status.json", &bytes[1..]);
        return ddpm_fuzz::survives(|| drop(RunView::open(&ddpm_fuzz::path("run"))));
    }
    let path = ddpm_fuzz::put("metrics.jsonl", bytes);
    ddpm_fuzz::survives(|| {
        let read = history::read(&path, |_, record| {
            for name in history::names(&record) {
                history::number(&record, &name);
            }
        });
        read.expect("any bytes can be read");
        metrics::last(&path);
        metrics::last_loss(&path, 5);
        jsonl::truncate_after(&path, 5).expect("any bytes can be cut");
    });
});
