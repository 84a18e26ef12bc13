//! What a checkpoint remembers of the data beside its fingerprint, in its state: enough to say what has changed.

use ddpm_data::{Objects, Source};
use ddpm_run::checkpoint::Checkpoint;
use serde::{Deserialize, Serialize};

use crate::config::{TrainConfig, Warning};

/// The field of the state.
pub(crate) const DATA: &str = "data";

/// A data set, as far as a run remembers it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownData {
    /// [`Source::fingerprint`]; the state has a field of its own for it.
    #[serde(skip)]
    pub fingerprint: String,
    /// The number of images.
    pub images: usize,
    /// The names of the classes in the order of the labels, where they have names.
    #[serde(default)]
    pub classes: Option<Vec<String>>,
    /// Where it is and which version, if it lies behind a network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub objects: Option<Objects>,
    /// [`Source::is_far`].
    #[serde(skip)]
    pub is_far: bool,
}

impl KnownData {
    /// A source as it is now, for a run of `config`. Names of classes matter to a model with classes alone.
    pub fn of_source(source: &dyn Source, config: &TrainConfig) -> Self {
        Self {
            fingerprint: source.fingerprint().to_owned(),
            images: source.len(),
            classes: config.data_classes().and(source.class_names()).map(<[String]>::to_vec),
            objects: source.objects(),
            is_far: source.is_far(),
        }
    }

    /// The data that a checkpoint was made with; `None` for checkpoints of versions that did not remember it, and for imports.
    pub fn of_checkpoint(checkpoint: &Checkpoint) -> Option<Self> {
        let state = &checkpoint.state;
        let known: Self = serde_json::from_value(state.extra.get(DATA)?.clone()).ok()?;
        Some(Self { fingerprint: state.data_fingerprint.clone(), ..known })
    }
}

/// A warning where a model has more classes than its data: rows that are never trained, of which samples are noise.
pub(crate) fn unused_classes(config: &TrainConfig, source: &dyn Source) -> Option<Warning> {
    let (classes, named) = config.data_classes().zip(source.class_names().map(<[String]>::len))?;
    let last = classes.checked_sub(1).filter(|&last| last >= named)?;
    let which = if last == named { format!("class {last} is") } else { format!("classes {named} to {last} are") };
    let message =
        format!("the model has {classes} classes and the data {named}: {which} never trained, and drawn as noise");
    Some(Warning { key: "model.num_class_embeds", message })
}
