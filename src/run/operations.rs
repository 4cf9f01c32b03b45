//! Single operations that public reports name as wrong on some device, against exact results.
//!
//! All values are small integers, whose products and sums f32 and TF32 hold exactly: a right device
//! gives the expected numbers to the last bit.

use burn::DispatchDevice;
use burn::prelude::*;
use burn::tensor::{IndexingUpdateOp, TensorData};

use crate::Result;
use crate::device::Concrete;
use crate::tensor::{indices, to_vec};

/// An operation's result on a device, and the exact one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Operation {
    /// Name of the operation.
    pub name: &'static str,
    /// The exact result and the public report on devices that give another.
    pub against: &'static str,
    /// The device's result.
    pub found: Vec<f64>,
    /// The exact result.
    pub expected: Vec<f64>,
}

/// Sizes `[m, k, n]` of products: more than 500 rows (tracel-ai/burn#4966, #4907).
const LARGE: [[usize; 3]; 2] = [[1000, 1000, 1000], [513, 64, 129]];
/// Sizes with 9, 5 and 7 stages of 64 or 128 along k, and sides that fit no tile
/// (tracel-ai/burn#5626).
const STAGES: [[usize; 3]; 6] =
    [[33, 576, 65], [33, 320, 65], [33, 448, 65], [127, 1152, 31], [127, 640, 31], [127, 896, 31]];

/// Runs all operations on a device.
///
/// # Errors
/// A device that fails.
pub(crate) fn operations(device: &DispatchDevice) -> Result<Vec<Operation>> {
    Ok(vec![
        products("products", "exact sums (burn#4966, #4907)", &LARGE, device)?,
        products("stages", "exact sums (burn#5626)", &STAGES, device)?,
        views(device)?,
        fused(device)?,
        scatter(device)?,
    ])
}

/// Small integers from -2 to 2, others for another seed.
fn integers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % 5
    };
    (0..count).map(|_| next() as f32 - 2.0).collect()
}

fn tensor<const D: usize>(values: &[f32], shape: [usize; D], device: &DispatchDevice) -> Tensor<Concrete, D> {
    Tensor::from_data(TensorData::new(values.to_vec(), shape), device)
}

fn host<const D: usize>(tensor: Tensor<Concrete, D>) -> Result<Vec<f64>> {
    Ok(to_vec(tensor, "an operation's result")?.into_iter().map(f64::from).collect())
}

fn products(
    name: &'static str,
    against: &'static str,
    sizes: &[[usize; 3]],
    device: &DispatchDevice,
) -> Result<Operation> {
    let (mut found, mut expected) = (Vec::new(), Vec::new());
    for (&[m, k, n], seed) in sizes.iter().zip(1..) {
        let (a, b) = (integers(m * k, seed), integers(k * n, seed + 100));
        found.extend(host(tensor(&a, [m, k], device).matmul(tensor(&b, [k, n], device)))?);
        let mut product = vec![0f32; m * n];
        for (row, a) in product.chunks_exact_mut(n).zip(a.chunks_exact(k)) {
            for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
                row.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
            }
        }
        expected.extend(product.into_iter().map(f64::from));
    }
    Ok(Operation { name, against, found, expected })
}

/// Sums and maxima over both dimensions of a transposed and of a narrowed matrix.
fn views(device: &DispatchDevice) -> Result<Operation> {
    const ROWS: usize = 67;
    const COLUMNS: usize = 129;
    const FIRST: usize = 5;
    const NARROW: usize = 70;
    let values = integers(ROWS * COLUMNS, 7);
    let matrix = tensor(&values, [ROWS, COLUMNS], device);
    let transposed = matrix.clone().transpose();
    let narrowed = matrix.narrow(1, FIRST, NARROW);
    let mut found = host(transposed.clone().sum_dim(0))?;
    found.extend(host(transposed.clone().sum_dim(1))?);
    found.extend(host(transposed.max_dim(1))?);
    found.extend(host(narrowed.clone().sum_dim(0))?);
    found.extend(host(narrowed.clone().sum_dim(1))?);
    found.extend(host(narrowed.transpose().max_dim(1))?);
    let at = |row: usize, column: usize| f64::from(values[row * COLUMNS + column]);
    let of_column = |column: usize| (0..ROWS).map(move |row| at(row, column));
    let of_row = |row: usize, columns: std::ops::Range<usize>| columns.map(move |column| at(row, column));
    let narrow = FIRST..FIRST + NARROW;
    let mut expected: Vec<f64> = (0..ROWS).map(|row| of_row(row, 0..COLUMNS).sum()).collect();
    expected.extend((0..COLUMNS).map(|column| of_column(column).sum::<f64>()));
    expected.extend((0..COLUMNS).map(|column| of_column(column).fold(f64::NEG_INFINITY, f64::max)));
    expected.extend(narrow.clone().map(|column| of_column(column).sum::<f64>()));
    expected.extend((0..ROWS).map(|row| of_row(row, narrow.clone()).sum::<f64>()));
    expected.extend(narrow.map(|column| of_column(column).fold(f64::NEG_INFINITY, f64::max)));
    Ok(Operation { name: "views", against: "exact sums of views (burn#5599)", found, expected })
}

/// A chain of operations that a build with the feature `tuned` fuses, reduced at once, and the same
/// with every result read before the next operation.
fn fused(device: &DispatchDevice) -> Result<Operation> {
    const ROWS: usize = 65;
    const COLUMNS: usize = 257;
    let [x, y, z] = [11, 12, 13].map(|seed| integers(ROWS * COLUMNS, seed));
    let of = |values: &[f32]| tensor(values, [ROWS, COLUMNS], device);
    let mut found = host((of(&x) * of(&y) + of(&z)).sub_scalar(1.0).mul_scalar(2.0).sum_dim(1))?;
    let product: Vec<f32> = to_vec(of(&x) * of(&y), "a product")?;
    let sum: Vec<f32> = to_vec(of(&product) + of(&z), "a sum")?;
    let less: Vec<f32> = to_vec(of(&sum).sub_scalar(1.0), "a difference")?;
    found.extend(host(of(&less).mul_scalar(2.0).sum_dim(1))?);
    let term = |n: usize| 2.0 * (f64::from(x[n]) * f64::from(y[n]) + f64::from(z[n]) - 1.0);
    let rows: Vec<f64> = (0..ROWS).map(|row| (row * COLUMNS..(row + 1) * COLUMNS).map(term).sum()).collect();
    Ok(Operation {
        name: "fused",
        against: "exact sums, fused and not",
        found,
        expected: [rows.clone(), rows].concat(),
    })
}

/// Rows added in places that repeat, as the gradients of embeddings are.
fn scatter(device: &DispatchDevice) -> Result<Operation> {
    const PLACES: usize = 19;
    const ROWS: usize = 300;
    const WIDTH: usize = 33;
    let values = integers(ROWS * WIDTH, 17);
    let places: Vec<usize> = (0..ROWS).map(|row| row * row % PLACES).collect();
    let indices = indices::<Concrete>(places.iter().copied(), PLACES, device);
    let zeros = Tensor::<Concrete, 2>::zeros([PLACES, WIDTH], device);
    let rows = tensor(&values, [ROWS, WIDTH], device);
    let found = host(zeros.select_assign(0, indices, rows, IndexingUpdateOp::Add))?;
    let mut expected = vec![0.0; PLACES * WIDTH];
    for (&place, row) in places.iter().zip(values.chunks_exact(WIDTH)) {
        let sums = &mut expected[place * WIDTH..][..WIDTH];
        sums.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    Ok(Operation { name: "scatter", against: "exact sums of rows", found, expected })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::BackendName;

    #[test]
    fn every_backend_is_exact() {
        let cpu = BackendName::Cpu.device().unwrap();
        let gpu = BackendName::Wgpu.device().ok();
        for device in std::iter::once(cpu).chain(gpu) {
            for Operation { name, found, expected, .. } in operations(&device).unwrap() {
                assert!(found == expected && expected.iter().any(|&value| value != 0.0), "{name} on {device:?}");
            }
        }
    }
}
