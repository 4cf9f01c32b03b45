//! Parameters that are read from a BERT directory or made new, and modules as safetensors files
//! whose tensors are named by the fields' paths.

use std::path::Path;

use ::safetensors::{Dtype, tensor::TensorView};
use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::{Rng, SeedableRng};

use super::Weights;
use super::formats::safetensors;
use crate::core::files::write_atomic;
use crate::tensor::to_vec;
use crate::{Context, Error, Result};

/// Initial values of a parameter that no file holds.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Init {
    /// One number everywhere.
    Constant(f32),
    /// Normal, with mean 0 and this standard deviation.
    Normal(f32),
    /// Uniform between this and its negative.
    Uniform(f32),
}

/// Source of a module's parameters, which it makes in order. Their ids are that order, so that an
/// optimiser's state can be stored by id; a new parameter depends only on the seed and its id, so
/// it is the same on every backend.
pub(crate) struct Parameters<'a, B: Backend> {
    /// The directory's tensors, without a leading `bert.`; with `None` every parameter is new.
    pub(crate) weights: Option<BertTensors>,
    pub(crate) seed: u64,
    pub(crate) trains: bool,
    pub(crate) device: &'a B::Device,
    pub(crate) count: u64,
}

impl<B: Backend> Parameters<'_, B> {
    /// Makes a parameter of these values, row-major.
    pub(crate) fn param<const D: usize>(&mut self, values: Vec<f32>, shape: [usize; D]) -> Param<Tensor<B, D>> {
        self.count += 1;
        let tensor = Tensor::from_data(TensorData::new(values, shape), self.device).set_require_grad(self.trains);
        Param::initialized(self.count.into(), tensor)
    }

    /// Makes a parameter that no file holds.
    pub(crate) fn init<const D: usize>(&mut self, shape: [usize; D], init: Init) -> Param<Tensor<B, D>> {
        let values = self.values(shape.iter().product(), init);
        self.param(values, shape)
    }

    /// Returns the values of the next parameter, if it is new.
    pub(crate) fn values(&self, count: usize, init: Init) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.count + 1);
        match init {
            Init::Constant(value) => vec![value; count],
            Init::Uniform(bound) => (0..count).map(|_| rng.random_range(-bound..bound)).collect(),
            Init::Normal(deviation) => {
                // Box and Muller: a logarithm of (0, 1] is finite.
                let mut one = || {
                    let (radius, angle) = (1.0 - rng.random::<f32>(), rng.random::<f32>());
                    deviation * (-2.0 * radius.ln()).sqrt() * (std::f32::consts::TAU * angle).cos()
                };
                (0..count).map(|_| one()).collect()
            }
        }
    }

    /// Reads the directory's tensor `name`, or returns new values where there is no directory.
    pub(crate) fn read_values(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Vec<f32>> {
        match &mut self.weights {
            Some(weights) => weights.take(name, shape),
            None => Ok(self.values(shape.iter().product(), init)),
        }
    }

    /// Makes a parameter of the directory's tensor `name`, or a new one where there is no
    /// directory.
    pub(crate) fn read<const D: usize>(
        &mut self,
        name: &str,
        shape: [usize; D],
        init: Init,
    ) -> Result<Param<Tensor<B, D>>> {
        let values = self.read_values(name, &shape, init)?;
        Ok(self.param(values, shape))
    }
}

/// A BERT directory's tensors under BertModel's names, whatever head they were saved with.
pub(crate) struct BertTensors {
    weights: Weights,
    prefix: &'static str,
}

impl BertTensors {
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let weights = safetensors::open(dir)?;
        let prefixed = weights.file_of("bert.embeddings.word_embeddings.weight").is_some();
        Ok(Self { weights, prefix: if prefixed { "bert." } else { "" } })
    }

    /// Returns whether there is such a tensor outside BertModel, such as its language head's.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.weights.file_of(name).is_some() || self.weights.file_of(&old_name(name)).is_some()
    }

    fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let name = if name.starts_with("cls.") { name.to_string() } else { format!("{}{name}", self.prefix) };
        let old = old_name(&name);
        let name = if self.weights.file_of(&old).is_some() { old } else { name };
        self.weights.take(&name, shape)
    }
}

/// Returns the name that files converted from TensorFlow give a LayerNorm's parameter.
fn old_name(name: &str) -> String {
    name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
}

/// Writes every parameter of `module` to a safetensors file (f32), named by its fields:
/// `layers.0.attention.query.weight`.
///
/// # Errors
/// A value that is not finite, by name; a failed write.
pub fn save_module<B: Backend, M: Module<B>>(path: &Path, module: &M) -> Result<()> {
    let mut writer = Writer { path: Vec::new(), tensors: Vec::new(), error: None };
    module.visit(&mut writer);
    if let Some(error) = writer.error {
        return Err(error).context(path.display());
    }
    let views = writer.tensors.iter().map(|(name, shape, bytes)| {
        Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).context(name)?))
    });
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    let bytes = ::safetensors::serialize(views.collect::<Result<Vec<_>>>()?, metadata).context(path.display())?;
    write_atomic(path, &bytes)
}

/// Reads a file that [`save_module`] wrote into a module of the same shapes.
///
/// # Errors
/// Missing, unexpected and misshapen tensors, by name.
pub fn load_module<B: Backend, M: Module<B>>(path: &Path, module: M) -> Result<M> {
    read_module(safetensors::open_file(path)?, module)
}

/// Reads a file that [`save_module`] wrote into the module that `make` makes, once the file is
/// known to have tensors of these names and shapes: a module whose sizes a file decides must not be
/// allocated before.
///
/// # Errors
/// Those of [`load_module`] and of `make`.
pub fn load_module_of<B: Backend, M: Module<B>>(
    path: &Path,
    sizes: &[(String, Vec<usize>)],
    make: impl FnOnce() -> Result<M>,
) -> Result<M> {
    let weights = safetensors::open_file(path)?;
    sizes.iter().try_for_each(|(name, shape)| weights.find(name, shape).map(|_| ()))?;
    read_module(weights, make()?)
}

fn read_module<B: Backend, M: Module<B>>(weights: Weights, module: M) -> Result<M> {
    let mut reader = Reader { path: Vec::new(), weights, error: None };
    let module = module.map(&mut reader);
    match reader.error {
        Some(error) => Err(error),
        None => reader.weights.finish().map(|()| module),
    }
}

/// Gives the parameters ids from `first` upward, so that modules made separately can train
/// together.
pub(crate) fn renumber<B: Backend, M: Module<B>>(module: M, first: u64) -> M {
    module.map(&mut Renumber(first))
}

struct Renumber(u64);

impl<B: Backend> ModuleMapper<B> for Renumber {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let id = self.0;
        self.0 += 1;
        Param::initialized(id.into(), param.val())
    }
}

struct Writer {
    path: Vec<String>,
    tensors: Vec<(String, Vec<usize>, Vec<u8>)>,
    error: Option<Error>,
}

impl<B: Backend> ModuleVisitor<B> for Writer {
    fn enter_module(&mut self, name: &str, container: &str) {
        enter(&mut self.path, name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        exit(&mut self.path, container);
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let name = self.path.join(".");
        match to_vec(param.val(), &name) {
            Ok(values) if values.iter().all(|v| v.is_finite()) => {
                let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
                self.tensors.push((name, param.dims().to_vec(), bytes));
            }
            Ok(_) => {
                self.error =
                    Some(Error::failed(format!("tensor {name} holds a value that is not finite; it is not written")))
            }
            Err(error) => self.error = Some(error),
        }
    }
}

struct Reader {
    path: Vec<String>,
    weights: Weights,
    error: Option<Error>,
}

impl<B: Backend> ModuleMapper<B> for Reader {
    fn enter_module(&mut self, name: &str, container: &str) {
        enter(&mut self.path, name, container);
    }

    fn exit_module(&mut self, _: &str, container: &str) {
        exit(&mut self.path, container);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.dims();
        match self.weights.take(&self.path.join("."), &shape) {
            Ok(values) => param.map(|old| {
                let new = Tensor::from_data(TensorData::new(values, shape), &old.device());
                new.set_require_grad(old.is_require_grad())
            }),
            Err(error) => {
                self.error.get_or_insert(error);
                param
            }
        }
    }
}

/// Adds a field's name to the path of a tensor. The variant of an enum is no part of it.
fn enter(path: &mut Vec<String>, name: &str, container: &str) {
    if !container.starts_with("Enum:") {
        path.push(name.to_string());
    }
}

fn exit(path: &mut Vec<String>, container: &str) {
    if !container.starts_with("Enum:") {
        path.pop();
    }
}
