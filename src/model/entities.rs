//! The items and users that a prompt may hold: their vectors, the scale of the vectors, and their
//! encoder.

use std::path::Path;

use burn::prelude::*;
use burn::tensor::TensorData;
use serde::{Deserialize, Serialize};

use super::item_encoder::ItemEncoder;
use super::parameters::load_module;
use crate::Result;
use crate::text::EntityTokens;

/// Scale of the vectors of items and of users, by which they are divided: the root mean square of
/// each kind.
///
/// Phase 1 and phase 2 divide by the same scale: neither depends on the unit of the vectors, and an
/// encoder has the same inputs in phase 2 as in phase 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VectorScale {
    /// Root mean square of the items' vectors.
    pub items: f64,
    /// Root mean square of the users' vectors.
    pub users: f64,
}

impl VectorScale {
    /// Measures `items` and `users`, vectors of `width` numbers each. Vectors that are zero are
    /// left out; a kind without others has the scale 1.
    pub fn measure(items: &[f32], users: &[f32], width: usize) -> Self {
        Self { items: root_mean_square(items, width), users: root_mean_square(users, width) }
    }

    /// Divides the vectors by their scale.
    pub fn apply(&self, items: &mut [f32], users: &mut [f32]) {
        for (vectors, scale) in [(items, self.items), (users, self.users)] {
            vectors.iter_mut().for_each(|v| *v = (f64::from(*v) / scale) as f32);
        }
    }
}

fn root_mean_square(vectors: &[f32], width: usize) -> f64 {
    let nonzero = vectors.chunks(width).filter(|vector| vector.iter().any(|v| *v != 0.0));
    let (count, squares) = nonzero.flatten().fold((0.0, 0.0), |(n, sum), v| (n + 1.0, sum + f64::from(*v).powi(2)));
    if count > 0.0 { f64::sqrt(squares / count) } else { 1.0 }
}

/// The items and users that a prompt may hold.
#[derive(Module, Debug)]
pub struct Entities<B: Backend> {
    /// Encoder of the vectors; it may train.
    pub encoder: ItemEncoder<B>,
    /// `[items + users, vector_width]`, scaled; they do not train.
    pub(crate) vectors: Tensor<B, 2>,
    #[module(skip)]
    pub(crate) tokens: EntityTokens,
}

impl<B: Backend> Entities<B> {
    /// Scales the vectors and puts them on `device`.
    ///
    /// * `vectors`: `[items + users, width]`, the users after the items, in the corpus's order.
    /// * `scale`: the one of the Q-Former's phase 1; `None` measures it, with the same result.
    pub fn new(
        encoder: ItemEncoder<B>,
        mut vectors: Vec<f32>,
        width: usize,
        tokens: EntityTokens,
        scale: Option<VectorScale>,
        device: &B::Device,
    ) -> Self {
        let (items, users) = vectors.split_at_mut(tokens.items() * width);
        scale.unwrap_or_else(|| VectorScale::measure(items, users, width)).apply(items, users);
        let shape = [vectors.len() / width, width];
        Self { encoder, vectors: Tensor::from_data(TensorData::new(vectors, shape), device), tokens }
    }

    /// Reads the encoder's parameters from a file that [`crate::model::save_module`] wrote.
    ///
    /// # Errors
    /// Missing, unexpected and misshapen tensors, by name.
    pub fn load_encoder(self, path: &Path) -> Result<Self> {
        Ok(Self { encoder: load_module(path, self.encoder)?, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two items' vectors and one that is zero: 9 + 16 + 1 + 4 over four numbers, by hand.
    #[test]
    fn the_unit_of_the_vectors_makes_no_difference() {
        for unit in [1.0, 1e-4, 1e4f32] {
            let mut items = [3.0, -4.0, 0.0, 0.0, 1.0, 2.0].map(|v| v * unit);
            let mut users = [0.0; 2];
            let scale = VectorScale::measure(&items, &users, 2);
            assert!((scale.items / f64::from(unit) - 7.5f64.sqrt()).abs() < 1e-6, "{scale:?}");
            assert_eq!(scale.users, 1.0);
            scale.apply(&mut items, &mut users);
            for (found, expected) in items.iter().zip([3.0, -4.0, 0.0, 0.0, 1.0, 2.0]) {
                assert!((found - expected / 7.5f32.sqrt()).abs() < 1e-6, "{found} of {expected}");
            }
        }
    }
}
