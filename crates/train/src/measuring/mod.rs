//! How fast and how large training and drawing are, measured or estimated before.
//!
//! | module | what |
//! | --- | --- |
//! | [`step`] | how long a step takes |
//! | [`estimate`] | the same, and its memory, where a whole step would take too long |
//! | [`throughput`] | how fast images are drawn and read |
//! | [`operations`] | how long each operation of the network takes |

pub mod estimate;
pub mod operations;
pub mod step;
pub mod throughput;
