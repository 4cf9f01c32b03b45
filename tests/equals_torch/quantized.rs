//! GGUF files in 4- and 8-bit blocks of every architecture, whose matrices stay in their blocks,
//! against transformers and peft on the unpacked weights: scores, LoRA beside the blocks, and the
//! merged export.

use itemlm::model::{export_merged, open_llm};

use crate::families::{adapter_names, load, logits, train};
use crate::*;

const NAMES: [&str; 9] = [
    "llama-bias-yarn",
    "llama-linear",
    "qwen2-full",
    "qwen3",
    "gemma2",
    "gemma3-gguf",
    "smollm3-gguf",
    "olmo2",
    "phi3",
];

#[test]
fn families_in_blocks() {
    for device in devices() {
        for name in NAMES {
            let dir = fixture("quantized").join(name);
            let expected = Tensors::open(&format!("quantized/{name}/expected.safetensors"));
            let open = || {
                let mut llm = open_llm(&dir.join("model.gguf")).unwrap();
                let size = llm.weights.keep_quantized().unwrap();
                let matrices = llm.config.num_hidden_layers * llm.config.projections().len();
                assert_eq!(size.matrices, matrices, "{name}: every matrix stays in blocks");
                llm
            };
            close(name, &host(logits(&load(open(), &device), &expected, &device)), &expected.floats("logits"));

            let config = read_adapter_config(&dir.join("adapter")).unwrap();
            let llm = open();
            let tune = Tune::Lora(&config, 1);
            let model = Decoder::<Training>::load(&llm.config, llm.weights, tune, Precision::F32, &device).unwrap();
            let model = load_adapter(&dir.join("adapter"), model, &device).unwrap();
            let found = host(logits(&model, &expected, &device));
            close(&format!("{name}, LoRA"), &found, &expected.floats("lora.logits"));

            let export = tempfile::tempdir().unwrap();
            export_merged(export.path(), &model, &llm.tokenizer).unwrap();
            let merged = load(open_llm(export.path()).unwrap(), &device);
            let found = host(logits(&merged, &expected, &device));
            close(&format!("{name}, merged"), &found, &expected.floats("lora.logits"));

            let names = adapter_names(&model);
            train(&format!("{name}, LoRA"), model, &names, "lora", &expected, &device);
        }
    }
}
