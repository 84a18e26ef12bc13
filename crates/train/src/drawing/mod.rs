//! Images drawn from a model, during training and after it.
//!
//! | module | what |
//! | --- | --- |
//! | `request` | what is drawn |
//! | `pictures` | the images, always from the same noise |
//! | `walk` | the way from noise to images, step by step |

mod pictures;
mod request;
mod walk;

pub use pictures::Drawing;
pub use request::{BATCH, Glimpse, Guidance, Images, Onlooker, Painter, Request, Start};
