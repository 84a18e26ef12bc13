//! Checkpoints: directories that are complete or do not exist.
//!
//! ```text
//! checkpoints/step-000010000/
//!   model.safetensors, ema-0.9999.safetensors, optimizer.safetensors   f32 tensors under diffusers' key names
//!   timestep_sampler.safetensors                                       with loss.timestep_sampler = "loss_second_moment"
//!   state.json                                                         where the run stands
//!   MANIFEST.json                                                      size and blake3 of every file; written last
//! ```
//! [`save`] writes into `.tmp-step-…` beside the final name, syncs every file, then the manifest, renames the directory
//! and syncs its parent; so a kill at any instant leaves either no new name or a complete checkpoint. [`Checkpoint::open`]
//! believes nothing that the manifest does not prove. [`Writer`] does the saving on its own thread, and [`Retention`]
//! deletes older checkpoints only after a newer one was read back and verified.
//!
//! Nothing here knows the model: a [`Snapshot`] is named arrays per file plus a [`State`].

mod error;
mod manifest;
mod read;
mod retention;
mod save;
pub mod tensors;
mod writer;

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod kill_tests;

pub(crate) use crate::paths::{dir_name, parse_dir_name};
pub use error::CheckpointError;
pub use read::{Checkpoint, Claims, Skipped, list, newest_good, put_back, remove_stale};
pub use retention::Retention;
pub use save::{Saved, save};
pub use writer::{SaveOutcome, Writer};

use serde::{Deserialize, Serialize};

/// Version of the directory's layout and of the meaning of its files; another version is refused, not guessed at.
pub const FORMAT_VERSION: u32 = 1;

/// The file that proves a checkpoint complete.
pub const MANIFEST_FILE: &str = "MANIFEST.json";

/// The file that holds [`State`].
pub(crate) const STATE_FILE: &str = "state.json";

/// The master weights.
pub const MODEL_FILE: &str = "model.safetensors";

/// The optimizer's moments: `exp_avg.<key>` and `exp_avg_sq.<key>`.
pub const OPTIMIZER_FILE: &str = "optimizer.safetensors";

/// What the timestep sampler has observed, where it observes: `losses` and `counts`, see `LossHistory`.
pub const TIMESTEP_SAMPLER_FILE: &str = "timestep_sampler.safetensors";

/// The file of the averaged weights with this decay, as in `ema-0.9999.safetensors`.
pub fn ema_file(decay: f64) -> String {
    format!("ema-{decay}.safetensors")
}

/// All that is needed to go on, copied to the host so that training can change its buffers meanwhile.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// The tensor files, each written in the order given.
    pub files: Vec<TensorFile>,
    /// Where the run stands; its `step` names the checkpoint.
    pub state: State,
}

/// One safetensors file of a snapshot.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorFile {
    /// File name inside the checkpoint, such as [`MODEL_FILE`].
    pub name: String,
    /// Its tensors; names must be unique.
    pub tensors: Vec<NamedTensor>,
}

/// A tensor as it stands in a file: PyTorch's layout (convolutions OIHW, linear ones (out, in)), row-major f32.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedTensor {
    /// diffusers' key.
    pub name: String,
    /// Extents; empty for a scalar.
    pub shape: Vec<usize>,
    /// As many values as the product of `shape`.
    pub data: Vec<f32>,
}

/// Where a run stands. Randomness has no state (it is a function of the step), so this is short.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct State {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Version of the program that wrote it.
    pub program_version: String,
    /// Optimizer steps done.
    pub step: u64,
    /// Images seen in all.
    pub images: u64,
    /// The same in passes over the data.
    pub epoch: EpochPosition,
    /// Hash of the settings that shape the past; a run with another one is refused.
    pub config_hash: String,
    /// Fingerprint of the data source.
    pub data_fingerprint: String,
    /// Whatever else the loop wants back, by name.
    #[serde(default)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

/// A position in passes over the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpochPosition {
    /// Complete passes.
    pub epoch: u64,
    /// Images seen in the current pass.
    pub images: u64,
}

impl EpochPosition {
    /// The position after `images` images of a source of `len`; an empty source stays in pass 0.
    pub fn after(images: u64, len: u64) -> Self {
        match images.checked_div(len) {
            Some(epoch) => Self { epoch, images: images % len },
            None => Self { epoch: 0, images: 0 },
        }
    }
}

impl State {
    /// A state of this program and format version, with nothing extra.
    pub fn new(step: u64, images: u64, epoch: EpochPosition, config_hash: String, data_fingerprint: String) -> Self {
        Self {
            format_version: FORMAT_VERSION,
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            step,
            images,
            epoch,
            config_hash,
            data_fingerprint,
            extra: serde_json::Map::new(),
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! A snapshot small enough to be damaged byte by byte.
    use super::*;

    /// A snapshot of two files at `step`; `seed` varies the values.
    pub(crate) fn snapshot(step: u64, seed: f32) -> Snapshot {
        let tensor = |name: &str, shape: &[usize]| NamedTensor {
            name: name.into(),
            shape: shape.into(),
            data: (0..shape.iter().product::<usize>()).map(|i| seed + i as f32 / 3.0).collect(),
        };
        let model = vec![tensor("conv_in.weight", &[2, 1, 3, 3]), tensor("conv_in.bias", &[2])];
        let moments = vec![tensor("exp_avg.conv_in.bias", &[2]), tensor("scalar", &[])];
        let epoch = EpochPosition::after(step * 8, 100);
        let mut state = State::new(step, step * 8, epoch, "config".into(), "data".into());
        state.extra.insert("loss_scale".into(), 0.1.into());
        Snapshot {
            files: vec![
                TensorFile { name: MODEL_FILE.into(), tensors: model },
                TensorFile { name: OPTIMIZER_FILE.into(), tensors: moments },
            ],
            state,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_position_counts_passes_and_survives_an_empty_source() {
        assert_eq!(EpochPosition::after(250, 100), EpochPosition { epoch: 2, images: 50 });
        assert_eq!(EpochPosition::after(250, 0), EpochPosition { epoch: 0, images: 0 });
    }

    #[test]
    fn ema_files_carry_the_decay_as_it_is_written() {
        assert_eq!(ema_file(0.9999), "ema-0.9999.safetensors");
        assert_eq!(ema_file(0.0), "ema-0.safetensors");
    }
}
