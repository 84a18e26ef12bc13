//! Diffusion models without I/O: the UNet, the tape it runs on, the diffusion process and the optimizer.
//!
//! - [`unet`]: the network, named and configured as diffusers' `UNet2DModel`.
//! - [`tape`]: runs operations, records them, plays their gradients back.
//! - [`params`]: all parameters in one flat buffer, and their gradients in another.
//! - [`diffusion`]: schedules, the forward process, losses, samplers.
//! - [`optim`]: AdamW, moving averages, learning rate.

pub mod diffusion;
mod error;
pub mod optim;
pub mod params;
pub mod tape;
pub mod unet;

pub use error::{ModelError, Result};
