//! Decides whether two configurations are the same run: by every key that can change a result, and no other.
//!
//! A run may be resumed with more steps, other pictures, another device or more workers; with another learning rate or network
//! it would be a different run. `micro_batch` and `gradient_checkpointing` do not change the update, so they may be adapted to
//! the memory.

use serde_json::{Map, Value, json};

use super::schema;
use super::toml_source::to_toml;
use super::types::TrainConfig;

/// Sections whose keys cannot change past results.
const FREE_SECTIONS: [&str; 4] = ["checkpoint", "sample", "log", "hub"];

/// Keys of other sections that cannot change past results. Data may move: a checkpoint identifies it by its fingerprint.
const FREE_KEYS: [&str; 22] = [
    "run.name",
    "run.dir",
    "run.device",
    "run.stall_after",
    "run.exit_on_stall",
    "run.rank_timeout",
    "data.source",
    "data.format",
    "data.workers",
    "data.prefetch",
    "data.cache_dir",
    "data.cache_bytes",
    "data.retry_for",
    // They decide when a run ends. The images that it has seen stay what they were.
    "data.on_corrupt",
    "data.max_corrupt",
    "train.steps",
    "train.max_bad_steps",
    "train.max_rollbacks",
    "train.micro_batch",
    "train.allow_tf32",
    "train.gradient_checkpointing",
    "train.deterministic",
];

/// A key whose value differs between two configurations.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// `section.key`.
    pub key: String,
    /// The old value, as TOML.
    pub old: String,
    /// The new value, as TOML.
    pub new: String,
}

/// The hash of all keys that can change past results, in hexadecimal.
pub fn config_hash(config: &TrainConfig) -> String {
    let binding: Map<String, Value> = binding_values(config).collect();
    blake3::hash(Value::Object(binding).to_string().as_bytes()).to_hex().to_string()
}

/// The differing keys that can change past results, in the order of the sections. Empty if the hashes agree.
pub fn diff(old: &TrainConfig, new: &TrainConfig) -> Vec<Change> {
    binding_values(old)
        .zip(binding_values(new))
        .filter(|((key, old), (_, new))| old != new && !only_allows_more(key, old, new))
        .map(|((key, old), (_, new))| Change { key, old: to_toml(&old), new: to_toml(&new) })
        .collect()
}

fn binding_values(config: &TrainConfig) -> impl Iterator<Item = (String, Value)> {
    let document = json!(config);
    schema::keys().filter(|key| is_binding(key)).map(move |key| {
        let value = document.pointer(&format!("/{}", key.replace('.', "/"))).cloned().unwrap_or(Value::Null);
        (key, value)
    })
}

/// Whether another value would change what the weights mean. Dropout affects only training.
pub fn describes_weights(key: &str) -> bool {
    (key.starts_with("model.") || key.starts_with("diffusion.")) && key != "model.dropout"
}

/// Whether a run may go on from a checkpoint with another value of this key, where its user accepts that.
pub fn may_be_accepted(key: &str) -> bool {
    !describes_weights(key) && !["data.image_size", "data.channels"].contains(&key)
}

/// Whether the old value of a key only refused what the new one allows: with `data.crop = "none"` no image was cut so far, and
/// an image within a limit is within a larger one.
fn only_allows_more(key: &str, old: &Value, new: &Value) -> bool {
    match key {
        "data.crop" => old == "none",
        "data.max_pixels" | "data.max_bytes" => old.as_u64() < new.as_u64(),
        _ => false,
    }
}

fn is_binding(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or_default();
    !FREE_SECTIONS.contains(&section) && !FREE_KEYS.contains(&key)
}

#[cfg(test)]
mod tests {
    use super::super::types::{Crop, OnCorrupt};
    use super::*;

    #[test]
    fn steps_logging_and_places_do_not_change_the_run() {
        let old = TrainConfig::default();
        let mut new = old.clone();
        new.train.steps += 1;
        new.train.micro_batch = 3;
        new.run.name = "other".to_owned();
        new.run.device = "cpu".to_owned();
        new.data.workers = 7;
        new.log.every = 1;
        new.sample.every = 1;
        new.checkpoint.every = 1;
        assert_eq!(diff(&old, &new), []);
        assert_eq!(config_hash(&old), config_hash(&new));
    }

    #[test]
    fn a_changed_learning_rate_or_network_is_named() {
        let old = TrainConfig::default();
        let mut new = old.clone();
        new.train.lr = 1e-3;
        new.model.num_class_embeds = Some(10);
        let change = |key: &str, old: &str, new: &str| Change { key: key.into(), old: old.into(), new: new.into() };
        let want = [change("model.num_class_embeds", "\"none\"", "10"), change("train.lr", "2e-4", "0.001")];
        assert_eq!(diff(&old, &new), want);
        assert_ne!(config_hash(&old), config_hash(&new));
    }

    #[test]
    fn what_the_weights_mean_cannot_be_accepted_anew() {
        let accepted = ["train.lr", "train.batch_size", "loss.type", "model.dropout", "data.flip", "run.seed"];
        assert!(accepted.iter().all(|key| may_be_accepted(key)));
        let fixed = ["model.block_out_channels", "diffusion.beta_schedule", "data.image_size", "data.channels"];
        assert!(fixed.iter().all(|key| !may_be_accepted(key)));
    }

    #[test]
    fn what_the_errors_of_images_advise_is_no_other_run() {
        let mut old = TrainConfig::default();
        old.data.crop = Crop::None;
        let mut new = old.clone();
        (new.data.crop, new.data.on_corrupt, new.data.max_corrupt) = (Crop::Random, OnCorrupt::Fail, 1.0);
        assert_eq!(diff(&old, &new), []);
        (new.data.max_pixels, new.data.max_bytes) = (old.data.max_pixels + 1, old.data.max_bytes * 2);
        assert_eq!(diff(&old, &new), []);
        let refused: Vec<String> = diff(&new, &old).into_iter().map(|change| change.key).collect();
        assert_eq!(
            refused,
            ["data.crop", "data.max_pixels", "data.max_bytes"],
            "images were cut, and larger ones read"
        );
    }

    #[test]
    fn every_free_key_exists() {
        let keys: Vec<String> = schema::keys().collect();
        assert!(FREE_KEYS.iter().all(|free| keys.iter().any(|key| key == free)));
        assert!(FREE_SECTIONS.iter().all(|free| keys.iter().any(|key| key.starts_with(&format!("{free}.")))));
    }
}
