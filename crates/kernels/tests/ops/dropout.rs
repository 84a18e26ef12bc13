//! Dropout: what the mask does; which mask it is, is tested where it is made.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::dropout::{self, Dropout};

use crate::common::{Case, Tolerance, bits, f64s, normal, widen};

fn dropout(probability: f64) -> Dropout {
    Dropout { probability, seed: 3, layer: 2, step: 17, first_position: 5 }
}

#[test]
fn an_element_is_dropped_or_scaled_and_so_is_its_gradient() {
    for probability in [0.1, 0.5, 0.9] {
        let dropout = dropout(probability);
        let x = normal(1, &[2, 5, 7, 17]);
        let mask = dropout::apply(&dropout, &x.ones_like().unwrap()).unwrap();
        let scale = f64::from((1.0 / (1.0 - probability)) as f32);
        assert!(f64s(&mask).iter().all(|&m| m == 0.0 || m == scale), "p = {probability}");
        let mask = widen(&mask);
        let twin = |t: &[Tensor]| &t[0] * &mask;
        let case = Case::new(format!("dropout {probability}"), &[("x", &x)], &twin);
        let (y, dx) = (dropout::apply(&dropout, &x).unwrap(), dropout::apply(&dropout, &case.dy).unwrap());
        let want = case.want();
        let of = |want: &Tensor| Tolerance::sum(1).of(&want.abs().unwrap());
        case.check(&want, (&y, &of(&want.y)), &[(&dx, of(&want.grads[0]))]);
    }
}

#[test]
fn the_samples_of_a_batch_have_masks_of_their_own() {
    let ones = Tensor::ones((2, 1000), DType::F32, &Device::Cpu).unwrap();
    let y = dropout::apply(&dropout(0.5), &ones).unwrap();
    assert_ne!(bits(&y.get(0).unwrap()), bits(&y.get(1).unwrap()));
}

#[test]
fn probability_zero_changes_nothing() {
    let x = normal(1, &[2, 33]);
    assert_eq!(bits(&dropout::apply(&dropout(0.0), &x).unwrap()), bits(&x));
}
