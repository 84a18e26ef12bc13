//! A Parquet file: footer, columns, pages.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    ddpm_fuzz::put("table.parquet", bytes);
    ddpm_fuzz::look("table.parquet");
});
