"""Writes tests/fixtures/gguf: a tiny Llama as GGUF with every supported tensor type, and what transformers and
the gguf package read from it. Needs torch, transformers and gguf: python tests/reference/gguf_reference.py"""
import json
import os

import numpy as np
import torch
from gguf import GGMLQuantizationType as T
from gguf import GGUFWriter, quants
from transformers import AutoModelForCausalLM, AutoTokenizer

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "gguf")
random = np.random.default_rng(0)
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, MIDDLE, VOCAB, LAYERS = 256, 2, 1, 4, 32, 32, 2


def header(writer, vocab=VOCAB):
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MIDDLE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(50000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocab)


def k_blocks(rows, width, kind):
    """Random K-quant blocks: the gguf package dequantises those types but cannot quantise to them."""
    blocks = rows * width // 256
    halves = lambda n, scale: (random.uniform(0.2, 1, (blocks, n)) * scale).astype(np.float16).view(np.uint8)
    noise = lambda n: random.integers(0, 256, (blocks, n), dtype=np.uint8)
    if kind == T.Q4_K:
        parts = [halves(2, 1e-3), noise(12), noise(128)]
    else:
        parts = [noise(128), noise(64), noise(16), halves(1, 1e-4)]
    return np.concatenate(parts, axis=1).reshape(rows, -1)


def add(writer, name, shape, kind):
    values = random.normal(0, 0.1, shape).astype(np.float32)
    if kind == T.F32:
        writer.add_tensor(name, values)
    elif kind == T.F16:
        writer.add_tensor(name, values.astype(np.float16))
    elif kind in (T.Q4_K, T.Q6_K):
        writer.add_tensor(name, k_blocks(*shape, kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, quants.quantize(values, kind), raw_dtype=kind)


def tokenizer_keys(writer, model, pre, tokens, types, scores=None, merges=None, eos=0, **ids):
    writer.add_tokenizer_model(model)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if scores is not None:
        writer.add_token_scores(scores)
    if merges is not None:
        writer.add_token_merges(merges)
    writer.add_eos_token_id(eos)
    writer.add_bos_token_id(ids.get("bos", eos))


def close(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def tiny(folder):
    path = os.path.join(folder, "tiny.gguf")
    writer = GGUFWriter(path, "llama")
    header(writer)
    letters = ["<|endoftext|>"] + [chr(ord("a") + i) for i in range(26)] + ["Ġ", "ab", "Ġa", "Ġab", "cd"]
    merges = ["a b", "Ġ a", "Ġ ab", "c d"]
    tokenizer_keys(writer, "gpt2", "smollm", letters, [3] + [1] * 31, merges=merges)
    add(writer, "token_embd.weight", (VOCAB, HIDDEN), T.Q8_0)
    add(writer, "output_norm.weight", (HIDDEN,), T.F32)
    add(writer, "output.weight", (VOCAB, HIDDEN), T.Q4_0)
    kinds = [
        dict(q=T.Q4_K, k=T.Q8_0, v=T.Q6_K, o=T.F16, gate=T.Q4_1, up=T.Q5_0, down=T.Q5_1),
        dict(q=T.Q5_0, k=T.Q6_K, v=T.Q4_K, o=T.BF16, gate=T.Q4_0, up=T.Q4_1, down=T.Q8_0),
    ]
    for layer, kind in enumerate(kinds):
        block = f"blk.{layer}."
        add(writer, block + "attn_norm.weight", (HIDDEN,), T.F32)
        add(writer, block + "ffn_norm.weight", (HIDDEN,), T.F32)
        add(writer, block + "attn_q.weight", (HEADS * HEAD_DIM, HIDDEN), kind["q"])
        add(writer, block + "attn_k.weight", (KV_HEADS * HEAD_DIM, HIDDEN), kind["k"])
        add(writer, block + "attn_v.weight", (KV_HEADS * HEAD_DIM, HIDDEN), kind["v"])
        add(writer, block + "attn_output.weight", (HIDDEN, HEADS * HEAD_DIM), kind["o"])
        add(writer, block + "ffn_gate.weight", (MIDDLE, HIDDEN), kind["gate"])
        add(writer, block + "ffn_up.weight", (MIDDLE, HIDDEN), kind["up"])
        add(writer, block + "ffn_down.weight", (HIDDEN, MIDDLE), kind["down"])
    close(writer)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file="tiny.gguf", dtype=torch.float32)
    tensors = {}
    for name, tensor in model.state_dict().items():
        values = tensor.double().flatten().numpy()
        weight = (np.arange(len(values)) * 7919 % 101) / 101
        samples = values[:: max(1, len(values) // 8)]
        tensors[name] = {
            "shape": list(tensor.shape),
            "absolute": float(np.abs(values).sum()),
            "weighted": float((values * weight).sum()),
            "samples": [float(x) for x in samples],
        }
    texts = ["ab abcd", "<|endoftext|>ab", "zzz  a"]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="tiny.gguf")
    ids = {text: tokenizer.encode(text, add_special_tokens=False) for text in texts}
    return {"tensors": tensors, "ids": ids, "eos": tokenizer.eos_token_id}


os.makedirs(OUT, exist_ok=True)
with open(os.path.join(OUT, "tiny.json"), "w") as file:
    json.dump(tiny(OUT), file, indent=0)
