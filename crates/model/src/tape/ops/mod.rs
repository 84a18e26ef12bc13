//! The operations as the network calls them, each in a file: forward now, backward when the tape is played back, and beside it
//! what both cost, keep and allocate ([`Facts`](super::operation::Facts)).

pub(super) mod activation;
pub(super) mod attention;
pub(super) mod conv2d;
pub(super) mod dropout;
pub(super) mod elementwise;
pub(super) mod embedding;
pub(super) mod group_norm;
pub(super) mod linear;
pub(super) mod resample;

pub(crate) use self::conv2d::Residual;
pub(crate) use self::group_norm::{Columns, Time};
use crate::params::ParamId;

/// Weight and bias of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerParams {
    /// The weight.
    pub(crate) weight: ParamId,
    /// The bias.
    pub(crate) bias: ParamId,
}

/// As the details of a layer say it.
fn added(residual: bool) -> &'static str {
    if residual { ", residual" } else { "" }
}
