//! Copies of buffers that leave a GPU while it goes on.

use std::thread;

use candle_core::{DType, Tensor};
use ddpm_kernels::buffer::FlatBuffer;
use ddpm_kernels::cuda::{Gpu, open};

/// More than crosses at once, and not a multiple of it.
const LEN: usize = (4 << 20) + 12;

#[test]
#[ignore = "needs a GPU"]
fn gpu_a_copy_holds_what_the_buffer_held_when_it_was_made() {
    // A stream of its own: what the other tests queue must not fall into the recording either.
    let device = open(0).unwrap();
    let numbers: Vec<f32> = (0..LEN).map(|k| k as f32).collect();
    let buffer = FlatBuffer::from_vec(numbers.clone(), &device).unwrap();
    let copies = [buffer.copied().unwrap(), buffer.copied().unwrap()];
    // Dropped unread: its memory is free when the copy has been made.
    drop(buffer.copied().unwrap());
    buffer.fill_zero(0..LEN).unwrap();
    let after = buffer.copied().unwrap();
    let leaving = thread::spawn(|| copies.map(|copy| copy.into_vec().unwrap()));
    // Another thread may leave while this one records: nothing of it falls into the recording.
    let gpu = Gpu::of(&device).unwrap();
    let (from, to) = (Tensor::ones(8, DType::F64, &device), Tensor::zeros(8, DType::F64, &device));
    let (from, to) = (from.unwrap(), to.unwrap());
    let recorded = gpu.record(|| {
        let left = thread::scope(|scope| scope.spawn(|| after.into_vec()).join());
        assert!(left.unwrap().unwrap().iter().all(|&number| number == 0.0));
        ddpm_kernels::buffer::copy(&from, &to)
    });
    recorded.unwrap().replay().unwrap();
    assert_eq!(to.to_vec1::<f64>().unwrap(), [1.0; 8]);
    for copy in leaving.join().unwrap() {
        assert!(copy == numbers);
    }
}
