//! The vectors and the encoder of a run file's `[items]`.

use std::fs;
use std::path::Path;

use burn::prelude::Backend;
use serde::{Deserialize, Serialize};

use super::align_data::qformer_config;
use super::qformer_artifact::{open_aligned, read_config};
use crate::config::{Encoder, Init, ItemsConfig, RunConfig};
use crate::core::files::sha256;
use crate::data::Corpus;
use crate::model::{
    Decoder, Entities, ItemEncoder, ItemEncoderConfig, ItemLanguageModel, QFormer, QFormerConfig, VectorScale,
};
use crate::rankers::Vectors;
use crate::text::{BertTokenizer, EntityTokens};
use crate::{Context, Error, Result};

/// Identity of the encoder and the vectors of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntitiesIdentity {
    /// SHA-256 of the vectors' file.
    pub vectors: String,
    /// SHA-256 of the files with their ids.
    pub ids: String,
    /// Sizes of the encoder.
    pub encoder: ItemEncoderConfig,
}

/// The vectors of `[items]`, and the sizes of the encoder; its weights are still on disk.
pub struct EntityMaterial {
    /// The encoder and vectors, for the run's `identity.json`.
    pub identity: EntitiesIdentity,
    /// The numbering of items and users as tokens.
    pub tokens: EntityTokens,
    vectors: Vec<f32>,
}

impl EntityMaterial {
    /// Opens the vectors; `None` without an encoder. `started` is the identity of an existing run:
    /// its encoder has those sizes, and neither BERT nor phase 1 is needed any more.
    ///
    /// # Errors
    /// Vectors that cannot be read, or on which phase 1 was not trained.
    pub fn open(
        config: &RunConfig,
        corpus: &Corpus,
        corpus_digest: &str,
        vocabulary: usize,
        started: Option<&EntitiesIdentity>,
    ) -> Result<Option<Self>> {
        let items = &config.items;
        let Some(path) = items.vectors.as_ref().filter(|_| items.encoder != Encoder::None) else { return Ok(None) };
        let vectors = Vectors::open(Path::new(path), corpus)?;
        let (digest, ids) = (sha256(&fs::read(path).context(path)?), Vectors::ids_digest(Path::new(path))?);
        let phase_1 = || {
            let Some(run) = &items.aligned else { return Ok(None) };
            let config = read_config(Path::new(run))?;
            let found = &config.identity;
            match found.vectors == digest && found.ids == ids && found.corpus == corpus_digest {
                true => Ok(Some(config.qformer)),
                false => Err(Error::failed(format!(
                    "{run}: phase 1 learnt from another corpus or other vectors than {} and {path}",
                    corpus.name
                ))),
            }
        };
        let encoder = match started {
            Some(started) => started.encoder.clone(),
            None => encoder_config(items, vectors.dim, phase_1)?,
        };
        encoder.check().context(if started.is_some() { "identity.json" } else { path })?;
        if encoder.vector_width() != vectors.dim {
            return Err(Error::failed(format!(
                "{path}: its vectors have {} numbers, the encoder was made for {}",
                vectors.dim,
                encoder.vector_width()
            )));
        }
        let tokens = EntityTokens::new(vocabulary, encoder.queries(), corpus.items.len(), corpus.users())?;
        let identity = EntitiesIdentity { vectors: digest, ids, encoder };
        Ok(Some(Self { identity, tokens, vectors: [vectors.items, vectors.users].concat() }))
    }

    /// Makes the model with its encoder at the beginning of training: the Q-Former of phase 1 or of
    /// BERT, or a random one.
    ///
    /// # Errors
    /// Files of phase 1 or of BERT that cannot be read.
    pub fn start<B: Backend>(
        self,
        llm: Decoder<B>,
        items: &ItemsConfig,
        seed: u64,
        device: &B::Device,
    ) -> Result<ItemLanguageModel<B>> {
        let (qformer, scale) = match (&self.identity.encoder, &items.aligned, &items.qformer) {
            (ItemEncoderConfig::QFormer(_), Some(run), _) => {
                let (config, aligner) = open_aligned(Path::new(run), device)?;
                (Some(aligner.qformer), config.scale)
            }
            (ItemEncoderConfig::QFormer(config), None, Some(settings)) if settings.init == Init::Pretrained => {
                (Some(QFormer::new(config, Some(Path::new(&settings.text)), seed, device)?), None)
            }
            _ => (None, None),
        };
        self.model(llm, qformer.as_ref(), scale, seed, device)
    }

    /// Makes the model with an encoder of the right shape, to read weights into.
    ///
    /// # Errors
    /// Sizes out of range.
    pub fn blank<B: Backend>(self, llm: Decoder<B>, device: &B::Device) -> Result<ItemLanguageModel<B>> {
        self.model(llm, None, None, 0, device)
    }

    fn model<B: Backend>(
        self,
        llm: Decoder<B>,
        qformer: Option<&QFormer<B>>,
        scale: Option<VectorScale>,
        seed: u64,
        device: &B::Device,
    ) -> Result<ItemLanguageModel<B>> {
        let (config, hidden) = (&self.identity.encoder, llm.config().hidden_size);
        let output_scale = ItemLanguageModel::embedding_scale(&llm);
        let encoder = ItemEncoder::new(config, qformer, hidden, output_scale, seed, device)?;
        let entities = Entities::new(encoder, self.vectors, config.vector_width(), self.tokens, scale, device);
        Ok(ItemLanguageModel::new(llm, Some(entities)))
    }
}

/// Returns the encoder that `[items]` names, for vectors of `width` numbers.
///
/// * `phase_1`: the Q-Former of `items.aligned`, if that is given.
fn encoder_config(
    items: &ItemsConfig,
    width: usize,
    phase_1: impl FnOnce() -> Result<Option<QFormerConfig>>,
) -> Result<ItemEncoderConfig> {
    let (queries, vector_width) = (items.queries.unwrap_or(1), width);
    match items.encoder {
        Encoder::None => Err(Error::usage("items.encoder = \"none\" has no vectors")),
        Encoder::Linear => Ok(ItemEncoderConfig::Linear { queries, vector_width }),
        Encoder::Mlp => Ok(ItemEncoderConfig::Mlp { queries, vector_width }),
        Encoder::Qformer => Ok(ItemEncoderConfig::QFormer(match (phase_1()?, &items.qformer) {
            (Some(qformer), _) => qformer,
            (None, Some(settings)) => {
                let dir = Path::new(&settings.text);
                qformer_config(settings, dir, &BertTokenizer::from_dir(dir)?, width)?
            }
            (None, None) => return Err(Error::usage("items.aligned or items.qformer is missing")),
        })),
    }
}
