//! Images drawn from a model, during training and after it.
//!
//! | module | what |
//! | --- | --- |
//! | `pictures` | what is asked for, and the way from noise to bytes; always from the same noise |
//! | `gpu` | with the feature `cuda`: a step of that way, recorded and replayed |
//! | `replay` | with the feature `cuda`: passes without gradients, recorded and replayed |

#[cfg(feature = "cuda")]
mod gpu;
mod pictures;
#[cfg(feature = "cuda")]
pub(crate) mod replay;

pub use pictures::{BATCH, Drawing, Glimpse, Guidance, Images, Onlooker, Painter, Request, Start};
