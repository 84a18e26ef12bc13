//! Sums, multiples, offsets, concatenation, activations, row look-up.

use ddpm_kernels::ops::elementwise;

use crate::common::{FORMATS, assert_close, normals, tolerance};

#[test]
#[ignore = "needs a GPU"]
fn gpu_add() {
    for dtype in FORMATS {
        for shape in [&[1usize][..], &[3, 5, 7, 11], &[2, 8, 8, 64]] {
            let (a, b) = (normals(1, shape, dtype), normals(2, shape, dtype));
            let y = elementwise::add(&a.device, &b.device).unwrap();
            assert_close("add", &y, &(&a.exact + &b.exact).unwrap(), tolerance(dtype));
        }
    }
}
