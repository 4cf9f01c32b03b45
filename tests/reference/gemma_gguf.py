"""The real Gemma 3 270M of a GGUF file, read without transformers' GGUF reader: the gguf package unpacks the weights, sentencepiece has the file's vocabulary.

  V/bin/python tests/reference/gemma_gguf.py models/gemma3-270m.gguf DIR

writes a Hugging Face directory (config.json, model.safetensors in f32, tokenizer.json), for scripts that read nothing else. The config is the publisher's (its numbers
that the file holds are checked against the file), and a norm's weight is the file's less 1, for llama.cpp stores 1 + w. tokenizer.json is checked against sentencepiece.
Needs torch, transformers, gguf, sentencepiece, protobuf, tokenizers.
"""
import json
import os
import sys

import gguf
import sentencepiece
import torch
from sentencepiece import sentencepiece_model_pb2 as proto
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

TEXTS = ["Ball Pens,  8 Pack", " a leading space", "   three  spaces", "12345 items, ½ inch", "Café Noir", "書道 筆ペン 12本", "tabs\tand\n\nlines",
         "don't", "x<eos>y", "emoji 🖊️", "\"Red Pen\", \"Blue Pen\"", "### Input:\nThe user", "", "a\u200db"]


def key(reader, name):
    return reader.fields[name].contents()


def model(reader):
    layers = key(reader, "gemma3.block_count")
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
        assert key(reader, f"gemma3.{name}") == value, name
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


def sentencepiece_model(reader):
    """A sentencepiece model of the file's tokens, scores and types, as the publisher's tokenizer.model is: BPE, no dummy prefix, no normalising."""
    spm = proto.ModelProto()
    for text, score, kind in zip(key(reader, "tokenizer.ggml.tokens"), key(reader, "tokenizer.ggml.scores"), key(reader, "tokenizer.ggml.token_type")):
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
    return spm


def spm_processor(reader):
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model(reader).SerializeToString())


def tokenizer(reader):
    """The tokenizer.json that transformers' GemmaConverter makes: every pair of pieces that is a piece merges, in the vocabulary's order."""
    pieces = sentencepiece_model(reader).pieces
    vocab = {piece.piece: n for n, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        if piece.type in (1, 4):
            text = piece.piece
            pairs = [(text[:n], text[n:]) for n in range(1, len(text)) if text[:n] in vocab and text[n:] in vocab]
            merges += sorted(pairs, key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
    made = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens([AddedToken(piece.piece, normalized=False, special=True) for piece in pieces if piece.type in (2, 3)])
    # User-defined pieces are found in the text as it is; those of several spaces are reached by merges.
    made.add_tokens([AddedToken(piece.piece, normalized=False, special=False) for piece in pieces if piece.type == 4 and "▁" not in piece.piece])
    made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    return made


def write(path, out):
    reader = gguf.GGUFReader(path)
    made, spm = tokenizer(reader), spm_processor(reader)
    for text in TEXTS:
        # sentencepiece takes no text of a control token for the token.
        if "<eos>" not in text:
            found, expected = made.encode(text, add_special_tokens=False).ids, spm.encode(text)
            assert found == expected, (text, found, expected)
    os.makedirs(out, exist_ok=True)
    model(reader).save_pretrained(out)
    made.save(os.path.join(out, "tokenizer.json"))
    with open(os.path.join(out, "tokenizer_config.json"), "w") as f:
        json.dump({"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}, f)


if __name__ == "__main__":
    write(*sys.argv[1:])
