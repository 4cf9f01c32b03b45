//! Alternating least squares for implicit feedback.
//!
//! Paper: Hu, Koren, Volinsky, *Collaborative Filtering for Implicit Feedback Datasets*, ICDM 2008.
//! With r the number of interactions of a user and an item, preference p = 1 where r > 0,
//! confidence c = 1 + α r:
//!
//! min Σ_{u,i} c_ui (p_ui − x_u·y_i)² + λ (Σ_u |x_u|² + Σ_i |y_i|²)
//!
//! over all user-item pairs. Each half sweep solves every row exactly (Eq. 4 and 5): YᵀY is
//! computed once, a row adds its own items. In f64.

use std::sync::Arc;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::interactions::with_counts;
use super::registry::{Entry, Method};
use super::settings::{check_number, check_whole, read};
use super::training::{BestEpoch, dot, fill_rows, normal};
use super::vector_ranker::{SavedModel, VectorTraining};
use super::{Interactions, VectorMethod, VectorModel};
use crate::{Context, Error, Result};

pub(super) const ENTRY: Entry = Entry {
    name: "als",
    about: "vectors by alternating least squares on implicit feedback; a user's is solved for from the history",
    method: |table| {
        let config: AlsConfig = read("als", table)?;
        check_whole("dim", config.dim, 4096)?;
        check_whole("iterations", config.iterations, 1 << 20)?;
        check_number("alpha", config.alpha, 0.0, 1e9)?;
        // Without it the system of an item or user with few interactions has no one solution.
        check_number("regularization", config.regularization, 1e-9, 1e9)?;
        Ok(Method::Vectors(Box::new(config)))
    },
};

/// Settings of ALS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AlsConfig {
    /// Seed of the first item vectors.
    pub seed: u64,
    /// Length of a vector.
    pub dim: usize,
    /// Confidence that an interaction adds.
    pub alpha: f64,
    /// λ, the weight of the squared norms.
    pub regularization: f64,
    /// Number of sweeps over users and items.
    pub iterations: usize,
}

impl Default for AlsConfig {
    fn default() -> Self {
        Self { seed: 42, dim: 128, alpha: 30.0, regularization: 10.0, iterations: 15 }
    }
}

/// The vectors that ALS learnt.
#[derive(Clone, Debug)]
pub struct Als {
    /// Length of a vector.
    pub dim: usize,
    /// `[rows, dim]`: the items' vectors.
    pub items: Vec<f64>,
    /// `[users, dim]`: each user's solution given `items`; zero without interactions.
    pub users: Vec<f64>,
    normal_matrix: Vec<f64>,
    alpha: f64,
}

impl Als {
    /// Rebuilds the model from vectors that were learnt with `config`.
    ///
    /// # Shapes
    /// `items`: `[rows, dim]`; `users`: `[users, dim]`.
    pub(crate) fn from_vectors(config: &AlsConfig, items: &[f32], users: &[f32]) -> Self {
        let [items, users] = [items, users].map(|values| values.iter().map(|&v| f64::from(v)).collect::<Vec<f64>>());
        let normal_matrix = normal_matrix(&items, config);
        Self { dim: config.dim, items, users, normal_matrix, alpha: config.alpha }
    }

    fn fold_in(&self, ratings: &[(u32, u32)], user: &mut [f64]) {
        solve_row(&self.items, &self.normal_matrix, ratings, self.alpha, user);
    }
}

impl VectorModel for Als {
    /// The user's vector is solved for as in training, with the history as its interactions.
    fn scores(&self, histories: &[Vec<u32>]) -> Vec<f32> {
        let count = self.items.len() / self.dim;
        fill_rows(histories.len(), count, |h, row: &mut [f32]| {
            let mut user = vec![0.0; self.dim];
            self.fold_in(with_counts(histories[h].clone()).as_slice(), &mut user);
            for (score, item) in row.iter_mut().zip(self.items.chunks_exact(self.dim)) {
                *score = dot(&user, item) as f32;
            }
        })
    }

    fn item_vectors(&self) -> Vec<f32> {
        self.items.iter().map(|&v| v as f32).collect()
    }

    fn user_vectors(&self, _interactions: &Interactions) -> Vec<f32> {
        self.users.iter().map(|&v| v as f32).collect()
    }
}

impl VectorMethod for AlsConfig {
    fn dim(&self) -> usize {
        self.dim
    }

    fn settings_json(&self) -> Result<String> {
        serde_json::to_string(self).context("settings of als")
    }

    fn train(&self, training: &mut VectorTraining) -> Result<BestEpoch<Arc<dyn VectorModel>>> {
        let (als, loss) = train(self, training.interactions, training.say)?;
        Ok(BestEpoch { model: Arc::new(als), loss, epoch: self.iterations })
    }

    fn restore(&self, saved: SavedModel) -> Result<Arc<dyn VectorModel>> {
        Ok(Arc::new(Als::from_vectors(self, &saved.items, &saved.users)))
    }
}

/// Runs all iterations, then solves for the users once more; returns the model and its objective.
///
/// # Errors
/// An objective that is not finite.
pub(crate) fn train(config: &AlsConfig, interactions: &Interactions, say: &mut dyn FnMut(&str)) -> Result<(Als, f64)> {
    let by_user = interactions.by_user();
    let by_item = transpose(&by_user, interactions.items.len());
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let start = normal(&mut rng, interactions.items.len() * config.dim, 0.1);
    let mut items: Vec<f64> = start.into_iter().map(f64::from).collect();
    for iteration in 1..=config.iterations {
        let started = std::time::Instant::now();
        let users = half_sweep(&by_user, &items, config);
        items = half_sweep(&by_item, &users, config);
        say(&format!("iteration {iteration}/{}  {:.1} s", config.iterations, started.elapsed().as_secs_f64()));
    }
    let users = half_sweep(&by_user, &items, config);
    let loss = objective(&by_user, &users, &items, config);
    if !loss.is_finite() {
        return Err(Error::failed(format!("the objective is {loss}; try another alpha or a larger regularization")));
    }
    let normal_matrix = normal_matrix(&items, config);
    Ok((Als { dim: config.dim, items, users, normal_matrix, alpha: config.alpha }, loss))
}

fn transpose(rows: &[Vec<(u32, u32)>], columns: usize) -> Vec<Vec<(u32, u32)>> {
    let mut transposed = vec![Vec::new(); columns];
    for (row, index) in rows.iter().zip(0..) {
        for &(column, count) in row {
            transposed[column as usize].push((index, count));
        }
    }
    transposed
}

/// Solves every row exactly given the other side: `ratings[r]` = (row of `fixed`, count), result
/// `[rows, dim]`.
fn half_sweep(ratings: &[Vec<(u32, u32)>], fixed: &[f64], config: &AlsConfig) -> Vec<f64> {
    let matrix = normal_matrix(fixed, config);
    fill_rows(ratings.len(), config.dim, |row, out| solve_row(fixed, &matrix, &ratings[row], config.alpha, out))
}

/// Returns YᵀY + λI, `[dim, dim]`; only its lower triangle is filled.
fn normal_matrix(fixed: &[f64], config: &AlsConfig) -> Vec<f64> {
    let dim = config.dim;
    let mut matrix = vec![0.0; dim * dim];
    for vector in fixed.chunks_exact(dim) {
        add_outer(&mut matrix, vector, 1.0);
    }
    for d in 0..dim {
        matrix[d * dim + d] += config.regularization;
    }
    matrix
}

/// Adds `weight · v vᵀ` to a lower triangle.
fn add_outer(matrix: &mut [f64], v: &[f64], weight: f64) {
    for (i, row) in matrix.chunks_exact_mut(v.len()).enumerate() {
        let scaled = weight * v[i];
        for (entry, other) in row[..=i].iter_mut().zip(v) {
            *entry += scaled * other;
        }
    }
}

/// Computes x = (YᵀCY + λI)⁻¹ YᵀC p, where C − I is zero but for the row's own items.
fn solve_row(fixed: &[f64], normal_matrix: &[f64], ratings: &[(u32, u32)], alpha: f64, out: &mut [f64]) {
    out.fill(0.0);
    if ratings.is_empty() {
        return;
    }
    let dim = out.len();
    let mut matrix = normal_matrix.to_vec();
    for &(index, count) in ratings {
        let vector = &fixed[index as usize * dim..][..dim];
        let weight = alpha * f64::from(count);
        add_outer(&mut matrix, vector, weight);
        for (sum, value) in out.iter_mut().zip(vector) {
            *sum += (1.0 + weight) * value;
        }
    }
    cholesky_solve(&mut matrix, out);
}

/// Solves A x = b in place; A is symmetric and positive definite, its lower triangle is given.
fn cholesky_solve(matrix: &mut [f64], b: &mut [f64]) {
    let n = b.len();
    for j in 0..n {
        let (above, below) = matrix.split_at_mut((j + 1) * n);
        let pivot_row = &mut above[j * n..];
        let pivot = (pivot_row[j] - dot(&pivot_row[..j], &pivot_row[..j])).sqrt();
        pivot_row[j] = pivot;
        for row in below.chunks_exact_mut(n) {
            row[j] = (row[j] - dot(&row[..j], &pivot_row[..j])) / pivot;
        }
    }
    for i in 0..n {
        let row = &matrix[i * n..][..=i];
        b[i] = (b[i] - dot(&row[..i], &b[..i])) / row[i];
    }
    for i in (0..n).rev() {
        let below: f64 = (i + 1..n).map(|k| matrix[k * n + i] * b[k]).sum();
        b[i] = (b[i] - below) / matrix[i * n + i];
    }
}

/// Returns the objective over all pairs: Σ s² by the Gram matrix, and for the pairs with
/// interactions c (1 − s)² in its place.
fn objective(ratings: &[Vec<(u32, u32)>], users: &[f64], items: &[f64], config: &AlsConfig) -> f64 {
    let dim = config.dim;
    let matrix = normal_matrix(items, config);
    let mut sum = config.regularization * dot(items, items);
    for (user, ratings) in users.chunks_exact(dim).zip(ratings) {
        // xᵀ (YᵀY + λI) x from the lower triangle.
        for (i, row) in matrix.chunks_exact(dim).enumerate() {
            sum += user[i] * (2.0 * dot(&row[..i], &user[..i]) + row[i] * user[i]);
        }
        for &(item, count) in ratings {
            let score = dot(user, &items[item as usize * dim..][..dim]);
            sum += (1.0 + config.alpha * f64::from(count)) * (1.0 - score).powi(2) - score.powi(2);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rand::Rng;
    use safetensors::SafeTensors;

    use super::*;

    fn close(found: &[f64], expected: &[f64], tolerance: f64) {
        assert_eq!(found.len(), expected.len());
        for (f, e) in found.iter().zip(expected) {
            assert!((f - e).abs() <= tolerance * e.abs().max(1.0), "{f} instead of {e}");
        }
    }

    /// The dense system of a row by Gauss-Jordan elimination with every pair written out.
    fn brute_force(row: &[f64], fixed: &[f64], config: &AlsConfig) -> Vec<f64> {
        let dim = config.dim;
        let mut system = vec![vec![0.0; dim + 1]; dim];
        for (vector, &r) in fixed.chunks_exact(dim).zip(row) {
            let (c, p) = (1.0 + config.alpha * r, f64::from(u8::from(r > 0.0)));
            for i in 0..dim {
                (0..dim).for_each(|j| system[i][j] += c * vector[i] * vector[j]);
                system[i][dim] += c * p * vector[i];
            }
        }
        (0..dim).for_each(|i| system[i][i] += config.regularization);
        for i in 0..dim {
            let pivot = system[i].clone();
            for (k, row) in system.iter_mut().enumerate() {
                let factor = if k == i { 1.0 - 1.0 / pivot[i] } else { row[i] / pivot[i] };
                row.iter_mut().zip(&pivot).for_each(|(value, p)| *value -= factor * p);
            }
        }
        system.iter().map(|row| row[dim]).collect()
    }

    fn dense_objective(r: &[Vec<f64>], users: &[f64], items: &[f64], config: &AlsConfig) -> f64 {
        let mut sum = config.regularization * (dot(users, users) + dot(items, items));
        for (user, row) in users.chunks_exact(config.dim).zip(r) {
            for (item, &r) in items.chunks_exact(config.dim).zip(row) {
                let p = f64::from(u8::from(r > 0.0));
                sum += (1.0 + config.alpha * r) * (p - dot(user, item)).powi(2);
            }
        }
        sum
    }

    fn sparse(r: &[Vec<f64>]) -> Vec<Vec<(u32, u32)>> {
        let row =
            |row: &Vec<f64>| row.iter().zip(0..).filter(|(r, _)| **r > 0.0).map(|(r, i)| (i, *r as u32)).collect();
        r.iter().map(row).collect()
    }

    #[test]
    fn rows_equal_brute_force_and_no_half_sweep_raises_the_objective() {
        let mut rng = ChaCha8Rng::seed_from_u64(5);
        for case in 0..60 {
            let (users, items) = (rng.random_range(1..9), rng.random_range(1..9));
            let config = AlsConfig {
                seed: case,
                dim: rng.random_range(1..6),
                alpha: rng.random_range(0.0..20.0),
                regularization: rng.random_range(0.01..5.0),
                iterations: 1,
            };
            let mut count = || if rng.random_bool(0.4) { f64::from(rng.random_range(1..4u8)) } else { 0.0 };
            let r: Vec<Vec<f64>> = (0..users).map(|_| (0..items).map(|_| count()).collect()).collect();
            let by_user = sparse(&r);
            let by_item = transpose(&by_user, items);
            let mut y: Vec<f64> = normal(&mut rng, items * config.dim, 0.5).into_iter().map(f64::from).collect();
            let mut before = f64::INFINITY;
            for _ in 0..4 {
                let x = half_sweep(&by_user, &y, &config);
                for (row, found) in r.iter().zip(x.chunks_exact(config.dim)) {
                    // A row without interactions is zero, which is also the solution of its system.
                    close(found, &brute_force(row, &y, &config), 1e-8);
                }
                let middle = objective(&by_user, &x, &y, &config);
                close(&[middle], &[dense_objective(&r, &x, &y, &config)], 1e-9);
                y = half_sweep(&by_item, &x, &config);
                let after = objective(&by_user, &x, &y, &config);
                assert!(after <= middle * (1.0 + 1e-9) && middle <= before * (1.0 + 1e-9), "{before} {middle} {after}");
                before = after;
            }
        }
    }

    #[test]
    fn a_sweep_equals_numpys_closed_form() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/reference/cf");
        let bytes = std::fs::read(folder.join("als.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f64> {
            let data = tensors.tensor(name).unwrap().data();
            data.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        };
        let text = std::fs::read_to_string(folder.join("cf.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let number = |key: &str| json["als"][key].as_f64().unwrap();
        let dim = number("dim") as usize;
        let config =
            AlsConfig { seed: 0, dim, alpha: number("alpha"), regularization: number("regularization"), iterations: 1 };
        let start = floats("items.0");
        let by_user =
            sparse(&floats("counts").chunks_exact(start.len() / dim).map(<[f64]>::to_vec).collect::<Vec<_>>());
        let users = half_sweep(&by_user, &start, &config);
        close(&users, &floats("users.1"), 1e-6);
        let items = half_sweep(&transpose(&by_user, start.len() / dim), &users, &config);
        close(&items, &floats("items.1"), 1e-6);
        close(&[objective(&by_user, &users, &items, &config)], &[number("objective")], 1e-9);
    }
}
