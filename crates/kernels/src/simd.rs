//! Run-time choice of vector instructions, so that a plain `cargo build` is fast everywhere.
//!
//! A loop written inside `vectorized!` is compiled three times: for AVX-512, for AVX2 with FMA, and for the
//! target's baseline. Each call picks by what the processor reports (measured once). Compiled for generic x86-64
//! alone, the Winograd transforms are five times slower.
//!
//! The bodies are plain loops over slices and `Lanes`, which LLVM turns into vector code; the only thing that
//! needs care is the fused multiply-add, which is a library call where the hardware has none; `Isa` is there for that.
//! A vectorised function must not be split by rayon inside, only called from inside: a closure that another
//! thread runs is compiled without the wide instructions.

use std::sync::OnceLock;

/// What the generic bodies may use.
pub(crate) trait Isa: Copy + Send + Sync + 'static {
    /// `a * b + c`, in one rounding where the hardware can.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// Hardware with a fused multiply-add.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fused;

/// Hardware without.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Unfused;

impl Isa for Fused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a.mul_add(b, c)
    }
}

impl Isa for Unfused {
    #[inline(always)]
    fn mul_add(a: f32, b: f32, c: f32) -> f32 {
        a * b + c
    }
}

/// The instruction sets the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// What the target guarantees.
    Baseline,
    /// AVX2 and FMA (x86-64-v3).
    V3,
    /// AVX-512 F, VL, BW, DQ (x86-64-v4).
    V4,
}

impl Level {
    /// A name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline if cfg!(target_arch = "aarch64") => "NEON",
            Self::Baseline => "baseline",
            Self::V3 => "AVX2 + FMA",
            Self::V4 => "AVX-512",
        }
    }
}

/// The best level of this processor. `DDPM_SIMD=baseline|avx2` lowers it, for tests and for comparing machines.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let limit = match std::env::var("DDPM_SIMD").as_deref() {
            Ok("baseline") => Level::Baseline,
            Ok("avx2") => Level::V3,
            _ => Level::V4,
        };
        detect().min(limit)
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let v3 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let v4 = v3
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq");
    match (v3, v4) {
        (_, true) => Level::V4,
        (true, false) => Level::V3,
        _ => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// The fused multiply-add of the baseline: NEON has one, x86-64 has not.
#[cfg(target_arch = "aarch64")]
pub(crate) type BaselineIsa = Fused;
/// The fused multiply-add of the baseline: NEON has one, x86-64 has not.
#[cfg(not(target_arch = "aarch64"))]
pub(crate) type BaselineIsa = Unfused;

/// Compiles a function for every [`Level`] and calls the one this processor can run.
///
/// `fn name<I>(args) { body }` becomes `fn name(args)`; the body may use `I: Isa`. It must hold the whole hot loop.
macro_rules! vectorized {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$isa:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            fn body<$isa: $crate::simd::Isa>($($arg: $ty),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,bmi1,bmi2")]
            #[allow(clippy::too_many_arguments)]
            fn v4($($arg: $ty),*) $(-> $ret)? { body::<$crate::simd::Fused>($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,bmi1,bmi2")]
            #[allow(clippy::too_many_arguments)]
            fn v3($($arg: $ty),*) $(-> $ret)? { body::<$crate::simd::Fused>($($arg),*) }

            #[cfg(target_arch = "x86_64")]
            match $crate::simd::level() {
                // SAFETY: `level` saw that the processor has these instructions.
                $crate::simd::Level::V4 => return unsafe { v4($($arg),*) },
                // SAFETY: as above.
                $crate::simd::Level::V3 => return unsafe { v3($($arg),*) },
                $crate::simd::Level::Baseline => {}
            }
            body::<$crate::simd::BaselineIsa>($($arg),*)
        }
    };
}
pub(crate) use vectorized;

/// Sixteen f32: one AVX-512 register, two of AVX2.
pub(crate) const LANES: usize = 16;

/// A vector of [`LANES`] numbers; arithmetic is element by element.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Lanes(pub(crate) [f32; LANES]);

impl Lanes {
    /// All zero.
    pub(crate) const ZERO: Self = Self([0.0; LANES]);

    /// `self * factor`.
    #[inline(always)]
    pub(crate) fn scale(mut self, factor: f32) -> Self {
        for v in &mut self.0 {
            *v *= factor;
        }
        self
    }

    /// `self * factor + term`.
    #[inline(always)]
    pub(crate) fn mul_add<I: Isa>(mut self, factor: f32, term: Self) -> Self {
        for (v, t) in self.0.iter_mut().zip(term.0) {
            *v = I::mul_add(*v, factor, t);
        }
        self
    }
}

impl std::ops::Add for Lanes {
    type Output = Self;
    #[inline(always)]
    fn add(mut self, other: Self) -> Self {
        for (v, o) in self.0.iter_mut().zip(other.0) {
            *v += o;
        }
        self
    }
}

impl std::ops::Sub for Lanes {
    type Output = Self;
    #[inline(always)]
    fn sub(mut self, other: Self) -> Self {
        for (v, o) in self.0.iter_mut().zip(other.0) {
            *v -= o;
        }
        self
    }
}

/// `e^x` to about 2 units in the last place, for `x` in `[-87, 88]` (clamped): range reduction by `ln 2` in two
/// parts and a polynomial of degree 6 (Cephes' `expf`), without a branch, so that loops over it vectorise.
#[inline(always)]
pub(crate) fn exp<I: Isa>(x: f32) -> f32 {
    /// 1.5 * 2^23: adding it leaves the rounded integer in the low bits of the mantissa.
    const ROUNDER: f32 = 12_582_912.0;
    let x = x.clamp(-87.0, 88.0);
    let shifted = I::mul_add(x, std::f32::consts::LOG2_E, ROUNDER);
    let n = shifted - ROUNDER;
    let r = I::mul_add(n, -0.693_359_4, x);
    let r = I::mul_add(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = I::mul_add(p, r, c);
    }
    let p = I::mul_add(p, r * r, r) + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid<I: Isa>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<I>(-x))
}

#[cfg(test)]
mod tests {
    use super::*;

    vectorized! {
        fn exp_all<I>(x: &mut [f32]) {
            for v in x {
                *v = exp::<I>(*v);
            }
        }
    }

    #[test]
    fn exp_agrees_with_f64_over_its_whole_range() {
        let xs: Vec<f32> = (0..200_000).map(|i| -87.0 + 175.0 * i as f32 / 200_000.0).collect();
        let mut got = xs.clone();
        exp_all(&mut got);
        for (x, got) in xs.iter().zip(&got) {
            let want = f64::from(*x).exp();
            let error = ((f64::from(*got) - want) / want).abs();
            assert!(error < 3e-7, "exp({x}) = {got}, want {want}");
        }
    }

    #[test]
    fn every_level_this_processor_has_gives_the_same_exponential_to_the_last_digits() {
        for x in [-50.0f32, -1.5, -1e-6, 0.0, 1e-6, 0.7, 30.0] {
            let (a, b) = (exp::<Fused>(x), exp::<Unfused>(x));
            assert!(((a - b) / a).abs() < 3e-7, "{x}: {a} {b}");
        }
    }
}
