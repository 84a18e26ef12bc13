//! A checkpoint one of whose files is the input, with a manifest that agrees: a first byte says which.
#![no_main]

use std::sync::LazyLock;

use ddpm_run::checkpoint::{
    Checkpoint, Claims, EpochPosition, MANIFEST_FILE, NamedTensor, Snapshot, State, TensorFile, save,
};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 3] = [MANIFEST_FILE, "state.json", "model.safetensors"];

/// The files of a good one.
static GOOD: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let tensors = vec![NamedTensor { name: "conv_in.weight".to_owned(), shape: vec![2, 2], data: vec![0.5; 4] }];
    let state = State::new(10, 40, EpochPosition { epoch: 1, images: 8 }, "config".to_owned(), "data".to_owned());
    let snapshot = Snapshot { files: vec![TensorFile { name: FILES[2].to_owned(), tensors }], state };
    let saved = save(&ddpm_fuzz::path(""), &snapshot).expect("a checkpoint");
    FILES.map(|name| std::fs::read(saved.path.join(name)).expect("a file of it"))
});

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    let which = usize::from(which) % FILES.len();
    let files: Vec<&[u8]> =
        GOOD.iter().enumerate().map(|(number, good)| if number == which { bytes } else { good.as_slice() }).collect();
    // The checkpoint's own step, so that a name that contradicts it is met too.
    for (name, content) in FILES.iter().zip(&files) {
        ddpm_fuzz::put(&format!("step-000000010/{name}"), content);
    }
    if which != 0 {
        let entries: Vec<String> = FILES.iter().zip(&files).skip(1).map(|(name, content)| entry(name, content)).collect();
        let manifest = format!("{{\"format_version\":1,\"files\":[{}]}}", entries.join(","));
        ddpm_fuzz::put(&format!("step-000000010/{MANIFEST_FILE}"), manifest.as_bytes());
    }
    ddpm_fuzz::survives(|| {
        let path = ddpm_fuzz::path("step-000000010");
        let _ = Claims::read(&path);
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            checkpoint.snapshot().expect("what was verified can be read");
        }
    });
});

fn entry(name: &str, content: &[u8]) -> String {
    let hash = blake3::hash(content).to_hex();
    format!("{{\"name\":\"{name}\",\"size\":{},\"blake3\":\"{hash}\"}}", content.len())
}
