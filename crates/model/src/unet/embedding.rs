//! The inputs of the network besides the image: time (Vaswani et al. 2017, section 3.5) and class.

use candle_core::{Device, Tensor};
use ddpm_kernels::ops::diffusion;

use super::config::{ClassEmbedType, UNetConfig};
use super::layers::{Embedding, InitialWeights, Linear};
use crate::error::{ModelError, Result};
use crate::params::ParamLayout;
use crate::tape::{Tape, Var};

/// The sinusoids, linear, SiLU, linear of the time; plus a learned row per class, or the same of the label's number.
#[derive(Clone, Debug)]
pub(super) struct ConditionEmbedding {
    sinusoids: Sinusoids,
    time: TwoLayers,
    class: Option<ClassEmbedding>,
    config: UNetConfig,
}

/// diffusers' `TimestepEmbedding`; SiLU whatever `act_fn` says.
#[derive(Clone, Debug)]
struct TwoLayers {
    linear_1: Linear,
    linear_2: Linear,
}

/// By `class_embed_type`.
#[derive(Clone, Debug)]
enum ClassEmbedding {
    Table(Embedding),
    Timestep { layers: TwoLayers, classes: Option<usize> },
}

impl TwoLayers {
    fn new(layout: &mut ParamLayout, name: &str, config: &UNetConfig) -> Self {
        let (channels, width) = (config.block_out_channels[0], config.time_embed_dim());
        Self {
            linear_1: Linear::new(layout, &format!("{name}.linear_1"), channels, width, InitialWeights::FanIn),
            linear_2: Linear::new(layout, &format!("{name}.linear_2"), width, width, InitialWeights::FanIn),
        }
    }

    fn forward(&self, tape: &mut Tape<'_>, x: &Tensor, residual: Option<&Var>) -> Result<Var> {
        let h = self.linear_1.forward(tape, &tape.input(x)?, None)?;
        let h = tape.silu(&h)?;
        self.linear_2.forward(tape, &h, residual)
    }
}

impl ClassEmbedding {
    fn new(layout: &mut ParamLayout, config: &UNetConfig) -> Option<Self> {
        const NAME: &str = "class_embedding";
        let classes = config.num_class_embeds;
        match config.class_embed_type {
            None => classes.map(|classes| Self::Table(Embedding::new(layout, NAME, classes, config.time_embed_dim()))),
            Some(ClassEmbedType::Timestep) => {
                Some(Self::Timestep { layers: TwoLayers::new(layout, NAME, config), classes })
            }
        }
    }

    fn classes(&self) -> Option<usize> {
        match self {
            Self::Table(table) => Some(table.rows),
            Self::Timestep { classes, .. } => *classes,
        }
    }
}

impl ConditionEmbedding {
    pub(super) fn new(layout: &mut ParamLayout, config: &UNetConfig) -> Self {
        Self {
            sinusoids: Sinusoids {
                channels: config.block_out_channels[0],
                flip_sin_to_cos: config.flip_sin_to_cos,
                freq_shift: config.freq_shift,
            },
            time: TwoLayers::new(layout, "time_embedding", config),
            class: ClassEmbedding::new(layout, config),
            config: config.clone(),
        }
    }

    pub(super) fn takes_labels(&self) -> bool {
        self.class.is_some()
    }

    /// `[N, E]`, after the activation that every residual block would apply to it.
    pub(super) fn forward(&self, tape: &mut Tape<'_>, condition: &Condition) -> Result<Var> {
        let class = match (&self.class, &condition.labels) {
            (None, None) => None,
            (None, Some(_)) => return Err(ModelError::Labels { conditional: false }),
            (Some(_), None) => return Err(ModelError::Labels { conditional: true }),
            (Some(ClassEmbedding::Table(table)), Some(labels)) => Some(table.forward(tape, labels)?),
            (Some(ClassEmbedding::Timestep { layers, .. }), Some(labels)) => {
                Some(layers.forward(tape, &self.sinusoids.of(labels, tape)?, None)?)
            }
        };
        let h = self.time.forward(tape, &self.sinusoids.of(&condition.timesteps, tape)?, class.as_ref())?;
        self.config.act_fn.forward(tape, &h)
    }

    /// What [`forward`](Self::forward) takes, on `device`.
    pub(super) fn condition(&self, timesteps: &[f32], labels: Option<&[u32]>, device: &Device) -> Result<Condition> {
        if let Some(labels) = labels {
            self.check_labels(timesteps.len(), labels)?;
        }
        let row = |numbers: &[f32]| Tensor::new(numbers, device);
        let labels = labels.map(|labels| match &self.class {
            Some(ClassEmbedding::Timestep { .. }) => row(&labels.iter().map(|&l| l as f32).collect::<Vec<_>>()),
            _ => Tensor::new(labels, device),
        });
        Ok(Condition { timesteps: row(&self.times(timesteps))?, labels: labels.transpose()? })
    }

    /// As [`condition`](Self::condition) has them.
    pub(super) fn times(&self, timesteps: &[f32]) -> Vec<f32> {
        self.config.network_times(timesteps)
    }

    fn check_labels(&self, n: usize, labels: &[u32]) -> Result<()> {
        let Some(class) = &self.class else { return Err(ModelError::Labels { conditional: false }) };
        if labels.len() != n {
            let (found, expected) = (vec![labels.len()], vec![n]);
            return Err(ModelError::Input { what: "class_labels", found, expected });
        }
        let beyond = |classes: &usize| labels.iter().find(|&&label| label as usize >= *classes);
        match class.classes().and_then(|classes| Some((beyond(&classes)?, classes))) {
            Some((&label, classes)) => Err(ModelError::Class { label, classes }),
            None => Ok(()),
        }
    }
}

/// The inputs of the network besides the image, on its device: made by
/// [`UNet::condition`](super::UNet::condition), or from tensors whose numbers have been checked.
#[derive(Clone, Debug)]
pub struct Condition {
    /// `[N]` f32: t as the sinusoids take it, [`UNet::times`](super::UNet::times).
    pub timesteps: Tensor,
    /// `[N]`: u32, or f32 where classes are embedded as numbers; none for a network without classes.
    pub labels: Option<Tensor>,
}

impl Condition {
    /// The same with what `f` makes of each tensor.
    ///
    /// # Errors
    /// Those of `f`.
    pub fn map<E>(&self, f: &mut dyn FnMut(&Tensor) -> std::result::Result<Tensor, E>) -> std::result::Result<Self, E> {
        Ok(Self { timesteps: f(&self.timesteps)?, labels: self.labels.as_ref().map(f).transpose()? })
    }
}

/// How a number becomes a row.
#[derive(Clone, Copy, Debug)]
struct Sinusoids {
    channels: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
}

impl Sinusoids {
    /// `numbers` (f32, N) as `[N, channels]`, on their device, in the format of `tape`.
    fn of(self, numbers: &Tensor, tape: &Tape<'_>) -> Result<Tensor> {
        let channels = self.channels / 2 * 2;
        Ok(diffusion::sinusoids(numbers, channels, self.flip_sin_to_cos, self.freq_shift, tape.dtype())?)
    }
}
