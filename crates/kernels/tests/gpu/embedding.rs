//! Row look-up, with indices from the host and from the GPU's memory.

use candle_core::{DType, Tensor};
use ddpm_kernels::buffer::FlatBuffer;
use ddpm_kernels::gemm::Write;
use ddpm_kernels::ops::elementwise::{self, reference};

use crate::common::{FORMATS, assert_close, download, exactly, gpu, normals, tolerance};

/// Rows, columns, and which rows are taken: one, some twice, more than a block has threads.
fn cases() -> [(usize, usize, Vec<u32>); 4] {
    let many = (0..700).map(|i| i * i % 5).collect();
    [(1, 1, vec![0]), (7, 24, vec![3, 6, 3, 0]), (11, 300, vec![10, 10, 10, 1, 2]), (5, 33, many)]
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_embedding() {
    for (rows, columns, taken) in cases() {
        let indices = Tensor::new(&taken[..], gpu()).unwrap();
        for table_dtype in FORMATS {
            let table = normals(1, &[rows, columns], table_dtype);
            let exact = reference::embedding(&table.exact, &taken).unwrap();
            let y = elementwise::embedding(&table.device, &taken).unwrap();
            assert_eq!(y.dtype(), table_dtype);
            assert_close("embedding", &y, &exact, 0.0);
            for dtype in FORMATS {
                let y = elementwise::embedding_rows(&table.device, &indices, dtype).unwrap();
                let rounded = exact.to_dtype(DType::F32).unwrap().to_dtype(dtype).unwrap();
                assert_eq!(download(&y), download(&rounded), "{table_dtype:?} to {dtype:?}");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_embedding_backward() {
    const OFFSET: usize = 5;
    for (rows, columns, taken) in cases() {
        let indices = Tensor::new(&taken[..], gpu()).unwrap();
        for dtype in FORMATS {
            for write in [Write::Assign, Write::Add] {
                let what = format!("embedding {rows} {columns} {dtype:?} {write:?}");
                let (table, dy) =
                    (normals(1, &[rows, columns], DType::F32), normals(2, &[taken.len(), columns], dtype));
                let (_, grads) =
                    exactly(&[&table.exact], |_| dy.exact.clone(), |t| reference::embedding(&t[0], &taken));
                let before: Vec<f32> = (0..OFFSET + rows * columns + 3).map(|i| (i as f32).cos()).collect();
                let buffer = FlatBuffer::from_vec(before.clone(), gpu()).unwrap();
                let earlier = buffer.view(OFFSET, &[rows, columns]).unwrap();
                let earlier = Tensor::from_vec(download(&earlier), (rows, columns), grads[0].device()).unwrap();
                elementwise::embedding_rows_backward(&dy.device, &indices, rows, &buffer, OFFSET, write).unwrap();
                let exact = if write == Write::Add { (&grads[0] + earlier).unwrap() } else { grads[0].clone() };
                let found = buffer.view(OFFSET, &[rows, columns]).unwrap();
                assert_close(&what, &found, &exact, tolerance(DType::F32));
                let after = buffer.to_vec().unwrap();
                assert_eq!(after[..OFFSET], before[..OFFSET], "{what}: what lies before");
                assert_eq!(after[after.len() - 3..], before[before.len() - 3..], "{what}: what lies behind");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn gpu_an_index_beyond_the_table_is_refused_or_gives_nan() {
    let table = normals(1, &[3, 4], DType::F32).device;
    assert!(elementwise::embedding(&table, &[0, 3]).is_err());
    let rows = elementwise::embedding_rows(&table, &Tensor::new(&[3u32, 1], gpu()).unwrap(), DType::F32).unwrap();
    let rows = download(&rows);
    assert!(rows[..4].iter().all(|v| v.is_nan()) && rows[4..].iter().all(|v| v.is_finite()), "{rows:?}");
}
