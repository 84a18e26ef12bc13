//! The step that ended a training, looked at again.
//!
//! It changed nothing, so that its gradient can be computed once more, from the same weights and images, and looked at layer by
//! layer.

use ddpm_model::ModelError;

use super::super::outcome::StepOutcome;
use super::super::step::StepInputs;
use super::Trainer;
use crate::error::Error;
use crate::weights::named_tensors;

/// A step's inputs on the host, which images they are, and what came of them.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) inputs: StepInputs,
    pub(super) ids: Vec<u64>,
    pub(super) outcome: StepOutcome,
}

/// What was found out about the step that ended a training.
#[derive(Debug)]
pub struct Diagnosis {
    /// The images' numbers in the source.
    pub ids: Vec<u64>,
    /// Their pixels, `[N, H, W, C]`.
    pub images: Vec<u8>,
    /// `[N, H, W, C]`.
    pub shape: [usize; 4],
    /// The step's losses and timesteps.
    pub outcome: StepOutcome,
    /// By tensor, the worst first.
    pub gradients: Vec<LayerGradient>,
}

/// The gradient of a tensor.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct LayerGradient {
    /// The tensor's name in diffusers.
    pub name: String,
    /// Numbers that are not finite.
    pub not_finite: usize,
    /// The largest of the others, without its sign.
    pub largest: f32,
    /// The norm of the others.
    pub norm: f64,
}

impl Trainer {
    /// Looks again at the step that ended the training; `None` if none did.
    ///
    /// # Errors
    /// The device fails.
    pub fn diagnose(&mut self) -> Result<Option<Diagnosis>, Error> {
        let Some(Suspect { inputs, ids, outcome }) = self.suspect.take() else { return Ok(None) };
        // A recording keeps its memory, and there may not be enough left for a step beside it.
        self.give_back_memory()?;
        let shape = inputs.images.dims4().map_err(ModelError::from)?.into();
        let images = inputs.images.flatten_all().and_then(|images| images.to_vec1()).map_err(ModelError::from)?;
        let (sent, learner) = (self.slots.send(inputs)?, &mut self.learner);
        self.engine.run_as_it_is(&mut |clock| learner.take_gradient(&sent, clock))?;
        self.engine.finish()?;
        let flat = learner.gradients.complete()?.to_vec().map_err(ModelError::from)?;
        let tensors = named_tensors(learner.unet.layout(), &flat, "");
        let mut gradients: Vec<_> = tensors.into_iter().map(|tensor| gradient(tensor.name, &tensor.data)).collect();
        gradients.sort_by(|a, b| b.not_finite.cmp(&a.not_finite).then(b.largest.total_cmp(&a.largest)));
        Ok(Some(Diagnosis { ids, images, shape, outcome, gradients }))
    }
}

fn gradient(name: String, values: &[f32]) -> LayerGradient {
    let finite = || values.iter().copied().filter(|value| value.is_finite());
    LayerGradient {
        name,
        not_finite: values.len() - finite().count(),
        largest: finite().fold(0.0, |largest, value| largest.max(value.abs())),
        norm: finite().fold(0.0, |sum, value| sum + f64::from(value).powi(2)).sqrt(),
    }
}
