//! What a run has logged as a curve: smoothed, reduced to what a page can show, with the numbers beside its axes. Shared by the picture
//! (`plot`) and the terminal (`watch`).

pub(crate) mod axis;
pub(crate) mod curve;
