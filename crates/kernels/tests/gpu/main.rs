//! Every operation on a GPU against its plain twin in f64 on the CPU, at odd shapes, in every number format.
//!
//! They need a GPU, or the emulator: `cargo test -p ddpm-kernels --features cuda --test gpu -- --ignored gpu`.
#![cfg(feature = "cuda")]
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod attention;
mod choices;
mod common;
mod conv2d;
mod copied;
mod diffusion;
#[path = "../common/diffusion.rs"]
mod diffusion_checks;
mod dropout;
mod elementwise;
mod embedding;
mod group_norm;
mod group_norm_fused;
mod linear;
mod optim;
mod random;
mod resample;
