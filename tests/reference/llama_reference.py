"""Tiny random Llama models in Hugging Face layout, and what transformers computes with them -> llama-{tied,untied,scaled}/."""
import json

import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from tiny import EOS, FIXTURES, generator, load, write_json, write_tensors

VOCAB, HIDDEN, INTER, HEADS, KV_HEADS = 96, 32, 48, 4, 2
ROWS, LENGTH, SHORT, MORE = 2, 12, 9, 3  # row 1 has SHORT real tokens, the rest is padding

CLASSIC = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "mlp_bias": False,
    "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": EOS, "hidden_act": "silu",
    "hidden_size": HIDDEN, "intermediate_size": INTER, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "initializer_range": 0.02, "max_position_embeddings": 64, "torch_dtype": "float32", "use_cache": True,
    "vocab_size": VOCAB, "pretraining_tp": 1,
}
# With so short an original context the first frequency is interpolated and the others are divided by the factor: none stays
# as it is, which rope-llama32.json covers.
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 16}
LLAMA32 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 8192}


def configs():
    """tied: as transformers 5 writes it (rope_parameters); the others: as the files on the Hub have it (rope_theta, rope_scaling)."""
    tied = LlamaConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=INTER, num_hidden_layers=2, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=EOS, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        architectures=["LlamaForCausalLM"], dtype="float32",
    )
    untied = CLASSIC | {"num_hidden_layers": 3, "rms_norm_eps": 1e-6, "rope_theta": 100.0, "rope_scaling": None,
                        "tie_word_embeddings": False}
    scaled = CLASSIC | {"num_hidden_layers": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": LLAMA3,
                        "head_dim": 16, "tie_word_embeddings": True, "eos_token_id": [EOS, 3]}
    return {"tied": json.loads(tied.to_json_string(use_diff=False)), "untied": untied, "scaled": scaled}


def weights(c, g):
    head_dim = c.get("head_dim") or HIDDEN // HEADS
    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=g) * 0.3
    def norm():
        return 1 + 0.3 * torch.randn(HIDDEN, generator=g)
    w = {"model.embed_tokens.weight": matrix(VOCAB, HIDDEN), "model.norm.weight": norm()}
    for i in range(c["num_hidden_layers"]):
        p = f"model.layers.{i}."
        w[p + "input_layernorm.weight"] = norm()
        w[p + "post_attention_layernorm.weight"] = norm()
        w[p + "self_attn.q_proj.weight"] = matrix(HEADS * head_dim, HIDDEN)
        w[p + "self_attn.k_proj.weight"] = matrix(KV_HEADS * head_dim, HIDDEN)
        w[p + "self_attn.v_proj.weight"] = matrix(KV_HEADS * head_dim, HIDDEN)
        w[p + "self_attn.o_proj.weight"] = matrix(HIDDEN, HEADS * head_dim)
        w[p + "mlp.gate_proj.weight"] = matrix(INTER, HIDDEN)
        w[p + "mlp.up_proj.weight"] = matrix(INTER, HIDDEN)
        w[p + "mlp.down_proj.weight"] = matrix(HIDDEN, INTER)
    if not c["tie_word_embeddings"]:
        w["lm_head.weight"] = matrix(VOCAB, HIDDEN)
    return w


@torch.no_grad()
def expected(name, ids, mask, more, dtype):
    model = load(name, dtype)
    out = model(input_ids=ids, attention_mask=mask, use_cache=True, output_hidden_states=True)
    lengths = mask.sum(1)
    positions = lengths[:, None] + torch.arange(MORE)
    step = model(input_ids=more, past_key_values=out.past_key_values, position_ids=positions,
                 attention_mask=torch.cat([mask, torch.ones(ROWS, MORE, dtype=torch.int64)], 1))
    # The same continuation without padding and without a cache: the two must agree, else the reference is wrong.
    for r in range(ROWS):
        whole = model(input_ids=torch.cat([ids[r, :lengths[r]], more[r]])[None]).logits[0]
        torch.testing.assert_close(whole[:lengths[r]], out.logits[r, :lengths[r]], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(whole[lengths[r]:], step.logits[r], rtol=1e-4, atol=1e-4)
    real = mask[..., None].to(dtype)
    return {"logits": out.logits * real, "hidden": out.hidden_states[-1] * real, "continuation_logits": step.logits,
            "inv_freq": model.model.rotary_emb.inv_freq.to(dtype)}, positions


for seed, (name, c) in enumerate(configs().items()):
    folder = FIXTURES / f"llama-{name}"
    write_json(folder / "config.json", c)
    write_tensors(folder / "model.safetensors", weights(c, generator(seed)))
    g = generator(100 + seed)
    ids = torch.randint(4, VOCAB, (ROWS, LENGTH), generator=g)
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[1, SHORT:] = 0
    ids[1, SHORT:] = 0
    more = torch.randint(4, VOCAB, (ROWS, MORE), generator=g)
    f32, positions = expected(folder.name, ids, mask, more, torch.float32)
    f64, _ = expected(folder.name, ids, mask, more, torch.float64)
    write_tensors(folder / "expected.safetensors", f32 | {
        "input_ids": ids, "attention_mask": mask, "continuation_ids": more, "continuation_position_ids": positions})
    if name == "scaled":
        # The same model as transformers 5 would describe it.
        new = json.loads(load(folder.name).config.to_json_string(use_diff=False))
        write_json(folder / "config-transformers5.json", new | {"_name_or_path": ""})
        real = LlamaConfig(hidden_size=2048, num_attention_heads=32, head_dim=64, max_position_embeddings=131072,
                           rope_parameters=LLAMA32 | {"rope_theta": 500000.0})
        write_json(folder / "rope-llama32.json", {
            "head_dim": 64, "rope_theta": 500000.0, "rope_scaling": LLAMA32,
            "inv_freq": LlamaRotaryEmbedding(real).inv_freq.tolist()})
    for k in ("logits", "continuation_logits"):
        print(name, k, "std %.2f" % f32[k].std(), "max |f32 - f64| %.1e" % (f32[k] - f64[k]).abs().max())
