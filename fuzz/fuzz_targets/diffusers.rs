//! A diffusers folder one of whose JSON files is the input, our own `ddpm.json` among them: a first byte says which.
#![no_main]

use ddpm_train::exchange::import;
use libfuzzer_sys::fuzz_target;

macro_rules! model {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../tests/fixtures/diffusers/model/", $name)))
    };
}

const FILES: [(&str, &[u8]); 3] =
    [model!("unet/config.json"), model!("scheduler/scheduler_config.json"), model!("model_index.json")];
const WEIGHTS: (&str, &[u8]) = model!("unet/diffusion_pytorch_model.safetensors");

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    ddpm_fuzz::put(&format!("model/{}", WEIGHTS.0), WEIGHTS.1);
    for (number, (name, good)) in FILES.into_iter().enumerate() {
        ddpm_fuzz::put(&format!("model/{name}"), if number == usize::from(which) { bytes } else { good });
    }
    let facts = "model/ddpm.json";
    if usize::from(which) == FILES.len() {
        ddpm_fuzz::put(facts, bytes);
    } else {
        let _ = std::fs::remove_file(ddpm_fuzz::path(facts));
    }
    let to = ddpm_fuzz::path("imported");
    ddpm_fuzz::survives(|| drop(import(&ddpm_fuzz::path("model"), &to, None)));
    let _ = std::fs::remove_dir_all(&to);
});
