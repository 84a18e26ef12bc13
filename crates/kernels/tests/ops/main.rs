//! The conformance suite of the operations.
//!
//! Each kernel (f32) is compared with its twin in plain candle operations evaluated in f64: the output with the
//! twin's, every gradient with candle's autograd over the twin and with central finite differences of it. The bounds
//! are derived ([`common::Tolerance`]), not tuned. [`levels`] repeats the whole suite with narrower vector
//! instructions.

#![allow(clippy::unwrap_used)]

mod activation;
mod attention;
mod common;
mod conv2d;
mod diffusion;
#[path = "../common/diffusion.rs"]
mod diffusion_checks;
mod dropout;
mod elementwise;
mod group_norm;
mod levels;
mod linear;
mod repeat;
mod resample;
mod shapes;
mod stress;
