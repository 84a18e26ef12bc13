//! The keys of a configuration, derived from the types themselves.

use ddpm_model::fields::field_names;

use super::types::{
    CheckpointConfig, DataConfig, DiffusionConfig, HubConfig, LogConfig, LossConfig, OptimConfig, RunConfig,
    SampleConfig, TrainConfig, UNetConfig,
};

/// Every section and its keys, in the order of the types.
pub(super) fn sections() -> Vec<(&'static str, &'static [&'static str])> {
    let keys = |section| match section {
        "run" => field_names::<RunConfig>(),
        "data" => field_names::<DataConfig>(),
        "model" => field_names::<UNetConfig>(),
        "diffusion" => field_names::<DiffusionConfig>(),
        "loss" => field_names::<LossConfig>(),
        "train" => field_names::<OptimConfig>(),
        "checkpoint" => field_names::<CheckpointConfig>(),
        "sample" => field_names::<SampleConfig>(),
        "log" => field_names::<LogConfig>(),
        "hub" => field_names::<HubConfig>(),
        _ => &[],
    };
    field_names::<TrainConfig>().iter().map(|&section| (section, keys(section))).collect()
}

/// Every key as `section.key`, in the order of the types.
pub(super) fn keys() -> impl Iterator<Item = String> {
    sections().into_iter().flat_map(|(section, keys)| keys.iter().map(move |key| format!("{section}.{key}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_section_has_keys_and_optional_ones_are_among_them() {
        assert!(sections().iter().all(|(_, keys)| !keys.is_empty()), "{:?}", sections());
        assert!(keys().any(|key| key == "model.num_class_embeds"));
        assert!(keys().any(|key| key == "train.lr"));
    }
}
