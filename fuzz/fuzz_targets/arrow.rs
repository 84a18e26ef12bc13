//! A folder as `datasets.save_to_disk` writes it: the table, or one of the two JSON files beside a good one.
#![no_main]

use libfuzzer_sys::fuzz_target;

macro_rules! saved {
    ($name:literal) => {
        include_bytes!(concat!("../../crates/data/src/format/tests/fixtures/saved-texts/", $name))
    };
}

const TABLE: &str = "data-00000-of-00001.arrow";

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let is_json = bytes.first() == Some(&b'{');
    let is_state = is_json && bytes.windows(8).any(|part| part == b"filename");
    ddpm_fuzz::put(&format!("saved/{TABLE}"), if is_json { saved!("data-00000-of-00001.arrow") } else { bytes });
    ddpm_fuzz::put("saved/state.json", if is_state { bytes } else { saved!("state.json") });
    ddpm_fuzz::put("saved/dataset_info.json", if is_json && !is_state { bytes } else { saved!("dataset_info.json") });
    ddpm_fuzz::look("saved");
});
