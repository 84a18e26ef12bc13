//! Diffusion models without I/O: the UNet, the tape it runs on, the diffusion process and the optimizer.
//!
//! - [`unet`]: the network, named and configured as diffusers' `UNet2DModel`.
//! - [`tape`]: runs operations, records them, plays their gradients back.
//! - [`params`]: all parameters in one flat buffer, and their gradients in another.
//! - [`diffusion`]: schedules, the forward process, losses, samplers.
//! - [`optim`]: AdamW, moving averages, learning rate.
//! - [`plain`]: the same network out of `candle_nn`'s layers, for programs that use candle and for tests.
//! - [`diffusers`]: configurations to and from diffusers' JSON; [`fields`]: which keys there are.

pub mod diffusers;
pub mod diffusion;
mod error;
pub mod fields;
pub mod optim;
pub mod params;
pub mod plain;
pub mod tape;
pub mod unet;

pub use error::{ModelError, Result};
