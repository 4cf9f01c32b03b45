"""Tiny random models of every decoder family as Hugging Face directories and as GGUF, with what transformers and
peft compute: logits, gradients of LoRA and of all weights, three optimiser steps -> families/NAME/.

python tests/reference/family_reference.py             writes the fixtures
python tests/reference/family_reference.py check DIR   loads a directory that itemlm exported, prints its logits' sum
"""
import json
import sys

import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tiny import EOS, FIXTURES, generator, write_json, write_tensors

VOCAB, LAYERS, HEADS, KV_HEADS, HIDDEN, INTER = 48, 3, 4, 2, 16, 24
KEPT = 2  # blocks of the shortened models
ROWS, LENGTH, SHORT = 2, 12, 9  # row 1 has SHORT real tokens, the rest is padding
RANK, ALPHA, LR, STEPS = 2, 4, 1e-2, 3
OUT = FIXTURES / "families"
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

COMMON = {
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": INTER, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": EOS, "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 100.0}

# name: (changes of the configuration, GGUF's architecture, whether its converter permutes q and k)
FAMILIES = {
    "llama-bias-yarn": ({"model_type": "llama", "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN,
                         "tie_word_embeddings": False, "head_dim": 8}, "llama", True),
    "llama-linear": ({"model_type": "llama", "rope_theta": 100.0, "rope_scaling": {"type": "linear", "factor": 2.5},
                      "tie_word_embeddings": True}, "llama", True),
    "llama-dynamic": ({"model_type": "llama", "rope_theta": 100.0, "rope_scaling": {"type": "dynamic", "factor": 2.0},
                       "tie_word_embeddings": True}, None, True),
    "mistral": ({"model_type": "mistral", "sliding_window": 4, "rope_theta": 100.0, "tie_word_embeddings": False,
                 "head_dim": 8}, None, True),
    "qwen2": ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1,
               "rope_theta": 100.0, "tie_word_embeddings": True}, None, False),
    "qwen2-full": ({"model_type": "qwen2", "rope_theta": 100.0, "tie_word_embeddings": False}, "qwen2", False),
    "qwen3": ({"model_type": "qwen3", "head_dim": 8, "rope_theta": 100.0, "tie_word_embeddings": True}, "qwen3", False),
    "gemma2": ({"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
                "attn_logit_softcapping": 3.0, "final_logit_softcapping": 4.0, "rope_theta": 100.0,
                "tie_word_embeddings": True}, "gemma2", False),
    "gemma3": ({"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
                "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1000.0},
                    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
                "tie_word_embeddings": True}, None, False),
    "gemma3-gguf": ({"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
                     "num_hidden_layers": 6, "rope_local_base_freq": 10000.0, "rope_theta": 1000000.0,
                     "tie_word_embeddings": True}, "gemma3", False),
    "smollm3": ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "rope_theta": 100.0,
                 "tie_word_embeddings": False}, None, True),
    "smollm3-gguf": ({"model_type": "smollm3", "num_hidden_layers": 4, "rope_theta": 100.0,
                      "tie_word_embeddings": True}, "smollm3", True),
    "olmo2": ({"model_type": "olmo2", "rope_theta": 100.0, "tie_word_embeddings": False}, "olmo2", False),
    "phi3": ({"model_type": "phi3", "partial_rotary_factor": 0.5, "sliding_window": 5, "rope_theta": 100.0,
              "tie_word_embeddings": False, "original_max_position_embeddings": 64}, "phi3", False),
    # The other way of the head, and windows where a family has them as an option.
    "mistral-tied": ({"model_type": "mistral", "sliding_window": None, "rope_theta": 100.0, "tie_word_embeddings": True},
                     None, True),
    "qwen3-window": ({"model_type": "qwen3", "head_dim": 8, "use_sliding_window": True, "sliding_window": 4,
                      "max_window_layers": 1, "rope_theta": 100.0, "tie_word_embeddings": False}, None, False),
    "gemma2-untied": ({"model_type": "gemma2", "head_dim": 8, "query_pre_attn_scalar": 12, "sliding_window": 4,
                       "attn_logit_softcapping": None, "final_logit_softcapping": None, "rope_theta": 100.0,
                       "tie_word_embeddings": False}, None, False),
    "gemma3-untied": ({"model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
                       "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
                       "rope_local_base_freq": 50.0, "rope_theta": 1000.0, "tie_word_embeddings": False}, None, False),
    "smollm3-window": ({"model_type": "smollm3", "no_rope_layers": [1, 0, 1], "use_sliding_window": True,
                        "sliding_window": 4, "rope_theta": 100.0, "tie_word_embeddings": True}, None, True),
    "olmo2-tied": ({"model_type": "olmo2", "attention_bias": True, "rope_theta": 100.0, "tie_word_embeddings": True},
                   None, False),
    "phi3-tied": ({"model_type": "phi3", "sliding_window": None, "rope_theta": 100.0, "tie_word_embeddings": True,
                   "original_max_position_embeddings": 64}, None, False),
}


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


def targets(config):
    return FUSED if config["model_type"] == "phi3" else ALL


def weights(config, g):
    """Random numbers that f16 holds, for every parameter that transformers makes."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    offset = 0 if config["model_type"].startswith("gemma") else 1
    made = {}
    for name, p in sorted(model.state_dict().items()):
        if name == "lm_head.weight" and config["tie_word_embeddings"]:
            continue
        drawn = torch.randn(p.shape, generator=g) * 0.3
        if p.ndim == 1 and "norm" in name:
            drawn = drawn + offset
        made[name] = drawn.half()
    return made


def permuted(w, heads):
    """LlamaModel.permute of llama.cpp's convert_hf_to_gguf.py."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write_gguf(path, config, tensors, arch, permute, block_types=lambda name: None):
    """block_types: the type of a tensor's blocks, None for F16."""
    writer = gguf.GGUFWriter(path, arch)
    layers, dim = config["num_hidden_layers"], config.get("head_dim") or config["hidden_size"] // HEADS
    writer.add_context_length(64)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(dim)
    writer.add_value_length(dim)
    writer.add_rope_dimension_count(int(dim * config.get("partial_rotary_factor", 1)))
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    writer.add_rope_freq_base(config.get("rope_theta") or rope.get("rope_theta"))
    if "factor" in rope:
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope.get("rope_type") or rope["type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = ["<|endoftext|>"] + [chr(ord("a") + i) for i in range(26)] + ["Ġ"] + ["Ġ" + chr(ord("a") + i) for i in range(20)]
    assert len(tokens) == VOCAB
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (VOCAB - 1))
    writer.add_token_merges(["Ġ a"])
    writer.add_eos_token_id(0)
    kind = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == arch)
    names = gguf.get_tensor_name_map(kind, layers)
    for name, tensor in tensors.items():
        data = tensor.float().numpy()
        stem, suffix = name.rsplit(".", 1)
        if permute and stem.endswith("q_proj"):
            data = permuted(data, HEADS)
        if permute and stem.endswith("k_proj"):
            data = permuted(data, KV_HEADS)
        if arch.startswith("gemma") and stem.endswith("norm"):
            data = data + 1
        place = f"{names.get_name(stem)}.{suffix}"
        if data.ndim == 2 and (kind_of_blocks := block_types(name)):
            writer.add_tensor(place, gguf.quants.quantize(data, kind_of_blocks), raw_dtype=kind_of_blocks)
        else:
            writer.add_tensor(place, data if data.ndim == 1 else data.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def adapter(model):
    """name as in adapter_model.safetensors -> parameter"""
    return {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}


def loss_of(model, ids, mask, positions, labels):
    logits = model(input_ids=ids, attention_mask=mask).logits
    return logits, torch.nn.functional.cross_entropy(logits[positions[:, 0], positions[:, 1]], labels)


def train(params, step):
    """Gradients of the first step and parameters after STEPS of AdamW."""
    optimiser = torch.optim.AdamW(params.values(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)
    losses, first = [], {}
    for n in range(STEPS):
        loss = step()
        loss.backward()
        if n == 0:
            first = {k: p.grad.clone() for k, p in params.items()}
        losses.append(loss.detach())
        optimiser.step()
        optimiser.zero_grad()
    return torch.stack(losses), first


def with_adapter(name, config, folder, g, rank):
    """The model in folder with random LoRA on every projection, which is saved in folder/adapter."""
    lora = LoraConfig(r=rank, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets(config), bias="none",
                      task_type="CAUSAL_LM")
    model = get_peft_model(load(folder), lora)
    for n, p in sorted(adapter(model).items()):
        p.data = torch.randn(p.shape, generator=g) * (0.15 if "lora_A" in n else 0.3)
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink(missing_ok=True)
    written = json.loads((folder / "adapter" / "adapter_config.json").read_text())
    written["target_modules"] = sorted(written["target_modules"])
    write_json(folder / "adapter" / "adapter_config.json", written | {"base_model_name_or_path": name})
    return PeftModel.from_pretrained(load(folder), folder / "adapter", is_trainable=True).eval()


def reference(name, seed):
    changes, arch, permute = FAMILIES[name]
    config = COMMON | changes
    folder = OUT / name
    g = generator(seed)
    tensors = weights(config, g)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "config.json", config)
    ids = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=g)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[1, SHORT:] = 0
    ids[1, SHORT:] = 0
    real = mask[..., None].float()
    with torch.no_grad():
        logits = load(folder)(input_ids=ids, attention_mask=mask).logits
        exact = load(folder, torch.float64)(input_ids=ids, attention_mask=mask).logits
        # Padding on the right must not matter.
        alone = load(folder)(input_ids=ids[1:, :SHORT]).logits
    torch.testing.assert_close(alone[0], logits[1, :SHORT], rtol=1e-4, atol=1e-4)
    # The first blocks alone, then the last norm and the head.
    cut = load(folder)
    cut.model.layers = cut.model.layers[:KEPT]
    cut.config.num_hidden_layers = KEPT
    with torch.no_grad():
        first_blocks = cut(input_ids=ids, attention_mask=mask).logits
    positions = torch.tensor([[0, t] for t in range(7, 11)] + [[1, t] for t in range(5, 8)])
    labels = torch.stack([ids[r, t + 1] for r, t in positions.tolist()])
    out = {"input_ids": ids, "attention_mask": mask, "logits": logits * real, "first_blocks.logits": first_blocks * real,
           "label_positions": positions, "label_tokens": labels}

    model = with_adapter(name, config, folder, g, RANK)
    params = adapter(model)
    out["lora.logits"] = loss_of(model, ids, mask, positions, labels)[0].detach() * real
    out["lora.losses"], first = train(params, lambda: loss_of(model, ids, mask, positions, labels)[1])
    assert all(v.abs().max() > 1e-6 for v in first.values()), name
    out |= {f"lora.grad.{n}": v for n, v in first.items()}
    out |= {f"lora.final.{n}": p.detach() for n, p in params.items()}

    # Every weight.
    model = load(folder)
    params = dict(model.named_parameters())
    out["full.losses"], first = train(params, lambda: loss_of(model, ids, mask, positions, labels)[1])
    # AdamW turns a gradient that is only rounding noise into a whole step of either sign.
    smallest = min(g[g != 0].abs().min() for g in first.values())
    if smallest < 1e-6:
        return reference(name, seed + 100)
    few = [n for n, p in params.items() if p.ndim == 1 or "layers.1." in n and "down_proj" in n or "embed" in n]
    out |= {f"full.grad.{n}": first[n] for n in few} | {f"full.final.{n}": params[n].detach() for n in few}
    write_tensors(folder / "expected.safetensors", out)

    line = f"{name}: std {logits.std():.2f}, |f32 - f64| {(logits - exact).abs().max():.1e}"
    if arch:
        write_gguf(folder / "model.gguf", config, tensors, arch, permute)
        try:
            read = AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=torch.float32,
                                                        attn_implementation="eager").eval()
            with torch.no_grad():
                theirs = read(input_ids=ids, attention_mask=mask).logits
            line += f", transformers from GGUF off by {((theirs - logits) * real).abs().max():.1e}"
        except Exception as error:
            line += f", transformers' GGUF reader: {type(error).__name__}: {str(error)[:90]}"
    print(line)


def check(folder):
    """The logits of an exported directory, and what else transformers says of it."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                       output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    expected = load_file(sys.argv[3])
    with torch.no_grad():
        logits = model.eval()(input_ids=expected["input_ids"], attention_mask=expected["attention_mask"]).logits
    real = expected["attention_mask"][..., None].float()
    wanted = expected["first_blocks.logits" if len(model.model.layers) == KEPT else "lora.logits"]
    off = (logits * real - wanted).abs().max() / wanted.abs().max()
    print(f"{folder}: off by {off:.1e} of the largest logit")
    assert off < 1e-4


if __name__ == "__main__":
    if len(sys.argv) > 1:
        check(sys.argv[2])
    else:
        for seed, name in enumerate(FAMILIES):
            reference(name, 900 + seed)
