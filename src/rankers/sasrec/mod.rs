//! SASRec: self-attention over the history.
//!
//! Paper: Kang, McAuley, *Self-Attentive Sequential Recommendation*, ICDM 2018. Reference:
//! github.com/kang205/SASRec (`model.py`, `modules.py`) and its port
//! github.com/pmixer/SASRec.pytorch (`python/model.py`). As there: learned positions aligned to the
//! newest item, item embedding times √dim, blocks of causal attention (only the query is
//! normalised, and the residual goes around it) and of a pointwise feed-forward with ReLU, one
//! embedding for input and output. Where we differ:
//!
//! - The loss is a softmax over all items that have a row; `loss = "bce"` is the references' (one
//!   negative a position, drawn evenly from the items the user has not taken).
//! - A sequence longer than `max_len` is cut anew in each epoch at a random place, so every
//!   interaction is predicted once an epoch; the references keep its last `max_len` alone.
//! - Padding takes no part in attention (as in kang205; pmixer lets it). Attention has an output
//!   projection (as pmixer).
//! - Adam's β₂ is 0.999 (references 0.98); biases start at zero.
//! - With `text` an item's vector is a learned projection of its title's vector, plus one of its
//!   own if it is in a training window ([`TextProjection`]): cold items are ranked, too.

mod fit;
mod text;

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use burn::DispatchDevice;
use burn::module::Param;
use burn::nn::{Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear};
use burn::prelude::*;
use burn::tensor::TensorData;
use burn::tensor::activation::{log_sigmoid, log_softmax, relu, softmax};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use self::fit::SasRecLearner;
pub use self::text::TextProjection;
use super::registry::{Entry, Method};
use super::settings::{check_number, check_whole, read};
use super::training::{BestEpoch, EpochOptions, normal, to_host, train_epochs};
use super::vector_ranker::{SavedModel, VectorTraining};
use super::{Interactions, VectorMethod, VectorModel};
use crate::data::Corpus;
use crate::device::Concrete;
use crate::kernels::MASKED;
use crate::model::{load_module_of, save_module};
use crate::tensor::indices;
use crate::{Context, Error, Result};

/// Histories that one forward pass takes when ranking.
const RANKED_TOGETHER: usize = 256;

pub(super) const ENTRY: Entry = Entry {
    name: "sasrec",
    about: "self-attention over the history; it learns vectors of items, from their titles with `text`",
    method: |table| {
        let config: SasRecConfig = read("sasrec", table)?;
        config.check()?;
        Ok(Method::Vectors(Box::new(config)))
    },
};

/// Settings of SASRec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SasRecConfig {
    /// Seed of the first weights, of the order, of the negatives and of dropout.
    pub seed: u64,
    /// Length of a vector.
    pub dim: usize,
    /// Number of attention heads; it divides `dim`.
    pub heads: usize,
    /// Number of blocks of attention and feed-forward.
    pub blocks: usize,
    /// Number of items, the newest of a history, that the model reads.
    pub max_len: usize,
    /// Dropout on embeddings, attention and feed-forward.
    pub dropout: f64,
    /// The loss that is minimised.
    pub loss: SasRecLoss,
    /// Vectors of titles that the items' vectors are projected from: `tfidf`, or the directory of a
    /// BERT whose sentence vectors they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Length of the vectors that the singular value decomposition makes of TF-IDF.
    pub text_dim: usize,
    /// AdamW's learning rate.
    pub learning_rate: f64,
    /// AdamW's weight decay.
    pub weight_decay: f64,
    /// Sequences of one optimiser step.
    pub batch_size: usize,
    /// Passes over the interactions, at most.
    pub epochs: usize,
    /// Epochs without a better validation NDCG@10 before it stops.
    pub patience: usize,
}

impl Default for SasRecConfig {
    fn default() -> Self {
        Self {
            seed: 42,
            dim: 64,
            heads: 1,
            blocks: 2,
            max_len: 20,
            dropout: 0.5,
            loss: SasRecLoss::Softmax,
            text: None,
            text_dim: 128,
            learning_rate: 1e-3,
            weight_decay: 0.0,
            batch_size: 128,
            epochs: 200,
            patience: 10,
        }
    }
}

/// The values of `loss`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SasRecLoss {
    /// Cross-entropy over all items that have a row.
    Softmax,
    /// Binary cross-entropy of the next item and of one negative.
    Bce,
}

/// The model.
#[derive(Module, Debug)]
pub struct SasRec<B: Backend> {
    /// `[rows, dim]`: the items' vectors, of input and output; with `text` the part of them that is
    /// not projected.
    pub items: Param<Tensor<B, 2>>,
    /// The projection of the titles' vectors, which are added to the items' vectors.
    pub text: Option<TextProjection<B>>,
    /// `[max_len, dim]`: the positions' vectors; the last row is the newest item's.
    pub positions: Param<Tensor<B, 2>>,
    /// Blocks of attention and feed-forward.
    pub blocks: Vec<Block<B>>,
    /// The normalisation after the last block.
    pub norm: LayerNorm<B>,
    /// Dropout on the embeddings.
    pub dropout: Dropout,
}

/// A block of causal attention and a pointwise feed-forward.
#[derive(Module, Debug)]
pub struct Block<B: Backend> {
    /// The normalisation of the query.
    pub attention_norm: LayerNorm<B>,
    /// The query projection, `[dim, dim]`.
    pub query: Linear<B>,
    /// The key projection, `[dim, dim]`.
    pub key: Linear<B>,
    /// The value projection, `[dim, dim]`.
    pub value: Linear<B>,
    /// The output projection, `[dim, dim]`.
    pub output: Linear<B>,
    /// The normalisation before the feed-forward.
    pub forward_norm: LayerNorm<B>,
    /// The first feed-forward layer, `[dim, dim]`.
    pub inner: Linear<B>,
    /// The second feed-forward layer, `[dim, dim]`.
    pub outer: Linear<B>,
    /// Dropout on attention and feed-forward.
    pub dropout: Dropout,
    heads: usize,
}

/// Sequences to learn from: after each item of `inputs` comes the item of `targets` at the same
/// position.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences {
    /// At least one item and at most `max_len` each, oldest first.
    pub inputs: Vec<Vec<u32>>,
    /// Targets, as many as `inputs`, position by position.
    pub targets: Vec<Vec<u32>>,
    /// Negatives, as many as `inputs`; only for [`SasRecLoss::Bce`].
    pub negatives: Vec<Vec<u32>>,
}

impl SasRecConfig {
    fn check(&self) -> Result<()> {
        check_whole("dim", self.dim, 4096)?;
        check_whole("heads", self.heads, 4096)?;
        check_whole("blocks", self.blocks, 64)?;
        check_whole("max_len", self.max_len, 4096)?;
        check_whole("text_dim", self.text_dim, 4096)?;
        check_whole("batch_size", self.batch_size, 1 << 20)?;
        check_whole("epochs", self.epochs, 1 << 20)?;
        check_whole("patience", self.patience, 1 << 20)?;
        check_number("learning_rate", self.learning_rate, 0.0, 1e3)?;
        check_number("weight_decay", self.weight_decay, 0.0, 1e3)?;
        check_number("dropout", self.dropout, 0.0, 0.99)?;
        if !self.dim.is_multiple_of(self.heads) {
            let (dim, heads) = (self.dim, self.heads);
            return Err(Error::usage(format!("dim is {dim}, it must be a multiple of heads ({heads})")));
        }
        Ok(())
    }

    /// Returns names and shapes of the parameters that determine every size of the model.
    fn sizes(&self, items: usize) -> Vec<(String, Vec<usize>)> {
        let mut sizes =
            vec![("items".to_string(), vec![items, self.dim]), ("positions".to_string(), vec![self.max_len, self.dim])];
        sizes.extend((0..self.blocks).map(|block| (format!("blocks.{block}.query.weight"), vec![self.dim, self.dim])));
        sizes
    }

    /// Draws matrices by Glorot's normal initialisation; biases are 0, norms 1.
    ///
    /// * `text`: the vectors of the items' titles, `[items, width]`, if they take part.
    pub fn init<B: Backend>(&self, items: usize, text: Option<Tensor<B, 2>>, device: &B::Device) -> SasRec<B> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let dim = self.dim;
        let mut matrix = |rows: usize| {
            let values = normal(&mut rng, rows * dim, (2.0 / (rows + dim) as f64).sqrt());
            Param::from_tensor(Tensor::<B, 2>::from_data(TensorData::new(values, [rows, dim]), device))
        };
        let (items, positions) = (matrix(items), matrix(self.max_len));
        let mut linear =
            || Linear { weight: matrix(dim), bias: Some(Param::from_tensor(Tensor::zeros([dim], device))) };
        let norm = || LayerNormConfig::new(dim).with_epsilon(1e-8).init(device);
        let dropout = DropoutConfig::new(self.dropout).init();
        let mut block = || Block {
            attention_norm: norm(),
            query: linear(),
            key: linear(),
            value: linear(),
            output: linear(),
            forward_norm: norm(),
            inner: linear(),
            outer: linear(),
            dropout: dropout.clone(),
            heads: self.heads,
        };
        let blocks = (0..self.blocks).map(|_| block()).collect();
        let text = text.map(|vectors| TextProjection { weight: matrix(vectors.dims()[1]), vectors });
        SasRec { items, text, positions, blocks, norm: norm(), dropout }
    }
}

impl<B: Backend> SasRec<B> {
    /// Returns the length of a vector.
    pub fn dim(&self) -> usize {
        self.items.dims()[1]
    }

    /// Returns the items' vectors of input and output, `[rows, dim]`.
    pub fn item_table(&self) -> Tensor<B, 2> {
        match &self.text {
            None => self.items.val(),
            Some(text) => self.items.val() + text.forward(),
        }
    }

    /// Returns the state after each item of each sequence.
    ///
    /// # Shapes
    /// `sequences`: 1 to `max_len` rows of items each. Returns `[items of all sequences, dim]`,
    /// sequence after sequence.
    pub fn forward(&self, sequences: &[Vec<u32>]) -> Tensor<B, 2> {
        self.forward_with(&self.item_table(), sequences)
    }

    /// Returns what [`SasRec::forward`] does, with the vectors of [`SasRec::item_table`].
    fn forward_with(&self, table: &Tensor<B, 2>, sequences: &[Vec<u32>]) -> Tensor<B, 2> {
        let device = table.device();
        let [max_len, dim] = self.positions.dims();
        let width = sequences.iter().map(Vec::len).max().unwrap_or(1);

        // Sequences end together; padding at the front attends to itself alone.
        let (mut ids, mut real, mut mask) = (Vec::new(), Vec::new(), Vec::new());
        for (s, sequence) in sequences.iter().enumerate() {
            let padding = width - sequence.len();
            ids.extend(std::iter::repeat_n(0, padding).chain(sequence.iter().map(|&item| item as usize)));
            real.extend((padding..width).map(|i| s * width + i));
            let sees = |query: usize, key: usize| key == query || (padding..query).contains(&key);
            let row = |query| (0..width).map(move |key| if sees(query, key) { 0.0 } else { MASKED });
            mask.extend((0..width).flat_map(row));
        }
        let mask = Tensor::<B, 4>::from_data(TensorData::new(mask, [sequences.len(), 1, width, width]), &device);

        let ids = indices(ids, table.dims()[0], &device);
        let embedded = table.clone().select(0, ids).mul_scalar((dim as f64).sqrt());
        let positions = self.positions.val().slice([max_len - width..max_len, 0..dim]).unsqueeze::<3>();
        let mut x =
            (embedded.reshape([sequences.len(), width, dim]) + positions).reshape([sequences.len() * width, dim]);
        x = self.dropout.forward(x);
        for block in &self.blocks {
            x = block.forward(x, mask.clone());
        }
        self.norm.forward(x.select(0, indices(real, sequences.len() * width, &device)))
    }

    /// Computes the mean loss over all predictions.
    ///
    /// # Shapes
    /// Returns `[1]`.
    pub fn loss(&self, sequences: &Sequences, loss: SasRecLoss) -> Tensor<B, 1> {
        let table = self.item_table();
        let device = table.device();
        let states = self.forward_with(&table, &sequences.inputs);
        let items = table.dims()[0];
        let item_ids = |rows: &[Vec<u32>]| indices::<B>(rows.iter().flatten().map(|&i| i as usize), items, &device);
        let targets = item_ids(&sequences.targets);
        match loss {
            SasRecLoss::Softmax => {
                let logits = states.matmul(table.transpose());
                log_softmax(logits, 1).gather(1, targets.unsqueeze_dim(1)).mean().neg()
            }
            SasRecLoss::Bce => {
                let negatives = item_ids(&sequences.negatives);
                let logit = |items| (states.clone() * table.clone().select(0, items)).sum_dim(1);
                log_sigmoid(logit(targets)).mean().neg() - log_sigmoid(logit(negatives).neg()).mean()
            }
        }
    }

    /// Returns the state after the last item of each history of any length; zero after none.
    ///
    /// # Shapes
    /// Returns `[histories, dim]`, row after row.
    fn states(&self, histories: &[Vec<u32>]) -> Vec<f32> {
        self.read_last_states(histories, self.dim(), |states| states)
    }

    /// Returns `width` values read from the state after the last item of each history.
    fn read_last_states(
        &self,
        histories: &[Vec<u32>],
        width: usize,
        read: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
    ) -> Vec<f32> {
        let table = self.item_table();
        let [max_len, _] = self.positions.dims();
        let mut values = vec![0.0; histories.len() * width];
        let filled: Vec<usize> = (0..histories.len()).filter(|&h| !histories[h].is_empty()).collect();
        for together in filled.chunks(RANKED_TOGETHER) {
            let rows: Vec<Vec<u32>> = together.iter().map(|&h| last_items(&histories[h], max_len).to_vec()).collect();
            let ends = rows.iter().scan(0, |end, row| {
                *end += row.len();
                Some(*end - 1)
            });
            let states = self.forward_with(&table, &rows);
            let ends = indices(ends, states.dims()[0], &states.device());
            let read = to_host(read(states.select(0, ends)));
            for (&h, row) in together.iter().zip(read.chunks_exact(width)) {
                values[h * width..][..width].copy_from_slice(row);
            }
        }
        values
    }
}

fn last_items(history: &[u32], count: usize) -> &[u32] {
    &history[history.len().saturating_sub(count)..]
}

impl VectorModel for SasRec<Concrete> {
    fn scores(&self, histories: &[Vec<u32>]) -> Vec<f32> {
        let rows = self.items.dims()[0];
        self.read_last_states(histories, rows, |states| states.matmul(self.items.val().transpose()))
    }

    fn item_vectors(&self) -> Vec<f32> {
        to_host(self.items.val())
    }

    fn user_vectors(&self, interactions: &Interactions) -> Vec<f32> {
        let histories: Vec<Vec<u32>> = interactions.last_sequences().into_iter().map(<[u32]>::to_vec).collect();
        self.states(&histories)
    }

    fn save_network(&self, file: &Path) -> Result<bool> {
        save_module(file, self)?;
        Ok(true)
    }
}

impl VectorMethod for SasRecConfig {
    fn dim(&self) -> usize {
        self.dim
    }

    fn settings_json(&self) -> Result<String> {
        serde_json::to_string(self).context("settings of sasrec")
    }

    fn interactions(&self, corpus: &Corpus) -> Result<Interactions> {
        match self.text {
            None => Interactions::from_training(corpus),
            Some(_) => Interactions::from_training_with_all_items(corpus),
        }
    }

    fn train(&self, training: &mut VectorTraining) -> Result<BestEpoch<Arc<dyn VectorModel>>> {
        let validate = &mut *training.validate;
        // Cold items have rows to be ranked by, and nothing to be learnt from.
        let warm = match self.text {
            None => Cow::Borrowed(training.interactions),
            Some(_) => Cow::Owned(Interactions::from_training(training.corpus)?),
        };
        let titles = self.title_vectors(training.corpus, &training.device)?;
        let device = DispatchDevice::autodiff(training.device.clone());
        let learner = SasRecLearner::<Concrete>::new(self, &warm, titles.as_ref(), device);
        let module = learner.init();
        let options = EpochOptions {
            epochs: self.epochs,
            patience: self.patience,
            learning_rate: self.learning_rate,
            weight_decay: self.weight_decay,
            metrics: training.metrics.clone(),
            validate: &mut |model: &SasRec<Concrete>| validate(Arc::new(model.clone())),
            say: &mut *training.say,
        };
        let best = train_epochs(learner, module, options)?;
        Ok(best.map(|model| Arc::new(model) as Arc<dyn VectorModel>))
    }

    fn restore(&self, saved: SavedModel) -> Result<Arc<dyn VectorModel>> {
        let Some(file) = saved.network else { return Err(Error::failed("the file of its network is not named")) };
        let rows = saved.items.len() / self.dim;
        let init = || Ok(self.init::<Concrete>(rows, None, saved.device));
        Ok(Arc::new(load_module_of(file, &self.sizes(rows), init)?))
    }
}

impl<B: Backend> Block<B> {
    /// # Shapes
    /// `x`: `[batch · width, dim]`; `mask`: `[batch, 1, width, width]`. Returns the shape of `x`.
    fn forward(&self, x: Tensor<B, 2>, mask: Tensor<B, 4>) -> Tensor<B, 2> {
        let [batch, _, width, _] = mask.dims();
        let [_, dim] = x.dims();
        let head = dim / self.heads;
        let split = |x: Tensor<B, 2>| x.reshape([batch, width, self.heads, head]).swap_dims(1, 2);

        let query = self.attention_norm.forward(x.clone());
        let (q, k, v) = (self.query.forward(query.clone()), self.key.forward(x.clone()), self.value.forward(x));
        let scores = split(q).matmul(split(k).transpose()).div_scalar((head as f64).sqrt()) + mask;
        let weights = self.dropout.forward(softmax(scores, 3));
        let attended = weights.matmul(split(v)).swap_dims(1, 2).reshape([batch * width, dim]);
        let x = self.forward_norm.forward(query + self.output.forward(attended));
        let inner = self.dropout.forward(relu(self.inner.forward(x.clone())));
        x + self.dropout.forward(self.outer.forward(inner))
    }
}
