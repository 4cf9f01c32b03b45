//! LoRA adapters in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! Reference: peft/utils/save_and_load.py and peft/tuners/lora (0.14 and later). Python loads what
//! itemlm trained and the reverse. Refused by name: bias, DoRA, rank patterns and the other
//! variants of LoRA that change the forward pass.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use ::safetensors::{Dtype, tensor::TensorView};
use burn::module::{Param, ParamId};
use burn::nn::DropoutConfig;
use burn::prelude::*;
use burn::tensor::TensorData;
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::lora_linear::{Lora, LoraLinear};
use super::peft_targets::{SELECTING_KEYS, TargetModules, holds, targets_of_tensors};
use super::tensors::{EMBEDDINGS, HEAD, LAST_NORM, Role};
use crate::config::LoraConfig;
use crate::core::files::{write_atomic, write_json};
use crate::model::{Decoder, NamedTensor, save_llm_dir};
use crate::tensor::to_vec;
use crate::text::Tokenizer;
use crate::{Context, Error, Result};

/// Makes a new adapter. Its initial values depend only on the seed and the parameter's id, so they
/// are the same on every backend.
pub(crate) fn lora<B: Backend>(
    config: &LoraConfig,
    seed: u64,
    (a_id, b_id): (ParamId, ParamId),
    rows: usize,
    columns: usize,
    device: &B::Device,
) -> Lora<B> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(a_id.val());
    let bound = 1.0 / (columns as f32).sqrt();
    let a: Vec<f32> = (0..config.rank * columns).map(|_| rng.random_range(-bound..bound)).collect();
    let trainable = |values, shape: [usize; 2], id| {
        Param::initialized(id, Tensor::from_data(TensorData::new(values, shape), device).require_grad())
    };
    Lora {
        a: trainable(a, [config.rank, columns], a_id),
        b: trainable(vec![0.0; rows * config.rank], [rows, config.rank], b_id),
        dropout: DropoutConfig { prob: config.dropout }.init(),
        scale: config.alpha / config.rank as f64,
    }
}

/// The keys of PEFT's adapter_config.json that decide the forward pass.
#[derive(Debug, Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f64,
    #[serde(default)]
    lora_dropout: f64,
    target_modules: TargetModules,
    #[serde(default = "default_bias")]
    bias: String,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: BTreeMap<String, usize>,
    #[serde(default)]
    alpha_pattern: BTreeMap<String, f64>,
    #[serde(default)]
    modules_to_save: Option<Vec<String>>,
    #[serde(default)]
    inference_mode: bool,
    /// The other keys.
    #[serde(flatten)]
    others: BTreeMap<String, Value>,
}

impl PeftConfig {
    /// Returns a key that makes PEFT compute something else than this product of two matrices, or
    /// change base weights.
    fn unsupported(&self) -> Option<&str> {
        let keys = [
            (self.peft_type != "LORA", "peft_type other than LORA"),
            (self.bias != "none", "bias"),
            (self.use_dora, "use_dora"),
            (self.use_rslora, "use_rslora"),
            (self.fan_in_fan_out, "fan_in_fan_out"),
            (!self.rank_pattern.is_empty(), "rank_pattern"),
            (!self.alpha_pattern.is_empty(), "alpha_pattern"),
            (self.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()), "modules_to_save"),
            // pissa, olora, corda, loftq and lora_ga take the adapter's first values off the base
            // weights.
            (
                self.others.get("init_lora_weights").is_some_and(changes_the_base),
                "init_lora_weights other than gaussian, orthogonal or eva",
            ),
        ];
        let other = || self.others.iter().find(|(key, value)| !is_inert(key) && is_set(value)).map(|(key, _)| &**key);
        keys.iter().find(|(found, _)| *found).map(|(_, what)| *what).or_else(other)
    }
}

/// Returns whether a key of peft's `LoraConfig` (0.21) says nothing of the forward pass, or is read
/// elsewhere: its tensors' names say which layers an adapter is on, and `init_lora_weights` how it
/// began. A key that a later peft adds is refused if it is set.
fn is_inert(key: &str) -> bool {
    const INERT: [&str; 13] = [
        "init_lora_weights",
        "auto_mapping",
        "peft_version",
        "revision",
        "megatron_config",
        "megatron_core",
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        "qalora_group_size",
        "runtime_config",
        "ensure_weight_tying",
    ];
    INERT.contains(&key) || SELECTING_KEYS.contains(&key)
}

/// Returns whether a value is other than null, false and empty.
fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        Value::String(text) => !text.is_empty(),
        Value::Bool(true) | Value::Number(_) => true,
    }
}

fn changes_the_base(init_lora_weights: &Value) -> bool {
    init_lora_weights.as_str().is_some_and(|way| !["gaussian", "orthogonal", "eva"].contains(&way))
}

fn default_bias() -> String {
    "none".into()
}

const CONFIG_FILE: &str = "adapter_config.json";
const WEIGHTS_FILE: &str = "adapter_model.safetensors";

fn tensor_name(layer: usize, module: &str, matrix: char) -> String {
    format!("base_model.model.model.layers.{layer}.{module}.lora_{matrix}.weight")
}

fn to_bytes<B: Backend>(tensor: Tensor<B, 2>, name: &str) -> Result<Vec<u8>> {
    let values =
        tensor.into_data().convert::<f32>().to_vec::<f32>().map_err(|e| Error::failed(format!("{name}: {e:?}")))?;
    if let Some(value) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::failed(format!("tensor {name} holds {value}; it is not written")));
    }
    Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect())
}

/// Writes the model's adapter to `dir` (created if absent) in PEFT's format.
pub fn save_adapter<B: Backend>(dir: &Path, llm: &Decoder<B>, config: &LoraConfig, base: &str) -> Result<()> {
    fs::create_dir_all(dir).context(dir.display())?;
    let peft = PeftConfig {
        peft_type: "LORA".into(),
        task_type: Some("CAUSAL_LM".into()),
        base_model_name_or_path: Some(base.into()),
        r: config.rank,
        lora_alpha: config.alpha,
        lora_dropout: config.dropout,
        target_modules: TargetModules::Names(config.targets.clone()),
        bias: default_bias(),
        use_dora: false,
        use_rslora: false,
        fan_in_fan_out: false,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        modules_to_save: None,
        inference_mode: true,
        others: BTreeMap::new(),
    };
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    let projections = llm.config().projections();
    for (l, block) in llm.layers.iter().enumerate() {
        for ((_, module, _), linear) in projections.iter().zip(&block.linears) {
            let Some(lora) = &linear.lora else { continue };
            for (matrix, param) in [('A', &lora.a), ('B', &lora.b)] {
                let name = tensor_name(l, module, matrix);
                let bytes = to_bytes(param.val(), &name)?;
                tensors.push((name, param.dims().to_vec(), bytes));
            }
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| {
            Ok((name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).context(name)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata = Some([("format".to_string(), "pt".to_string())].into());
    let bytes = ::safetensors::serialize(views, metadata).context(WEIGHTS_FILE)?;
    write_atomic(&dir.join(WEIGHTS_FILE), &bytes)?;
    write_json(&dir.join(CONFIG_FILE), &peft)
}

fn read_peft_config(dir: &Path) -> Result<PeftConfig> {
    if let (false, Some(pickled)) = (dir.join(WEIGHTS_FILE).exists(), pickled(dir)) {
        return Err(Error::failed(format!(
            "{}: holds {pickled} and no {WEIGHTS_FILE}; pickled weights can run code and are not read, load the \
             adapter with Python's peft and save it with save_pretrained(…, safe_serialization=True)",
            dir.display()
        )));
    }
    let path = dir.join(CONFIG_FILE);
    serde_json::from_str(&fs::read_to_string(&path).context(path.display())?).context(path.display())
}

/// Returns the name of the adapter's weights as older versions of peft pickled them.
fn pickled(dir: &Path) -> Option<&'static str> {
    ["adapter_model.bin", "adapter_model.pt"].into_iter().find(|name| dir.join(name).exists())
}

/// Reads an adapter's hyper-parameters from PEFT's `adapter_config.json`.
pub fn read_adapter_config(dir: &Path) -> Result<LoraConfig> {
    let path = dir.join(CONFIG_FILE);
    let place = path.display();
    let peft = read_peft_config(dir)?;
    if let Some(what) = peft.unsupported() {
        return Err(Error::failed(format!("{place}: {what} is not supported")));
    }
    let targets = match &peft.target_modules {
        TargetModules::Names(names) if peft.target_modules.is_plain(&peft.others) => names.clone(),
        _ => targets_of_tensors(&dir.join(WEIGHTS_FILE), &LoraConfig::TARGETS)?,
    };
    let config = LoraConfig { rank: peft.r, alpha: peft.lora_alpha, dropout: peft.lora_dropout, targets };
    config.validate().context(place)?;
    Ok(config)
}

/// Loads the adapter in `dir` into a model built with the same LoRA sizes. A module that its
/// `adapter_config.json` leaves out adds nothing.
///
/// # Errors
/// Missing, unexpected and misshapen tensors, by name. Alpha is the model's, not the file's: see
/// [`read_adapter_config`].
pub fn load_adapter<B: Backend>(dir: &Path, mut llm: Decoder<B>, device: &B::Device) -> Result<Decoder<B>> {
    let mut weights = crate::model::formats::safetensors::open_file(&dir.join(WEIGHTS_FILE))?;
    let peft = read_peft_config(dir)?;
    let plain = peft.target_modules.is_plain(&peft.others);
    let projections = llm.config().projections();
    for (l, block) in llm.layers.iter_mut().enumerate() {
        for ((_, module, _), linear) in projections.iter().zip(&mut block.linears) {
            let Some(lora) = &mut linear.lora else { continue };
            let left_out = !plain && !holds(&weights, &tensor_name(l, module, 'A'));
            for (matrix, param) in [('A', &mut lora.a), ('B', &mut lora.b)] {
                let shape = param.dims();
                let name = tensor_name(l, module, matrix);
                let values = match (left_out, matrix) {
                    (false, _) => weights.take(&name, &shape)?,
                    (true, 'A') => continue,
                    (true, _) => vec![0.0; shape[0] * shape[1]],
                };
                let trains = param.val().is_require_grad();
                let tensor = Tensor::from_data(TensorData::new(values, shape), device).set_require_grad(trains);
                *param = Param::initialized(param.id, tensor);
            }
        }
    }
    weights.finish()?;
    Ok(llm)
}

/// Writes the model, adapter merged into its weights, as a Hugging Face directory.
///
/// # Errors
/// A failed write; a value that is not finite or cannot be read, by tensor.
pub fn export_merged<B: Backend>(dir: &Path, llm: &Decoder<B>, tokenizer: &Tokenizer) -> Result<()> {
    let block = llm.config().block_tensors();
    let blocks = llm.layers.iter().enumerate().flat_map(|(layer, parts)| {
        // One tensor at a time is read: a model is never in memory twice.
        block.iter().map(move |tensor| {
            let name = tensor.full_name(layer);
            let (linear, norm) = parts.parts(tensor.role);
            match (tensor.role, linear, norm) {
                (Role::Weight(_), Some(linear), _) => read_named(name, linear.merged_weight()),
                (Role::Bias(_), Some(LoraLinear { bias: Some(bias), .. }), _) => read_named(name, bias.val()),
                (Role::Norm(_), _, Some(norm)) => read_named(name, norm.gamma.val()),
                _ => Err(Error::failed(format!("tensor {name}: the model does not have it"))),
            }
        })
    });
    let head = llm.lm_head.as_ref().map(|head| read_named(HEAD.into(), head.weight.dense()));
    let embeddings = read_named(EMBEDDINGS.into(), llm.embed_tokens.val());
    let norm = read_named(LAST_NORM.into(), llm.norm.gamma.val());
    save_llm_dir(dir, llm.config(), [embeddings, norm].into_iter().chain(blocks).chain(head), tokenizer)
}

/// Reads a tensor with its name and shape.
///
/// # Errors
/// A device that failed.
fn read_named<B: Backend, const D: usize>(name: String, tensor: Tensor<B, D>) -> Result<NamedTensor> {
    let shape = tensor.dims().to_vec();
    let values = to_vec(tensor, &format!("tensor {name}"))?;
    Ok((name, shape, values))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_read_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let read = |key: &str, value: Value| {
            let mut config = json!({
                "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "peft_version": "0.18.0"
            });
            config[key] = value;
            fs::write(dir.path().join(CONFIG_FILE), config.to_string()).unwrap();
            read_adapter_config(dir.path())
        };
        for (key, value) in [
            ("init_lora_weights", json!(true)),
            ("init_lora_weights", json!("gaussian")),
            ("layer_replication", json!(null)),
            ("use_qalora", json!(false)),
            ("revision", json!("main")),
            ("megatron_core", json!("megatron.core")),
            ("qalora_group_size", json!(16)),
            ("runtime_config", json!({"ephemeral_gpu_offload": false})),
            ("trainable_token_indices", json!(null)),
            ("target_parameters", json!([])),
            ("rank_pattern", json!({})),
        ] {
            assert_eq!(read(key, value).unwrap().rank, 4, "{key}");
        }
        for (key, value) in [
            ("init_lora_weights", json!("pissa_niter_4")),
            ("init_lora_weights", json!("olora")),
            ("alora_invocation_tokens", json!([1, 2])),
            ("layer_replication", json!([[0, 1]])),
            ("lora_bias", json!(true)),
            ("use_qalora", json!(true)),
            ("use_dora", json!(true)),
            ("bias", json!("all")),
            ("bias", json!("lora_only")),
            ("use_rslora", json!(true)),
            ("fan_in_fan_out", json!(true)),
            ("modules_to_save", json!(["lm_head"])),
            ("rank_pattern", json!({"layers.1.self_attn.q_proj": 2})),
            ("alpha_pattern", json!({"q_proj": 2})),
            ("trainable_token_indices", json!([3, 4])),
            ("target_parameters", json!(["mlp.experts.gate_up_proj"])),
            ("velora_config", json!({"rank": 1})),
            ("kasa_config", json!({"beta": 0.1})),
            ("peft_type", json!("LOHA")),
            ("a_key_of_a_later_peft", json!(2)),
        ] {
            let error = read(key, value).unwrap_err().to_string();
            assert!(
                error.contains(CONFIG_FILE) && error.contains(key) && error.ends_with("is not supported"),
                "{error}"
            );
        }
    }
}
