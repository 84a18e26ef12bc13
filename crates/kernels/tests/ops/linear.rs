//! The linear layer, over any number of leading axes.

use candle_core::Tensor;
use ddpm_kernels::ops::linear;

use crate::common::{Case, Tolerance, normal, parameter_gradients};

#[track_caller]
fn check(leading: &[usize], inputs: usize, outputs: usize, with_residual: bool) {
    let op = format!("linear {leading:?}, {inputs} to {outputs}, residual {with_residual}");
    let with = |last: usize| [leading, &[last]].concat();
    let (x, weight, bias) = (normal(1, &with(inputs)), normal(2, &[outputs, inputs]), normal(3, &[outputs]));
    let residual = with_residual.then(|| normal(4, &with(outputs)));
    let twin = |t: &[Tensor]| linear::reference::forward(&t[0], &t[1], &t[2], t.get(3));
    let mut operands = vec![("x", &x), ("weight", &weight), ("bias", &bias)];
    operands.extend(residual.as_ref().map(|r| ("residual", r)));
    let case = Case::new(&op, &operands, &twin);
    let (want, magnitude) = (case.want(), case.magnitude());

    let y = linear::forward(&x, &weight, &bias, residual.as_ref()).unwrap();
    let backward = |need_dx| {
        parameter_gradients(&weight, &bias, |g| linear::backward(&x, &weight, &case.dy, need_dx, None, g).unwrap())
    };
    let (with_dx, without_dx) = (backward(true), backward(false));
    assert!(without_dx.returned.is_none(), "{op}: no gradient of x was asked for");
    without_dx.assert_same_bits(&with_dx);
    let dx = with_dx.returned.as_ref().expect("the gradient of x was asked for");
    let rows = leading.iter().product();
    let of = |terms: usize, operand: usize| Tolerance::sum(terms).of(&magnitude.grads[operand]);
    let mut grads = vec![(dx, of(outputs, 0)), (&with_dx.weight, of(rows, 1)), (&with_dx.bias, of(rows, 2))];
    grads.extend(residual.is_some().then(|| (&case.dy, Tolerance::exact())));
    case.check(&want, (&y, &Tolerance::sum(inputs + 2).of(&magnitude.y)), &grads);
    with_dx.check_added(&op, [(&want.grads[1], of(rows, 1)), (&want.grads[2], of(rows, 2))]);
}

#[test]
fn a_linear_layer_is_right_with_and_without_a_residual() {
    for residual in [false, true] {
        check(&[1], 3, 17, residual);
        check(&[5, 7], 24, 3, residual);
        check(&[2, 35], 17, 51, residual);
        check(&[4], 64, 256, residual);
    }
}

/// Large enough that the rows are split between threads: partial sums of the weight's gradient.
#[test]
fn rows_shared_between_threads_are_right() {
    check(&[2, 67], 48, 44, false);
    check(&[131], 45, 47, true);
}

#[test]
fn a_gradient_from_elsewhere_is_added_to_that_of_the_input() {
    let (x, weight, bias) = (normal(1, &[5, 24]), normal(2, &[7, 24]), normal(3, &[7]));
    let (dy, extra) = (normal(4, &[5, 7]), normal(5, &[5, 24]));
    let dx = |extra| {
        let found =
            parameter_gradients(&weight, &bias, |g| linear::backward(&x, &weight, &dy, true, extra, g).unwrap());
        found.returned.unwrap()
    };
    let sum = (&extra + dx(None)).unwrap();
    assert_eq!(sum.to_vec2::<f32>().unwrap(), dx(Some(&extra)).to_vec2::<f32>().unwrap());
}
