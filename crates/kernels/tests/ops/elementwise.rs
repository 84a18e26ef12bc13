//! Sums, channel offsets, concatenation, SiLU and the embedding.

use candle_core::{Device, Tensor};
use ddpm_kernels::buffer::FlatBuffer;
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::elementwise;

use crate::common::{Case, Tolerance, assert_close, bits, normal, widen};

const SHAPES: [[usize; 4]; 3] = [[1, 5, 7, 3], [2, 13, 9, 17], [2, 33, 21, 24]];

#[test]
fn a_sum_is_right() {
    for shape in SHAPES {
        let (a, b) = (normal(1, &shape), normal(2, &shape));
        let twin = |t: &[Tensor]| &t[0] + &t[1];
        let case = Case::new(format!("add {shape:?}"), &[("a", &a), ("b", &b)], &twin);
        let y = elementwise::add(&a, &b).unwrap();
        let grads = [(&case.dy, Tolerance::exact()), (&case.dy, Tolerance::exact())];
        case.check(&case.want(), (&y, &Tolerance::sum(1).of(&case.magnitude().y)), &grads);
    }
}

#[test]
fn a_multiple_is_right() {
    for shape in SHAPES {
        let x = normal(1, &shape);
        let twin = |t: &[Tensor]| &t[0] * 0.3;
        let case = Case::new(format!("scale {shape:?}"), &[("x", &x)], &twin);
        let y = elementwise::scale(&x, 0.3).unwrap();
        let dx = elementwise::scale(&case.dy, 0.3).unwrap();
        // The factor is rounded, and then the product.
        case.check(&case.want(), (&y, &Tolerance::sum(2)), &[(&dx, Tolerance::sum(2))]);
    }
}

#[test]
fn an_offset_per_channel_is_right() {
    for shape in SHAPES {
        let (x, offset) = (normal(1, &shape), normal(2, &[shape[0], shape[3]]));
        let twin = |t: &[Tensor]| elementwise::reference::add_channels(&t[0], &t[1]);
        let case = Case::new(format!("add_channels {shape:?}"), &[("x", &x), ("offset", &offset)], &twin);
        let magnitude = case.magnitude();
        let y = elementwise::add_channels(&x, &offset).unwrap();
        let d_offset = elementwise::add_channels_backward(&case.dy).unwrap();
        let pixels = Tolerance::sum(shape[1] * shape[2]).of(&magnitude.grads[1]);
        case.check(
            &case.want(),
            (&y, &Tolerance::sum(1).of(&magnitude.y)),
            &[(&case.dy, Tolerance::exact()), (&d_offset, pixels)],
        );
    }
}

#[test]
fn concatenation_moves_every_number_to_its_place_and_back() {
    for (shape, channels) in SHAPES.into_iter().zip([17, 3, 1]) {
        let (a, b) = (normal(1, &shape), normal(2, &[shape[0], shape[1], shape[2], channels]));
        let twin = |t: &[Tensor]| Tensor::cat(&[&t[0], &t[1]], 3);
        let case = Case::new(format!("concat {shape:?} and {channels}"), &[("a", &a), ("b", &b)], &twin);
        let y = elementwise::concat(&a, &b).unwrap();
        let (da, db) = elementwise::concat_backward(&case.dy, shape[3]).unwrap();
        let grads = [(&da, Tolerance::exact()), (&db, Tolerance::exact())];
        case.check(&case.want(), (&y, &Tolerance::exact()), &grads);
    }
}

/// The exponential is good to five units (tested where it is written), the rest are a few roundings.
#[test]
fn silu_is_right() {
    for shape in [vec![1, 3], vec![5, 7], vec![2, 13, 9, 17], vec![40_000]] {
        let x = normal(1, &shape).affine(3.0, 0.0).unwrap();
        let twin = |t: &[Tensor]| elementwise::reference::silu(&t[0]);
        let case = Case::new(format!("silu {shape:?}"), &[("x", &x)], &twin);
        let want = case.want();
        let y = elementwise::silu(&x).unwrap();
        let dx = elementwise::silu_backward(&x, &case.dy).unwrap();
        let of_y = Tolerance::sum(16).of(&want.y.abs().unwrap());
        case.check(&want, (&y, &of_y), &[(&dx, Tolerance::sum(16))]);
    }
}

#[test]
fn an_embedding_picks_rows_and_its_gradient_adds_to_them() {
    for (rows, c, indices) in [(1, 3, vec![0]), (7, 17, vec![6, 0, 3, 3, 0, 3]), (10, 24, vec![9, 2])] {
        let table = normal(1, &[rows, c]);
        let twin = |t: &[Tensor]| elementwise::reference::embedding(&t[0], &indices);
        let case = Case::new(format!("embedding {indices:?} of {rows} rows"), &[("table", &table)], &twin);
        let want = case.want();
        let y = elementwise::embedding(&table, &indices).unwrap();
        let written = |write| {
            let before = normal(2, &[5 + rows * c + 3]);
            let buffer = FlatBuffer::from_vec(before.to_vec1().unwrap(), &Device::Cpu).unwrap();
            elementwise::embedding_backward(&case.dy, &indices, rows, &buffer, 5, write).unwrap();
            let after = buffer.view(0, &[5 + rows * c + 3]).unwrap();
            for (start, len) in [(0, 5), (5 + rows * c, 3)] {
                let around = |t: &Tensor| bits(&t.narrow(0, start, len).unwrap());
                assert_eq!(around(&after), around(&before), "outside the table");
            }
            let table = |t: &Tensor| t.narrow(0, 5, rows * c).unwrap().reshape((rows, c)).unwrap();
            (table(&after), table(&before))
        };
        let tolerance = Tolerance::sum(indices.len());
        let (grad, _) = written(Write::Assign);
        case.check(&want, (&y, &Tolerance::exact()), &[(&grad, tolerance.clone())]);
        let (added, before) = written(Write::Add);
        let sum = (&want.grads[0] + widen(&before)).unwrap();
        assert_close("embedding, added", &added, &sum, &tolerance.added_to(&want.grads[0], &before));
    }
}
