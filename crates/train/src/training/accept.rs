//! What a run goes on with from a checkpoint: its plan, where that agrees with the checkpoint's, or where the user accepts the
//! difference.
//!
//! A changed setting is refused, because a run that goes on in another way by accident is worse than one that does not go on.
//! But a diverging run may be saved by a lower learning rate, and a run that moves to a larger machine by a larger batch: such
//! changes are accepted by name, hold from this checkpoint on, and are recorded in `run.json` and the metrics.

use ddpm_data::{Origin, Shuffle, without_query};
use ddpm_run::ChangedData;
use ddpm_run::checkpoint::Checkpoint;
use serde::Deserialize as _;
use serde_json::Value;

use crate::config::{Change, ConfigError, TrainPlan, check_key, describes_weights, diff, may_be_accepted};
use crate::error::Error;
use crate::exchange::Imported;
use crate::known_data::KnownData;
use crate::weights::{checkpoint_config, does_not_fit};

/// In a checkpoint's state: the [`Origin`] of its steps, where it is not the beginning.
const ORIGIN: &str = "data_origin";
/// In a checkpoint's state: the images of a window, where its order has windows.
const WINDOW: &str = "data_shuffle_window";

/// What of a run may differ from the checkpoint that it goes on from.
#[derive(Clone, Debug, Default)]
pub struct Accept {
    /// These keys of the configuration (`--accept KEY`).
    pub keys: Vec<String>,
    /// The data (`--accept-data`).
    pub data: bool,
}

impl Accept {
    /// Refuses keys that no run can accept.
    ///
    /// # Errors
    /// A key that does not exist, or whose value decides what the weights mean.
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        for key in &self.keys {
            if let Some((name, _)) = key.split_once('=').filter(|(name, _)| check_key(name, "--accept").is_ok()) {
                return Err(ConfigError::Impossible {
                    place: "--accept".to_owned(),
                    message: format!("{key}: expected a key without a value"),
                    help: format!("name the key alone, {name}, and give its value as a setting"),
                });
            }
            check_key(key, "--accept")?;
            if !may_be_accepted(key) {
                return Err(ConfigError::Impossible {
                    place: "--accept".to_owned(),
                    message: format!("{key} cannot change in a run: the weights have learnt with its value"),
                    help: "start another run (run.dir)".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// What a run goes on with.
#[derive(Debug)]
pub(super) struct Continuation {
    /// The plan, from the checkpoint on.
    pub(super) plan: TrainPlan,
    /// The keys that were accepted.
    pub(super) accepted: Vec<Change>,
    /// The data, if it is other data than the checkpoint's.
    pub(super) changed_data: Option<ChangedData>,
}

/// What a run with `plan` and `data` goes on with from `checkpoint`, if it may.
///
/// # Errors
/// Other settings or other data than the checkpoint's, that are not accepted.
pub(super) fn go_on_from(
    plan: &TrainPlan,
    checkpoint: &Checkpoint,
    data: &KnownData,
    accept: &Accept,
) -> Result<Continuation, Error> {
    let state = &checkpoint.state;
    let untrained = is_untrained(checkpoint);
    let mut changes = Vec::new();
    if state.config_hash != plan.config_hash() {
        // No key differs if only the program has changed: keys that the older version did not know have their defaults.
        changes = diff(&checkpoint_config(checkpoint)?, plan.config());
        changes.retain(|change| !untrained || describes_weights(&change.key));
    }
    let (accepted, refused): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|change| accept.keys.contains(&change.key));
    if !refused.is_empty() {
        let (config, checkpoint) = (plan.path().to_owned(), checkpoint.path.clone());
        return Err(Error::Changed { config, checkpoint, changes: refused });
    }
    let changed_data = changed_data(checkpoint, data);
    if let Some(ChangedData { images_then: then, images: now, .. }) = changed_data
        && !accept.data
    {
        let (checkpoint, source_now) = (checkpoint.path.clone(), without_query(&plan.config().data.source).to_owned());
        return Err(Error::OtherData { checkpoint, source_now, then, now });
    }
    let origin = match accepted.iter().any(|change| change.key == "train.batch_size") {
        true => Origin { step: state.step, images: state.images },
        false => origin_of(checkpoint)?,
    };
    let plan = plan.starting_at(origin).shuffled(shuffle_from(plan, checkpoint, changed_data.is_some()));
    if origin.step > state.step || plan.images(state.step) != state.images {
        return Err(not_an_origin(checkpoint));
    }
    Ok(Continuation { plan, accepted, changed_data })
}

/// The change of the data since `checkpoint`, if there is one. An import has no data yet.
fn changed_data(checkpoint: &Checkpoint, data: &KnownData) -> Option<ChangedData> {
    let then = &checkpoint.state.data_fingerprint;
    let known = KnownData::of_checkpoint(checkpoint);
    let same_place = known.as_ref().and_then(|then| then.objects.as_ref()).zip(data.objects.as_ref());
    let replaced = same_place.is_some_and(|(then, now)| then.place == now.place && then.version != now.version);
    (!is_untrained(checkpoint) && (*then != data.fingerprint || replaced)).then(|| ChangedData {
        fingerprint_then: then.clone(),
        images_then: known.map(|then| then.images),
        fingerprint: data.fingerprint.clone(),
        images: data.images,
    })
}

/// Whether a checkpoint is an import that no step has changed. Its configuration and data can still be chosen.
pub(super) fn is_untrained(checkpoint: &Checkpoint) -> bool {
    checkpoint.state.step == 0 && Imported::of(checkpoint).is_some()
}

/// The entry of a checkpoint's state for this origin, if it needs one.
pub(super) fn origin_entry(origin: Origin) -> Option<(String, Value)> {
    let written = serde_json::to_value(origin).ok().filter(|_| origin != Origin::default());
    written.map(|value| (ORIGIN.to_owned(), value))
}

fn origin_of(checkpoint: &Checkpoint) -> Result<Origin, Error> {
    let Some(value) = checkpoint.state.extra.get(ORIGIN) else { return Ok(Origin::default()) };
    Origin::deserialize(value).map_err(|_| not_an_origin(checkpoint))
}

/// The order in which a run goes on: that of the checkpoint, though its data may have moved to or from a network since. Other data,
/// and an import, begin an order of their own.
fn shuffle_from(plan: &TrainPlan, checkpoint: &Checkpoint, is_other_data: bool) -> Shuffle {
    match plan.config().data.shuffle() {
        Shuffle::Auto if !is_other_data && !is_untrained(checkpoint) => {
            let window = checkpoint.state.extra.get(WINDOW).and_then(Value::as_u64);
            window.map_or(Shuffle::Whole, Shuffle::Windows)
        }
        configured => configured,
    }
}

/// The entry of a checkpoint's state for this order, if it needs one.
pub(super) fn shuffle_entry(shuffle: Shuffle) -> Option<(String, Value)> {
    match shuffle {
        Shuffle::Windows(window) => Some((WINDOW.to_owned(), window.into())),
        Shuffle::Auto | Shuffle::Whole => None,
    }
}

fn not_an_origin(checkpoint: &Checkpoint) -> Error {
    let error =
        <serde_json::Error as serde::de::Error>::custom("the images before its step do not agree with the settings");
    does_not_fit(checkpoint, &format!("state.json ({ORIGIN})"), error)
}
