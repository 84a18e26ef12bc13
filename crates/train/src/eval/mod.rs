//! Measurements of models and data, apart from training.
//!
//! | module | what |
//! | --- | --- |
//! | [`images`] | the images to measure on |
//! | [`nll`] | bits per dimension: `ddpm eval nll`; `judge`: one timestep of it |
//! | [`noising`] | how fast images become noise: `ddpm schedule --data` |

pub mod images;
mod judge;
pub mod nll;
pub mod noising;
