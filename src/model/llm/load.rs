//! A decoder's parameters from files.

use burn::module::{Param, ParamId};
use burn::prelude::*;
use burn::tensor::TensorData;

use super::block::DecoderBlock;
use super::config::DecoderConfig;
use super::decoder::{Decoder, Tune};
use super::lora_linear::{LoraLinear, Weight};
use super::norm::Norm;
use super::peft::lora;
use super::quantized::QuantizedWeight;
use super::tensors::{BlockTensor, EMBEDDINGS, HEAD, LAST_NORM, Role};
use crate::config::Precision;
use crate::kernels::half_turn;
use crate::model::Weights;
use crate::{Error, Result};

impl<B: Backend> Decoder<B> {
    /// Reads every weight onto `device`: frozen projections of the blocks in `precision`, or as
    /// they are on disk after [`Weights::keep_quantized`]; everything else in f32.
    ///
    /// Parameter ids are their order in the model, so that an optimiser's state can be stored by
    /// id.
    ///
    /// # Errors
    /// Missing, misshapen and unexpected tensors, by file and name; a LoRA target that the model
    /// does not have.
    pub fn load(
        config: &DecoderConfig,
        mut weights: Weights,
        tune: Tune,
        precision: Precision,
        device: &B::Device,
    ) -> Result<Self> {
        check_targets(config, tune)?;
        let mut loader = Loader { config, weights: &mut weights, tune, precision, device, next_id: 0 };
        let table = [config.vocab_size, config.hidden_size];
        let embed_tokens = loader.param(EMBEDDINGS, table)?;
        let block = config.block_tensors();
        let layers = (0..config.num_hidden_layers).map(|layer| loader.block(&block, layer)).collect::<Result<_>>()?;
        let norm = loader.norm(LAST_NORM, config.hidden_size)?;
        let lm_head = match config.tie_word_embeddings {
            true => None,
            false => {
                let weight = Weight::Plain(loader.param(HEAD, table)?);
                Some(LoraLinear { weight, bias: None, lora: None, precision: Precision::F32 })
            }
        };
        weights.finish()?;
        Ok(Self {
            embed_tokens,
            layers,
            norm,
            lm_head,
            half_turn: half_turn(config.head_dim, config.rotary_dim(), device),
            rotary: config.rotary(),
            window_rotary: config.window_rotary(),
            config: config.clone(),
        })
    }
}

/// Refuses a LoRA target that no projection of the model has.
fn check_targets(config: &DecoderConfig, tune: Tune) -> Result<()> {
    let Tune::Lora(lora, _) = tune else { return Ok(()) };
    let names = config.projections().into_iter().map(|(_, name, _)| name.rsplit('.').next().unwrap_or(name));
    let names: Vec<&str> = names.collect();
    match lora.targets.iter().find(|target| !names.contains(&target.as_str())) {
        None => Ok(()),
        Some(target) => Err(Error::usage(format!(
            "llm.lora: the model, of family {}, has no projection {target:?}; it has {}",
            config.family.model_type,
            names.join(", ")
        ))),
    }
}

/// Takes tensors from the files and makes parameters from them, trainable or not.
struct Loader<'a, B: Backend> {
    config: &'a DecoderConfig,
    weights: &'a mut Weights,
    tune: Tune<'a>,
    precision: Precision,
    device: &'a B::Device,
    next_id: u64,
}

impl<B: Backend> Loader<'_, B> {
    fn id(&mut self) -> ParamId {
        self.next_id += 1;
        self.next_id.into()
    }

    fn param<const D: usize>(&mut self, name: &str, shape: [usize; D]) -> Result<Param<Tensor<B, D>>> {
        let values = self.weights.take(name, &shape)?;
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device);
        let tensor = tensor.set_require_grad(matches!(self.tune, Tune::Full));
        Ok(Param::initialized(self.id(), tensor))
    }

    fn norm(&mut self, name: &str, width: usize) -> Result<Norm<B>> {
        let gamma = self.param(name, [width])?;
        Ok(Norm { gamma, epsilon: self.config.rms_norm_eps, offset: self.config.family.norm_offset })
    }

    fn block(&mut self, table: &[BlockTensor], layer: usize) -> Result<DecoderBlock<B>> {
        let mut block = DecoderBlock { linears: vec![], norms: vec![], projections: vec![], norm_roles: vec![] };
        for tensor in table {
            let name = tensor.full_name(layer);
            match (tensor.role, tensor.shape.as_slice()) {
                (Role::Weight(projection), &[out, width]) => {
                    block.linears.push(self.linear(tensor, &name, [out, width])?);
                    block.projections.push(projection);
                }
                // A bias follows its weight.
                (Role::Bias(_), &[out]) => {
                    let bias = self.param(&name, [out])?;
                    if let Some(linear) = block.linears.last_mut() {
                        linear.bias = Some(bias);
                    }
                }
                (Role::Norm(role), &[width]) => {
                    block.norms.push(self.norm(&name, width)?);
                    block.norm_roles.push(role);
                }
                _ => return Err(Error::failed(format!("tensor {name} cannot have shape {:?}", tensor.shape))),
            }
        }
        Ok(block)
    }

    fn linear(&mut self, tensor: &BlockTensor, name: &str, [out, width]: [usize; 2]) -> Result<LoraLinear<B>> {
        let weight = match self.weights.take_blocks(name, [out, width])? {
            Some(blocks) => {
                // It takes as many ids as without quantisation, so that an optimiser's state fits
                // either.
                self.id();
                Weight::Quantized(QuantizedWeight::new(blocks, [out, width], self.device))
            }
            None => {
                let matrix = self.param(name, [out, width])?;
                Weight::Plain(match self.tune {
                    Tune::Full => matrix,
                    _ => matrix.map(|weight| weight.cast(self.precision.dtype())),
                })
            }
        };
        let ids = (self.id(), self.id());
        let lora = match self.tune {
            Tune::Lora(config, seed) if config.adapts(tensor.module()) => {
                Some(lora(config, seed, ids, out, width, self.device))
            }
            _ => None,
        };
        Ok(LoraLinear { weight, bias: None, lora, precision: self.precision })
    }
}
