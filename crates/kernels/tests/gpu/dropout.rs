//! Dropout: the CPU's mask, bit for bit.

use candle_core::{DType, Device, Tensor};
use ddpm_kernels::ops::dropout::{self, Dropout};

use crate::common::{FORMATS, assert_close, download, gpu, normals, tolerance};

const STEP: u64 = (3 << 32) | 0xFFFF_FFF0;

fn dropout(probability: f64) -> Dropout {
    Dropout { probability, seed: 3, layer: 2, step: STEP, first_position: 0xFFFF_FFFF }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_dropout_draws_the_cpus_mask() {
    for probability in [0.0, 0.1, 0.5, 0.9] {
        for shape in [&[1usize, 1][..], &[3, 5, 7, 11], &[2, 8, 8, 64], &[5, 4]] {
            let dropout = dropout(probability);
            let ones = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
            let mask = dropout::apply(&dropout, &ones).unwrap();
            assert_eq!(download(&dropout::apply(&dropout, &ones.to_device(gpu()).unwrap()).unwrap()), download(&mask));
            for dtype in FORMATS {
                let x = normals(1, shape, dtype);
                let y = dropout::apply(&dropout, &x.device).unwrap();
                let exact = (&x.exact * mask.to_dtype(DType::F64).unwrap()).unwrap();
                assert_close(&format!("dropout {probability} {dtype:?} {shape:?}"), &y, &exact, tolerance(dtype));
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_the_step_may_be_read_from_memory() {
    let x = normals(1, &[2, 40], DType::F32);
    let expected = download(&dropout::apply(&dropout(0.5), &x.device).unwrap());
    let host = x.exact.to_dtype(DType::F32).unwrap();
    let another = Dropout { step: 0, ..dropout(0.5) };
    for (x, device) in [(&x.device, gpu()), (&host, &Device::Cpu)] {
        let step = Tensor::new(&[STEP as u32, (STEP >> 32) as u32], device).unwrap();
        assert_eq!(download(&dropout::apply_at(&another, &step, x).unwrap()), expected, "{device:?}");
        assert!(dropout::apply_at(&another, &Tensor::new(&[0u32], device).unwrap(), x).is_err());
    }
}
