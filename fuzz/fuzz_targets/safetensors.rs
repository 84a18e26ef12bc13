//! A safetensors file, of ours and of others.
#![no_main]

use ddpm_run::checkpoint::tensors;
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let path = ddpm_fuzz::put("model.safetensors", bytes);
    ddpm_fuzz::survives(|| {
        if let Ok(tensors) = tensors::read_foreign(&path) {
            let values: usize = tensors.iter().map(|tensor| tensor.data.len()).sum();
            assert!(values * 2 <= bytes.len(), "{values} values from {} bytes", bytes.len());
        }
        let _ = tensors::read(&path);
    });
});
