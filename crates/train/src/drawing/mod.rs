//! Images drawn from a model, during training and after it.
//!
//! | module | what |
//! | --- | --- |
//! | `pictures` | requests for images, and the images; always from the same noise |
//! | `walk` | the way from noise to images, step by step |

mod pictures;
mod walk;

pub use pictures::{BATCH, Drawing, Glimpse, Guidance, Images, Onlooker, Painter, Request, Start};
