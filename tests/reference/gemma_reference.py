"""What `itemlm score` must print for the real Gemma 3 270M, by transformers on the GGUF file's weights dequantised, and by sentencepiece on its vocabulary:

  V/bin/python tests/reference/gemma_reference.py --gguf models/gemma3-270m.gguf --catalogue FILE --input FILE.jsonl > expected.jsonl

Catalogue and input are those of `make_score_input.py`. Nothing of transformers' GGUF reader is used: the config is the publisher's (its numbers that the file
holds are checked against the file), and a norm's weight is the file's less 1, for llama.cpp stores 1 + w. Needs torch, transformers, gguf, sentencepiece, protobuf.
"""
import argparse
import json

import gguf
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2 as proto
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

from tiny import Trie

p = argparse.ArgumentParser()
p.add_argument("--gguf", required=True)
p.add_argument("--catalogue", required=True)
p.add_argument("--input", required=True)
p.add_argument("--threads", type=int, default=2)
a = p.parse_args()
torch.set_num_threads(a.threads)
reader = gguf.GGUFReader(a.gguf)


def key(name):
    return reader.fields[name].contents()


def model():
    layers = key("gemma3.block_count")
    config = Gemma3TextConfig(
        vocab_size=262144, hidden_size=640, intermediate_size=2048, num_hidden_layers=18, num_attention_heads=4, num_key_value_heads=1, head_dim=256,
        query_pre_attn_scalar=256, sliding_window=512, max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True,
        layer_types=["full_attention" if (i + 1) % 6 == 0 else "sliding_attention" for i in range(layers)],
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
        attn_implementation="eager",
    )
    for name, value in [("embedding_length", config.hidden_size), ("block_count", config.num_hidden_layers), ("feed_forward_length", config.intermediate_size),
                        ("attention.head_count", config.num_attention_heads), ("attention.key_length", config.head_dim),
                        ("attention.sliding_window", config.sliding_window), ("rope.freq_base", 1e6)]:
        assert key(f"gemma3.{name}") == value, name
    names = {
        "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
        "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm", "post_ffw_norm": "post_feedforward_layernorm",
    }
    state = {}
    for tensor in reader.tensors:
        values = torch.from_numpy(gguf.quants.dequantize(tensor.data, tensor.tensor_type).copy())
        parts = tensor.name.split(".")
        if parts[0] == "blk":
            name = f"model.layers.{parts[1]}.{names[parts[2]]}.weight"
        else:
            name = {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight"}[parts[0]]
        state[name] = values - 1 if "norm" in name else values
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    llm = Gemma3ForCausalLM(config)
    llm.load_state_dict(state, strict=True)
    return llm.float().eval()


def tokenizer():
    """A sentencepiece model of the file's tokens, scores and types, as the publisher's tokenizer.model is: BPE, no dummy prefix, no normalising."""
    spm = proto.ModelProto()
    for text, score, kind in zip(key("tokenizer.ggml.tokens"), key("tokenizer.ggml.scores"), key("tokenizer.ggml.token_type")):
        # llama.cpp's converter writes user-defined pieces with plain spaces.
        spm.pieces.add(piece=text.replace(" ", "\u2581") if kind == 4 else text, score=score, type=kind)
    spm.trainer_spec.model_type = proto.TrainerSpec.BPE
    spm.trainer_spec.byte_fallback = True
    spm.trainer_spec.pad_id, spm.trainer_spec.eos_id, spm.trainer_spec.bos_id, spm.trainer_spec.unk_id = 0, 1, 2, 3
    for piece, name in [("pad_piece", 0), ("eos_piece", 1), ("bos_piece", 2), ("unk_piece", 3)]:
        setattr(spm.trainer_spec, piece, spm.pieces[name].piece)
    spm.normalizer_spec.name = "identity"
    spm.normalizer_spec.add_dummy_prefix = False
    spm.normalizer_spec.remove_extra_whitespaces = False
    spm.normalizer_spec.escape_whitespaces = True
    return sentencepiece.SentencePieceProcessor(model_proto=spm.SerializeToString())


llm, spm = model(), tokenizer()


def target(item):
    return spm.encode(f'"{item}"') + [1]


with open(a.catalogue, encoding="utf-8", newline="\n") as f:
    catalogue = [line.removesuffix("\n") for line in f]
trie = Trie(target(t) for t in catalogue)

with open(a.input, encoding="utf-8", newline="\n") as f:
    for line in f:
        row = json.loads(line)
        x = [2] + spm.encode(row["prompt"])
        full, masked = [], []
        for item in row["items"]:
            y = target(item)
            with torch.no_grad():
                z = llm(input_ids=torch.tensor([x + y[:-1]]), logits_to_keep=len(y)).logits[0].double()
            full.append(sum(torch.log_softmax(z[i], -1)[t].item() for i, t in enumerate(y)))
            masked.append(sum(torch.log_softmax(z[i][c], -1)[c.index(t)].item()
                              for i, (t, c) in enumerate(zip(y, trie.children_along(y)))))
        print(json.dumps({"full": full, "masked": masked, "prompt_tokens": len(x)}), flush=True)
