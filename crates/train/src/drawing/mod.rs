//! Images drawn from a model, during training and after it.
//!
//! | module | what |
//! | --- | --- |
//! | `pictures` | what is asked for, and what comes of it; always from the same noise |
//! | `walk` | that way, step by step |

mod pictures;
mod walk;

pub use pictures::{BATCH, Drawing, Glimpse, Guidance, Images, Onlooker, Painter, Request, Start};
