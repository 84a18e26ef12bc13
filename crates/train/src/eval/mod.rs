//! What is measured of models and data, apart from training.
//!
//! | module | what |
//! | --- | --- |
//! | [`images`] | the images to measure on |
//! | [`nll`] | bits per dimension: `ddpm eval nll`; `gpu_nll` (with the feature `cuda`): a timestep of it, recorded and replayed |
//! | [`noising`] | how fast images become noise: `ddpm schedule --data` |

#[cfg(feature = "cuda")]
mod gpu_nll;
pub mod images;
pub mod nll;
pub mod noising;
