//! Matrix products on slices of memory, on the calling thread.

/// A view of a matrix in memory.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    values: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Returns the view of `rows` rows of `columns` numbers, a row every `stride` numbers.
    ///
    /// # Panics
    /// If the matrix does not fit into `values`.
    pub(crate) fn new(values: &'a [f32], rows: usize, columns: usize, stride: usize) -> Self {
        assert!(fits(values.len(), rows, columns, stride), "the matrix lies in its memory");
        Self { values, rows, columns, row_stride: stride, column_stride: 1 }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn transpose(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

fn fits(length: usize, rows: usize, columns: usize, stride: usize) -> bool {
    columns <= stride && (rows == 0 || (rows - 1) * stride + columns <= length)
}

/// Whether a product replaces its output or is added to it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum OutputMode {
    Replace,
    Add,
}

/// Writes `scale · a b` into `output`, a row every `stride` numbers.
///
/// # Panics
/// If the inner dimensions differ, or the product does not fit into `output`.
pub(crate) fn product(output: &mut [f32], stride: usize, a: Matrix, b: Matrix, scale: f32, mode: OutputMode) {
    assert_eq!(a.columns, b.rows, "the product's inner dimension");
    assert!(fits(output.len(), a.rows, b.columns, stride), "the product lies in its memory");
    // SAFETY: `Matrix::new` and the check above keep every access within the three slices; `output`
    // is borrowed for writing.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            output.as_mut_ptr(),
            1,
            stride as isize,
            mode == OutputMode::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
