//! A checkpoint of PyTorch's, as `ddpm import --from` reads it: a first byte says whose it is, up to a zero byte follow the flags of its
//! training, then the file.
#![no_main]

use ddpm_train::exchange::{Foreign, Origin, import};
use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let Some((whose, bytes)) = bytes.split_first() else { return };
    let origin = if *whose == b'g' { Origin::GuidedDiffusion } else { Origin::ImprovedDiffusion };
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(0);
    let Ok(flags) = std::str::from_utf8(&bytes[..end]) else { return };
    let path = ddpm_fuzz::put("model.pt", &bytes[bytes.len().min(end + 1)..]);
    let to = ddpm_fuzz::path("imported");
    ddpm_fuzz::survives(|| drop(import(&path, &to, Some(Foreign { origin, flags }))));
    let _ = std::fs::remove_dir_all(&to);
});
