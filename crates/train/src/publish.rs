//! A model on its way to the hub: exported into a spool, from which it is pushed.

use std::path::{Path, PathBuf};

use ddpm_hub::{Content, Settings, Spool, Target};
use ddpm_run::RunPaths;
use ddpm_run::disk::is_writable;
use serde_json::json;

use crate::error::Error;
use crate::exchange::{ExportOptions, Exported, Measured, Model, export};

/// Where a model is published, with what.
#[derive(Clone, Debug)]
pub struct Publication {
    /// Where.
    pub target: Target,
    /// Images on the card.
    pub samples: usize,
    /// Leave a learned variance out.
    pub epsilon_only: bool,
    /// The licence to state, as the hub names it.
    pub licence: Option<String>,
    /// What was measured of the model.
    pub measured: Option<Measured>,
}

/// The spool of `model`: the one that already waits, if it belongs to this model, else a new one; `progress` gets the number of
/// drawn samples.
///
/// # Errors
/// As [`Spool::open`] and [`export`].
pub fn spool_of(model: &Model, publication: &Publication, progress: &mut dyn FnMut(usize)) -> Result<Spool, Error> {
    let Publication { target, samples, epsilon_only, licence, measured } = publication;
    let repo = target.repo.to_string();
    let options = ExportOptions {
        epsilon_only: *epsilon_only,
        samples: *samples,
        repo: Some(&repo),
        licence: licence.as_deref(),
        measured: measured.as_ref(),
    };
    let content = Content { fingerprint: fingerprint(model, publication)?, message: message(model) };
    Spool::open(&root_of(&model.origin), target.clone(), content, |folder| {
        export(model, folder, options, progress).map(|Exported { files, .. }| files)
    })
}

/// The directory of a model's spools: in its run, if it has one that can be written.
fn root_of(origin: &Path) -> PathBuf {
    match RunPaths::of_checkpoint(origin).filter(|(run, _)| run.config().is_file() && is_writable(run.root())) {
        Some((run, _)) => run.uploads(),
        None => Settings::user_cache().join("ddpm").join("hub"),
    }
}

/// "clothes at step 1500 (ddpm 0.1.0)"
fn message(model: &Model) -> String {
    let version = env!("CARGO_PKG_VERSION");
    let name = Some(model.config.run.name.as_str()).filter(|name| !name.is_empty()).unwrap_or("a model");
    match &model.facts {
        Some(facts) => format!("{name} at step {} (ddpm {version})", facts.step),
        None => format!("{name} (ddpm {version})"),
    }
}

/// Two models of one fingerprint make the same folder.
fn fingerprint(model: &Model, publication: &Publication) -> Result<String, Error> {
    let mut hasher = blake3::Hasher::new();
    hasher.update(model.weights_hash()?.as_bytes());
    let Publication { target, samples, epsilon_only, licence, measured } = publication;
    let facts = model.facts.clone().map(|facts| facts.with_run(&model.origin));
    let rest = json!([env!("CARGO_PKG_VERSION"), target.repo.to_string(), samples, epsilon_only, licence, measured, facts, {
        "model": model.config.model,
        "diffusion": model.config.diffusion,
    }]);
    hasher.update(rest.to_string().as_bytes());
    Ok(hasher.finalize().to_hex().to_string())
}
