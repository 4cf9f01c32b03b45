//! Training data of phase 1: items with their texts, and pairs of entities. An entity is an item
//! or, numbered after the items, a user.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::config::{AlignConfig, Init, QFormerSettings};
use crate::core::files::sha256;
use crate::data::Corpus;
use crate::model::{BertConfig, QFormerConfig, VectorScale};
use crate::rankers::{Interactions, Vectors};
use crate::text::BertTokenizer;
use crate::{Context, Error, Result};

/// SHA-256 digests of the training data of phase 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AlignIdentity {
    /// Digest of the corpus's `corpus.toml`, which holds its files' digests.
    pub corpus: String,
    /// Digest of the vectors' safetensors file.
    pub vectors: String,
    /// Digest of the files with the ids of the vectors' items and users.
    pub ids: String,
    /// Digest of the text branch's tokenizer.
    pub tokenizer: String,
    /// Digest of the Q-Former's configuration, as TOML.
    pub qformer: String,
}

/// An item and its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemText {
    /// Dense item index.
    pub item: u32,
    /// The text's tokens, `[CLS]` … `[SEP]`.
    pub tokens: Vec<u32>,
}

/// Training data of phase 1.
pub struct AlignData {
    /// Texts to train on.
    pub texts: Vec<ItemText>,
    /// Texts to retrieve, of items whose title no other item has.
    pub held_out: Vec<ItemText>,
    /// Pairs of items that follow one another in some user's training history, each pair once.
    pub item_pairs: Vec<[u32; 2]>,
    /// Pairs of a user and an item of the user's training history, each pair once.
    pub user_pairs: Vec<[u32; 2]>,
    /// Vectors, `[items + users, dim]`, divided by their scale.
    entities: Vec<f32>,
    /// Length of a vector.
    pub dim: usize,
    /// Scale by which the vectors were divided.
    pub scale: VectorScale,
}

/// The work of one optimiser step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// Indices of [`AlignData::texts`].
    ItemTexts(Vec<usize>),
    /// Pairs of entities, in which no entity comes twice; a kind without a weight is empty.
    Pairs {
        /// Pairs of items, for the loss II.
        items: Vec<[u32; 2]>,
        /// Pairs of a user and an item, for the loss UI.
        users: Vec<[u32; 2]>,
    },
}

impl AlignData {
    /// Opens the files that `config` names. Items of no training window have no trained vector, and
    /// items with an empty title no text: neither takes part in item-text steps.
    ///
    /// Files that cannot be read or do not belong together; too few texts or pairs to train on.
    pub fn open(config: &AlignConfig) -> Result<(Self, QFormerConfig, AlignIdentity)> {
        let corpus_dir = Path::new(&config.data.corpus);
        let corpus = Corpus::open(corpus_dir)?;
        let path = Path::new(&config.data.vectors);
        let vectors = Vectors::open(path, &corpus)?;
        let text_dir = Path::new(&config.qformer.text);
        let tokenizer = BertTokenizer::from_dir(text_dir)?;
        let qformer = qformer_config(&config.qformer, text_dir, &tokenizer, vectors.dim)?;
        if config.qformer.max_text_tokens > qformer.text.max_position_embeddings {
            return Err(Error::usage(format!(
                "qformer.max_text_tokens is {}, but {} has {} positions",
                config.qformer.max_text_tokens,
                text_dir.display(),
                qformer.text.max_position_embeddings
            )));
        }
        let digest = |path: &Path| Ok::<_, Error>(sha256(&fs::read(path).context(path.display())?));
        let identity = AlignIdentity {
            corpus: digest(&corpus_dir.join("corpus.toml"))?,
            vectors: digest(path)?,
            ids: Vectors::ids_digest(path)?,
            tokenizer: sha256(tokenizer.to_json().as_bytes()),
            qformer: sha256(toml::to_string(&qformer).context("[qformer]")?.as_bytes()),
        };

        let interactions = Interactions::from_training(&corpus).context(corpus_dir.display())?;
        let (texts, held_out) = texts(config, &corpus, &interactions, &tokenizer)?;
        let (item_pairs, user_pairs) = pairs(&interactions, corpus.items.len() as u32);
        for (key, weight, pairs) in [
            ("loss.item_item", config.loss.item_item, &item_pairs),
            ("loss.user_item", config.loss.user_item, &user_pairs),
        ] {
            if weight > 0.0 && pairs.len() < 2 {
                return Err(Error::failed(format!("{}: too few pairs for {key}; set it to 0", corpus_dir.display())));
            }
        }
        let (mut items, mut users, dim) = (vectors.items, vectors.users, vectors.dim);
        let scale = VectorScale::measure(&items, &users, dim);
        scale.apply(&mut items, &mut users);
        let entities = [items, users].concat();
        Ok((Self { texts, held_out, item_pairs, user_pairs, entities, dim, scale }, qformer, identity))
    }

    /// Returns the number of optimiser steps of an epoch, those of [`AlignData::plan`].
    pub fn steps_per_epoch(&self, config: &AlignConfig) -> usize {
        let batches = self.texts.len() / config.train.batch_size.min(self.texts.len()).max(1);
        let [with_texts, with_pairs] = kinds_of_steps(config);
        batches * (usize::from(with_texts) + usize::from(with_pairs))
    }

    /// Returns an entity's vector, `[dim]`.
    pub fn vector(&self, entity: u32) -> &[f32] {
        &self.entities[entity as usize * self.dim..][..self.dim]
    }

    /// Returns the epoch's steps, a function of the seed and the epoch alone: a pass over the texts
    /// (a rest too small for a batch is left out), in turn with as many steps on pairs if those
    /// have a weight.
    pub fn plan(&self, config: &AlignConfig, epoch: usize) -> Vec<Work> {
        let (loss, size) = (&config.loss, config.train.batch_size);
        let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
        rng.set_stream(epoch as u64 + 1);
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        order.shuffle(&mut rng);
        let size = size.min(order.len());
        let batches: Vec<Vec<usize>> = order.chunks_exact(size).map(<[usize]>::to_vec).collect();
        let mut draw = |weight: f64, pairs: &[[u32; 2]]| {
            let count = if weight > 0.0 { batches.len() } else { 0 };
            let mut pairs = pairs.to_vec();
            pairs.shuffle(&mut rng);
            distinct(&pairs, count, size)
        };
        let mut items = draw(loss.item_item, &self.item_pairs).into_iter();
        let mut users = draw(loss.user_item, &self.user_pairs).into_iter();
        let [with_texts, with_pairs] = kinds_of_steps(config);
        let mut steps = Vec::new();
        for texts in batches {
            if with_texts {
                steps.push(Work::ItemTexts(texts));
            }
            if with_pairs {
                steps.push(Work::Pairs {
                    items: items.next().unwrap_or_default(),
                    users: users.next().unwrap_or_default(),
                });
            }
        }
        steps
    }
}

/// Returns whether there are steps on items with their texts, and steps on pairs.
fn kinds_of_steps(config: &AlignConfig) -> [bool; 2] {
    let loss = &config.loss;
    [
        loss.item_text_contrastive + loss.item_grounded_generation + loss.item_text_matching > 0.0,
        loss.item_item + loss.user_item > 0.0,
    ]
}

/// Returns `count` batches of up to `size` pairs that share no entity: in a contrast within the
/// batch an entity would else be its own negative. Goes through `pairs` in order, and starts again
/// where they end.
fn distinct(pairs: &[[u32; 2]], count: usize, size: usize) -> Vec<Vec<[u32; 2]>> {
    let mut next = pairs.iter().cycle();
    let mut batch = || {
        let (mut seen, mut batch) = (HashSet::new(), Vec::new());
        for &[left, right] in next.by_ref().take(pairs.len()) {
            if left != right && !seen.contains(&left) && !seen.contains(&right) {
                seen.extend([left, right]);
                batch.push([left, right]);
                if batch.len() == size {
                    break;
                }
            }
        }
        batch
    };
    (0..count).map(|_| batch()).collect()
}

/// Returns the sizes of a Q-Former that reads vectors of `width`; `dir` is `settings.text`.
pub(crate) fn qformer_config(
    settings: &QFormerSettings,
    dir: &Path,
    tokenizer: &BertTokenizer,
    width: usize,
) -> Result<QFormerConfig> {
    let mut text = BertConfig::from_dir(dir)?;
    let layers = settings.layers.unwrap_or(text.num_hidden_layers);
    if settings.init == Init::Pretrained {
        let sizes = [settings.hidden_size, settings.attention_heads, settings.intermediate_size];
        if sizes.iter().any(Option::is_some) || layers > text.num_hidden_layers {
            return Err(Error::usage(format!(
                "[qformer]: a pretrained text branch has the sizes of {} and at most its {} layers; set init = \
                 \"random\" for others",
                dir.display(),
                text.num_hidden_layers
            )));
        }
    }
    text.num_hidden_layers = layers;
    text.hidden_size = settings.hidden_size.unwrap_or(text.hidden_size);
    text.num_attention_heads = settings.attention_heads.unwrap_or(text.num_attention_heads);
    text.intermediate_size = settings.intermediate_size.unwrap_or(text.intermediate_size);
    (text.hidden_dropout_prob, text.attention_probs_dropout_prob) = (settings.dropout, settings.dropout);
    if tokenizer.largest_id() as usize >= text.vocab_size {
        return Err(Error::failed(format!(
            "{}: the tokenizer has token id {}, but config.json has {} embeddings",
            dir.display(),
            tokenizer.largest_id(),
            text.vocab_size
        )));
    }
    let (queries, cross_attention_every) = (settings.queries, settings.cross_attention_every);
    let qformer = QFormerConfig { queries, vector_width: width, cross_attention_every, text };
    qformer.check().map_err(|e| Error::usage(format!("[qformer]: {e}")))?;
    Ok(qformer)
}

/// Returns the texts to train on, and those that are held out.
fn texts(
    config: &AlignConfig,
    corpus: &Corpus,
    interactions: &Interactions,
    tokenizer: &BertTokenizer,
) -> Result<(Vec<ItemText>, Vec<ItemText>)> {
    let mut owners: HashMap<&str, usize> = HashMap::new();
    for item in &corpus.items {
        *owners.entry(item.title.as_str()).or_default() += 1;
    }
    let mut texts = Vec::new();
    for &item in &interactions.items {
        let tokens = tokenizer.encode(corpus.title(item), config.qformer.max_text_tokens)?;
        // The text has more than [CLS] and [SEP].
        if tokens.len() > 2 {
            texts.push(ItemText { item, tokens });
        }
    }
    let mut alone: Vec<u32> = texts.iter().map(|t| t.item).filter(|&item| owners[corpus.title(item)] == 1).collect();
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    // The streams from 1 on are those of the epochs.
    rng.set_stream(0);
    alone.shuffle(&mut rng);
    let wanted = (texts.len() as f64 * config.data.held_out).round() as usize;
    let chosen: HashSet<u32> = alone.into_iter().take(wanted).collect();
    let (held_out, texts): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| chosen.contains(&text.item));
    if texts.len() < 2 {
        return Err(Error::failed(format!(
            "{}: {} items of training windows have a title and are not held out; at least 2 are needed",
            config.data.corpus,
            texts.len()
        )));
    }
    Ok((texts, held_out))
}

fn pairs(interactions: &Interactions, items: u32) -> (Vec<[u32; 2]>, Vec<[u32; 2]>) {
    let (mut of_items, mut of_users) = (Vec::new(), Vec::new());
    for sequence in &interactions.sequences {
        let known: Vec<u32> = sequence.rows.iter().map(|&row| interactions.items[row as usize]).collect();
        of_items.extend(known.windows(2).map(|pair| [pair[0], pair[1]]));
        of_users.extend(known.iter().map(|&item| [items + sequence.user, item]));
    }
    for pairs in [&mut of_items, &mut of_users] {
        pairs.sort_unstable();
        pairs.dedup();
    }
    (of_items, of_users)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_share_no_entity() {
        let pairs = [[0, 1], [1, 2], [2, 3], [4, 4], [5, 6]];
        let batches = distinct(&pairs, 3, 3);
        assert_eq!(batches, [vec![[0, 1], [2, 3], [5, 6]], vec![[0, 1], [2, 3], [5, 6]], vec![[0, 1], [2, 3], [5, 6]]]);
        assert_eq!(distinct(&pairs, 2, 1), [[[0, 1]], [[1, 2]]]);
        assert_eq!(distinct(&[[0, 1], [0, 2]], 1, 2), [[[0, 1]]]);
        assert!(distinct(&[], 2, 2).iter().all(Vec::is_empty));
    }
}
