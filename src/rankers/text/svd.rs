//! Short dense vectors of titles: the truncated singular value decomposition of their TF-IDF matrix
//! (latent semantic analysis), as scikit-learn's `TruncatedSVD` computes it.
//!
//! With X `[items, terms]` and X ≈ U Σ Vᵀ of rank `dim`, the vectors are the rows of U Σ. Subspace
//! iteration from random vectors (Halko, Martinsson, Tropp, SIAM Review 2011, Algorithm 4.4) on X
//! Xᵀ, which is never formed: memory grows with the items, not with the terms.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;

use super::Tfidf;
use crate::rankers::training::normal;

/// Vectors beside those that are wanted, so that the last of them converge, too.
const OVERSAMPLING: usize = 10;
/// Multiplications by X Xᵀ.
const ITERATIONS: usize = 12;
/// Columns that a pass over the matrix multiplies together.
const BLOCK: usize = 8;
/// Rows that one thread updates at a time.
const ROWS: usize = 4096;
/// A vector of which no more than this part is left beside the ones before it is one of theirs.
const DEPENDENT: f64 = 1e-5;

/// Returns the rows of U Σ; columns beyond the rank of the matrix are 0.
///
/// # Shapes
/// Returns `[items, dim]`.
pub(super) fn truncated_svd(tfidf: &Tfidf, dim: usize, seed: u64) -> Vec<f32> {
    let items = tfidf.items();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let width = (dim + OVERSAMPLING).min(items);
    let mut basis: Vec<Vec<f32>> = (0..width).map(|_| normal(&mut rng, items, 1.0)).collect();
    for _ in 0..ITERATIONS {
        orthonormalise(&mut basis);
        basis = multiply(tfidf, &basis);
    }
    orthonormalise(&mut basis);
    // Rayleigh and Ritz: within the basis the decomposition is exact.
    let image = multiply(tfidf, &basis);
    let projected: Vec<Vec<f64>> =
        basis.par_iter().map(|row| image.iter().map(|column| dot(row, column)).collect()).collect();
    let eigen = symmetric_eigen(projected);
    let mut vectors = vec![0f32; items * dim];
    vectors.par_chunks_exact_mut(dim.max(1)).enumerate().for_each(|(item, vector)| {
        for (value, (eigenvalue, weights)) in vector.iter_mut().zip(&eigen) {
            let sum: f64 = basis.iter().zip(weights).map(|(column, weight)| f64::from(column[item]) * weight).sum();
            *value = (sum * eigenvalue.max(0.0).sqrt()) as f32;
        }
    });
    vectors
}

/// Returns X Xᵀ times each column.
///
/// # Shapes
/// `columns` and the result: `[width][items]`.
fn multiply(tfidf: &Tfidf, columns: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let block = |columns: &[Vec<f32>]| {
        let rows = |item: usize| std::array::from_fn(|c| columns.get(c).map_or(0.0, |column| column[item]));
        let rows: Vec<[f32; BLOCK]> = (0..tfidf.items()).map(rows).collect();
        let mut product = vec![[0f32; BLOCK]; rows.len()];
        for term in 0..tfidf.vocabulary() as u32 {
            let mut sum = [0f32; BLOCK];
            for &(item, weight) in tfidf.postings(term) {
                sum.iter_mut().zip(rows[item as usize]).for_each(|(sum, value)| *sum += weight * value);
            }
            for &(item, weight) in tfidf.postings(term) {
                product[item as usize].iter_mut().zip(sum).for_each(|(value, sum)| *value += weight * sum);
            }
        }
        (0..columns.len()).map(|c| product.iter().map(|row| row[c]).collect()).collect::<Vec<Vec<f32>>>()
    };
    columns.par_chunks(BLOCK).flat_map_iter(block).collect()
}

/// Makes the columns orthonormal by Gram and Schmidt's method, twice for the rounding; a column
/// that depends on those before it becomes 0.
fn orthonormalise(columns: &mut [Vec<f32>]) {
    for index in 0..columns.len() {
        let (before, rest) = columns.split_at_mut(index);
        let (before, column) = (&*before, &mut rest[0]);
        let length = dot(column, column).sqrt();
        for _ in 0..2 {
            let shares: Vec<f64> = before.par_iter().map(|other| dot(other, column)).collect();
            column.par_chunks_mut(ROWS).enumerate().for_each(|(chunk, column)| {
                for (other, &share) in before.iter().zip(&shares) {
                    let other = &other[chunk * ROWS..][..column.len()];
                    column.iter_mut().zip(other).for_each(|(value, other)| *value -= share as f32 * other);
                }
            });
        }
        let left = dot(column, column).sqrt();
        let factor = if left > DEPENDENT * length { (1.0 / left) as f32 } else { 0.0 };
        column.iter_mut().for_each(|value| *value *= factor);
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Returns the eigenvalues of a symmetric matrix, descending, each with its eigenvector, by
/// Jacobi's rotations.
///
/// # Shapes
/// `matrix`: `[n][n]`.
fn symmetric_eigen(mut matrix: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    let n = matrix.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|row| (0..n).map(|column| if row == column { 1.0 } else { 0.0 }).collect()).collect();
    // Each sweep squares what is left beside the diagonal once it is small: ten are plenty.
    for _ in 0..30 {
        let beside = |row: usize| (0..n).filter(move |&column| column != row);
        let left: f64 = (0..n).map(|row| beside(row).map(|column| matrix[row][column].powi(2)).sum::<f64>()).sum();
        let all: f64 = matrix.iter().flatten().map(|value| value * value).sum();
        if left <= 1e-24 * all {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                rotate(&mut matrix, &mut vectors, p, q);
            }
        }
    }
    let mut eigen: Vec<(f64, Vec<f64>)> = (0..n).map(|k| (matrix[k][k], std::mem::take(&mut vectors[k]))).collect();
    eigen.sort_by(|a, b| b.0.total_cmp(&a.0));
    eigen
}

/// Makes `matrix[p][q]` 0 by a rotation of rows and columns `p` and `q`; `vectors` holds the
/// rotated basis, row by row.
fn rotate(matrix: &mut [Vec<f64>], vectors: &mut [Vec<f64>], p: usize, q: usize) {
    if matrix[p][q] == 0.0 {
        return;
    }
    let theta = (matrix[q][q] - matrix[p][p]) / (2.0 * matrix[p][q]);
    let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
    let sine = tangent * cosine;
    let turn = |a: &mut f64, b: &mut f64| (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
    for row in matrix.iter_mut() {
        let (left, right) = row.split_at_mut(q);
        turn(&mut left[p], &mut right[0]);
    }
    for rows in [matrix, vectors] {
        let (above, below) = rows.split_at_mut(q);
        above[p].iter_mut().zip(&mut below[0]).for_each(|(a, b)| turn(a, b));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// `U Σ` of LAPACK (by scipy), up to the sign of each column. Vectors are f32, and the last of
    /// them has converged to 1e-4.
    #[test]
    fn equals_scipy() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/text/svd.json");
        let reference: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        let titles: Vec<String> = serde_json::from_value(reference["titles"].clone()).unwrap();
        let expected: Vec<Vec<f64>> = serde_json::from_value(reference["vectors"].clone()).unwrap();
        let dim = expected[0].len();
        let tfidf = Tfidf::new(titles.iter().map(String::as_str), 2).unwrap();
        let found = truncated_svd(&tfidf, dim, 7);
        for column in 0..dim {
            let expected: Vec<f64> = expected.iter().map(|row| row[column]).collect();
            let found: Vec<f64> = found.chunks_exact(dim).map(|row| f64::from(row[column])).collect();
            let sign = found.iter().zip(&expected).map(|(f, e)| f * e).sum::<f64>().signum();
            for (found, expected) in found.iter().zip(&expected) {
                assert!((sign * found - expected).abs() < 2e-4, "column {column}: {found} instead of {expected}");
            }
        }
        assert_eq!(truncated_svd(&tfidf, dim, 7), found, "the same seed, the same vectors");
    }

    /// With as many columns as titles nothing is cut: products of vectors are the cosines of
    /// TF-IDF.
    #[test]
    fn all_columns_keep_all_cosines() {
        let titles = ["red pen", "red pen", "blue pen box", "", "box of red ink"];
        let tfidf = Tfidf::new(titles.into_iter(), 2).unwrap();
        let vectors = truncated_svd(&tfidf, 8, 1);
        for a in 0..5u32 {
            for b in 0..5u32 {
                let weight = |term: u32| tfidf.terms(b).iter().find(|t| t.0 == term).map_or(0.0, |t| t.1);
                let cosine: f32 = tfidf.terms(a).iter().map(|&(term, own)| own * weight(term)).sum();
                let found = dot(&vectors[a as usize * 8..][..8], &vectors[b as usize * 8..][..8]);
                assert!((found - f64::from(cosine)).abs() < 1e-5, "{a}, {b}: {found} instead of {cosine}");
            }
        }
        assert!(vectors.chunks_exact(8).all(|row| row[3..] == [0.0; 5]), "three titles with words differ");
    }
}
