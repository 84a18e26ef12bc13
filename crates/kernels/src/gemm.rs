//! Matrix products on slices: the `gemm` crate behind checks (which picks AVX-512, AVX2 or NEON at run time).
//!
//! The products run on the calling thread. A caller that wants several cores splits the rows first: every split is then a fixed
//! function of the shapes, so results are the same bit for bit however the threads are scheduled.

use gemm::Parallelism;

/// A read-only view of a matrix: `rows x columns` with a stride each, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// Row-major, rows `row_stride` elements apart.
    ///
    /// # Panics
    /// If `data` is too short: a wrong shape here is a bug, and reading past the end would be worse.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        let needed = if rows == 0 || cols == 0 { 0 } else { (rows - 1) * row_stride + cols };
        assert!(data.len() >= needed, "matrix {rows} x {cols} (stride {row_stride}) in {} elements", data.len());
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// The transpose, without moving anything.
    pub(crate) fn t(self) -> Self {
        Self { rows: self.cols, cols: self.rows, row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// What happens to the destination's old content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Overwritten.
    Assign,
    /// Added to.
    Add,
}

/// `c = a b` or `c += a b`; `c` is row-major with rows `row_stride` apart.
///
/// # Panics
/// If the shapes do not fit or `c` is too short.
pub(crate) fn matmul(a: Mat<'_>, b: Mat<'_>, c: &mut [f32], row_stride: usize, write: Write) {
    let (m, k, n) = (a.rows, a.cols, b.cols);
    assert_eq!(k, b.rows, "inner dimensions");
    if m == 0 || n == 0 {
        return;
    }
    assert!(row_stride >= n && c.len() >= (m - 1) * row_stride + n, "destination {m} x {n} in {} elements", c.len());
    let add = write == Write::Add;
    // SAFETY: the bounds of all three matrices were checked, here or in `Mat::new`; `c` is exclusive.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            row_stride as isize,
            add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            if add { 1.0 } else { 0.0 },
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naive(a: &[f32], b: &[f32], m: usize, k: usize, n: usize) -> Vec<f32> {
        let mut c = vec![0.0; m * n];
        for i in 0..m {
            for j in 0..n {
                c[i * n + j] = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
            }
        }
        c
    }

    fn ramp(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * 37 % 19) as f32 - 9.0) / 4.0).collect()
    }

    #[test]
    fn transposes_strides_and_adding_agree_with_the_naive_product() {
        let (m, k, n) = (5, 7, 3);
        let (a, b) = (ramp(m * k), ramp(k * n));
        let want = naive(&a, &b, m, k, n);
        let mut bt = vec![0.0; n * k];
        for i in 0..k {
            for j in 0..n {
                bt[j * k + i] = b[i * n + j];
            }
        }
        let mut c = vec![1.0; m * 4];
        matmul(Mat::new(&a, m, k, k), Mat::new(&bt, n, k, k).t(), &mut c, 4, Write::Add);
        for i in 0..m {
            for j in 0..n {
                assert_eq!(c[i * 4 + j], want[i * n + j] + 1.0);
            }
            assert_eq!(c[i * 4 + 3], 1.0, "the padding is untouched");
        }
    }

    #[test]
    #[should_panic(expected = "inner dimensions")]
    fn shapes_that_do_not_fit_are_refused() {
        let x = ramp(6);
        matmul(Mat::new(&x, 2, 3, 3), Mat::new(&x, 2, 3, 3), &mut [0.0; 9], 3, Write::Assign);
    }
}
