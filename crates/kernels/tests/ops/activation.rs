//! ReLU, GELU and Mish.

use candle_core::{Device, Tensor};
use ddpm_kernels::ops::activation::{self, Activation};

use crate::common::{Case, Tolerance, normal};

const ALL: [Activation; 3] = [Activation::Relu, Activation::Gelu, Activation::Mish];

/// Computed in f64 and rounded once; the gradient's product is rounded with it.
#[test]
fn every_activation_is_right() {
    for f in ALL {
        for shape in [vec![1, 3], vec![5, 7], vec![2, 13, 9, 17], vec![40_000]] {
            // Away from ReLU's kink, where finite differences see both sides.
            let x = normal(1, &shape).affine(3.0, 0.0).unwrap();
            let x = (&x + (x.sign().unwrap() * 0.1).unwrap()).unwrap();
            let twin = |t: &[Tensor]| activation::reference::forward(f, &t[0]);
            let case = Case::new(format!("{f:?} {shape:?}"), &[("x", &x)], &twin);
            let want = case.want();
            let y = activation::forward(f, &x).unwrap();
            let dx = activation::backward(f, &x, &case.dy).unwrap();
            let of_y = Tolerance::sum(1).of(&want.y.abs().unwrap());
            let of_dx = Tolerance::sum(1).of(&want.grads[0].abs().unwrap());
            case.check(&want, (&y, &of_y), &[(&dx, of_dx)]);
        }
    }
}

#[test]
fn far_from_zero_they_are_the_identity_or_nothing() {
    for f in ALL {
        let x = Tensor::new(&[-1e4f32, -200.0, 0.0, 200.0, 1e30], &Device::Cpu).unwrap();
        let y = activation::forward(f, &x).unwrap().to_vec1::<f32>().unwrap();
        let dx = activation::backward(f, &x, &x.ones_like().unwrap()).unwrap().to_vec1::<f32>().unwrap();
        assert!(y[0] == 0.0 && y[1].abs() < 1e-30 && y[2..] == [0.0, 200.0, 1e30], "{f:?}: {y:?}");
        assert!(dx[0] == 0.0 && dx[1].abs() < 1e-30 && dx[3..] == [1.0, 1.0], "{f:?}: {dx:?}");
    }
}
