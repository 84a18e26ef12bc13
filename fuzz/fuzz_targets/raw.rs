//! The files of the MNIST family, and of CIFAR-10: a first byte says which file the rest is.
#![no_main]

use libfuzzer_sys::fuzz_target;

const IDX: [(&str, &[u8]); 4] = [
    ("train-images-idx3-ubyte", &[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4]),
    ("train-labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 1, 7]),
    ("t10k-images-idx3-ubyte", &[0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 2, 3, 4]),
    ("t10k-labels-idx1-ubyte", &[0, 0, 8, 1, 0, 0, 0, 1, 7]),
];

fuzz_target!(init: ddpm_fuzz::begin(), |bytes: &[u8]| {
    let Some((&which, bytes)) = bytes.split_first() else { return };
    if usize::from(which) == IDX.len() {
        for number in 1..=5 {
            ddpm_fuzz::put(&format!("cifar/data_batch_{number}.bin"), bytes);
        }
        ddpm_fuzz::put("cifar/test_batch.bin", bytes);
        ddpm_fuzz::put("cifar/batches.meta.txt", bytes);
        return ddpm_fuzz::look("cifar");
    }
    for (number, (name, good)) in IDX.into_iter().enumerate() {
        ddpm_fuzz::put(&format!("idx/{name}"), if number == usize::from(which) { bytes } else { good });
    }
    ddpm_fuzz::look("idx");
});
