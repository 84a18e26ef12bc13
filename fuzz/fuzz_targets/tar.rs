//! A tar shard: its index, and the images that it leads to.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    ddpm_fuzz::put("shard.tar", bytes);
    ddpm_fuzz::look("shard.tar");
});
