//! The one-dimensional transforms of Winograd F(4, 3) and their adjoints (Lavin & Gray 2015, arXiv 1509.09308,
//! section 4.3), each applied to 16 channels at once.
//!
//! With interpolation points 0, 1, -1, 2, -2 and infinity, four outputs of a three-tap filter are
//! `A^T [(G w) * (B^T d)]` for six inputs `d`. The two-dimensional transform applies each along rows, then columns. The
//! weight's gradient needs two adjoints: `A` for the output's gradient and `G^T` for that of the taps.

use crate::simd::{Isa, Lanes};

/// `B^T d`: six inputs to six products.
#[inline(always)]
pub(super) fn input<I: Isa>(d: [Lanes; 6]) -> [Lanes; 6] {
    let even = d[2].mul_add::<I>(-4.0, d[4]);
    let odd = d[1].mul_add::<I>(-4.0, d[3]);
    let far_even = d[4] - d[2];
    let far_odd = (d[3] - d[1]).scale(2.0);
    [
        d[0].mul_add::<I>(4.0, d[2].mul_add::<I>(-5.0, d[4])),
        even + odd,
        even - odd,
        far_even + far_odd,
        far_even - far_odd,
        d[1].mul_add::<I>(4.0, d[3].mul_add::<I>(-5.0, d[5])),
    ]
}

/// `A^T m`: six products to four outputs.
#[inline(always)]
pub(super) fn output<I: Isa>(m: [Lanes; 6]) -> [Lanes; 4] {
    let (s12, d12) = (m[1] + m[2], m[1] - m[2]);
    let (s34, d34) = (m[3] + m[4], m[3] - m[4]);
    [m[0] + s12 + s34, d34.mul_add::<I>(2.0, d12), s34.mul_add::<I>(4.0, s12), d34.mul_add::<I>(8.0, d12) + m[5]]
}

/// `A y`: the adjoint of [`output`].
#[inline(always)]
pub(super) fn output_adjoint<I: Isa>(y: [Lanes; 4]) -> [Lanes; 6] {
    let (even, odd) = (y[0] + y[2], y[1] + y[3]);
    let far_even = y[2].mul_add::<I>(4.0, y[0]);
    let far_odd = y[3].mul_add::<I>(8.0, y[1].scale(2.0));
    [y[0], even + odd, even - odd, far_even + far_odd, far_even - far_odd, y[3]]
}

/// `G w`: three taps to six products.
#[inline(always)]
pub(super) fn weight<I: Isa>(w: [Lanes; 3]) -> [Lanes; 6] {
    let sum = (w[0] + w[2]).scale(-1.0 / 6.0);
    let middle = w[1].scale(1.0 / 6.0);
    let far_sum = w[0].mul_add::<I>(1.0 / 24.0, w[2].scale(1.0 / 6.0));
    let far_middle = w[1].scale(1.0 / 12.0);
    [w[0].scale(0.25), sum - middle, sum + middle, far_sum + far_middle, far_sum - far_middle, w[2]]
}

/// `G^T u`: the adjoint of [`weight`].
#[inline(always)]
pub(super) fn weight_adjoint<I: Isa>(u: [Lanes; 6]) -> [Lanes; 3] {
    let (s12, d21) = (u[1] + u[2], u[2] - u[1]);
    let (s34, d34) = (u[3] + u[4], u[3] - u[4]);
    [
        u[0].mul_add::<I>(0.25, s12.mul_add::<I>(-1.0 / 6.0, s34.scale(1.0 / 24.0))),
        d21.mul_add::<I>(1.0 / 6.0, d34.scale(1.0 / 12.0)),
        s12.mul_add::<I>(-1.0 / 6.0, s34.mul_add::<I>(1.0 / 6.0, u[5])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::Unfused;

    fn lanes<const N: usize>(values: [f32; N]) -> [Lanes; N] {
        values.map(|v| Lanes([v; 16]))
    }

    fn first<const N: usize>(values: [Lanes; N]) -> [f32; N] {
        values.map(|v| v.0[0])
    }

    fn dot<const N: usize>(a: [f32; N], b: [f32; N]) -> f32 {
        a.iter().zip(b).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn four_outputs_of_a_three_tap_filter_come_out() {
        let (d, w) = ([0.5f32, -1.0, 2.0, 0.25, 3.0, -0.5], [0.75f32, -0.5, 1.5]);
        let (v, u) = (first(input::<Unfused>(lanes(d))), first(weight::<Unfused>(lanes(w))));
        let products: [f32; 6] = std::array::from_fn(|i| v[i] * u[i]);
        let y = first(output::<Unfused>(lanes(products)));
        for (i, y) in y.into_iter().enumerate() {
            let want = dot([d[i], d[i + 1], d[i + 2]], w);
            assert!((y - want).abs() < 1e-5, "output {i}: {y}, want {want}");
        }
    }

    #[test]
    fn each_adjoint_moves_its_transform_to_the_other_side_of_the_inner_product() {
        let six = [0.3f32, -0.7, 1.1, 0.9, -1.3, 0.4];
        let (three, four) = ([0.2f32, -1.4, 0.6], [0.7f32, 0.3, -1.1, 0.5]);
        let close = |a: f32, b: f32| assert!((a - b).abs() < 1e-4, "{a} {b}");
        close(dot(first(output::<Unfused>(lanes(six))), four), dot(six, first(output_adjoint::<Unfused>(lanes(four)))));
        close(
            dot(first(weight::<Unfused>(lanes(three))), six),
            dot(three, first(weight_adjoint::<Unfused>(lanes(six)))),
        );
    }
}
