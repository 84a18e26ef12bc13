//! `metadata.jsonl` where the first byte is a brace, else `metadata.csv`, beside three images.
#![no_main]

use libfuzzer_sys::fuzz_target;

const IMAGE: &[u8] = include_bytes!("../../tests/fixtures/diffusers/image.png");

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let (name, other) =
        if bytes.first() == Some(&b'{') { ("metadata.jsonl", "metadata.csv") } else { ("metadata.csv", "metadata.jsonl") };
    for image in ["a.png", "b.png", "c/d.png"] {
        ddpm_fuzz::put(&format!("folder/{image}"), IMAGE);
    }
    let _ = std::fs::remove_file(ddpm_fuzz::path(&format!("folder/{other}")));
    ddpm_fuzz::put(&format!("folder/{name}"), bytes);
    ddpm_fuzz::look("folder");
});
