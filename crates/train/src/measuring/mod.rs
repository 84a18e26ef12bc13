//! Time and memory of training and drawing, measured or estimated.
//!
//! | module | what |
//! | --- | --- |
//! | [`step`] | how long a step takes |
//! | [`estimate`] | time and memory of a step that would take too long |
//! | [`throughput`] | how fast images are drawn and read |
//! | [`operations`] | how long each operation of the network takes |

pub mod estimate;
pub mod operations;
pub mod step;
pub mod throughput;
