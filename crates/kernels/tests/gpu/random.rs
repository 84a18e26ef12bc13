//! Philox on the GPU against Philox on the CPU, which reproduces Random123's known answers.

use candle_core::DType;
use ddpm_kernels::cuda::random;
use ddpm_kernels::philox::{Philox, Purpose};

use crate::common::{download, gpu};

/// Steps and positions whose every counter word differs, up to all ones.
const PLACES: [(u64, u64); 4] =
    [(0, 0), (17, 3), ((9 << 32) | 5, (7 << 32) | 0xFFFF_FFFE), (0xFFFF_FFFF_FFFF, 1 << 40)];

#[test]
#[ignore = "needs a GPU"]
fn gpu_random_bits_are_the_cpus() {
    for (step, position) in PLACES {
        for (samples, length) in [(1usize, 1usize), (3, 7), (2, 1029)] {
            let philox = Philox::new(step ^ 5, Purpose::Dropout);
            let y = random::bits(&philox, step, position, &[samples, length], gpu()).unwrap();
            let mut expected = vec![0; samples * length];
            for (n, sample) in expected.chunks_mut(length).enumerate() {
                philox.fill_bits(step, position + n as u64, sample);
            }
            assert_eq!(y.flatten_all().unwrap().to_vec1::<u32>().unwrap(), expected, "{step} {position} {length}");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_random_normals_are_the_cpus() {
    for (step, position) in PLACES {
        let (samples, length) = (2, 1003);
        let philox = Philox::new(11, Purpose::Noise);
        let y = download(&random::normals(&philox, step, position, &[samples, length], DType::F32, gpu()).unwrap());
        let mut expected = vec![0f32; samples * length];
        for (n, sample) in expected.chunks_mut(length).enumerate() {
            philox.fill_normal(step, position + n as u64, sample);
        }
        for (i, (y, e)) in y.iter().zip(&expected).enumerate() {
            // One unit in the last place, where f64 was about to round the other way.
            assert!((y - f64::from(*e)).abs() <= f64::from(e.abs()) * 1.2e-7, "element {i}: {y}, not {e}");
        }
    }
}
