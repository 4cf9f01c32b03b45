"""A tiny random GGUF file in blocks for every architecture, with what transformers and peft compute of the weights that
gguf-py unpacks from it: logits, and gradients and three optimiser steps of LoRA -> quantized/NAME/.
"""
import tempfile
from pathlib import Path

import gguf
import torch
from safetensors.torch import save_file

from family_reference import (COMMON, FAMILIES, VOCAB, adapter, load, loss_of, train, weights,
                              with_adapter, write_gguf)
from tiny import FIXTURES, generator, write_json, write_tensors

LENGTH = 12
# Blocks have 32 numbers of a row, so rows are longer than in the other twins.
SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
TYPES = gguf.GGMLQuantizationType
BY_MODULE = {"q": TYPES.Q8_0, "k": TYPES.Q5_1, "v": TYPES.Q4_0, "o": TYPES.Q4_1, "gate": TYPES.Q5_0, "up": TYPES.Q8_0,
             "down": TYPES.Q4_0, "qkv": TYPES.Q8_0, "gate_up": TYPES.Q4_1}


def block_type(name):
    module = name.split(".")[-2]
    return BY_MODULE[module.removesuffix("_proj")] if module.endswith("_proj") else None


def unpacked(name, tensor):
    """What a file keeps of a matrix: rows have blocks of their own, so the order of rows does not matter."""
    kind = block_type(name)
    if kind is None or tensor.ndim == 1:
        return tensor.float()
    return torch.from_numpy(gguf.quants.dequantize(gguf.quants.quantize(tensor.float().numpy(), kind), kind))


def reference(name, seed):
    changes, arch, permute = FAMILIES[name]
    config = {k: v for k, v in (COMMON | changes | SIZES).items() if k != "no_rope_layers"}
    g, folder = generator(seed), FIXTURES / "quantized" / name
    tensors = weights(config, g)
    folder.mkdir(parents=True, exist_ok=True)
    write_gguf(folder / "model.gguf", config, tensors, arch, permute, block_type)
    ids = torch.randint(4, VOCAB, (1, LENGTH), generator=g)
    mask = torch.ones_like(ids)
    positions = torch.tensor([[0, t] for t in range(6, 11)])
    labels = ids[0, 7:]
    out = {"input_ids": ids, "attention_mask": mask, "label_positions": positions, "label_tokens": labels}
    with tempfile.TemporaryDirectory() as plain:
        plain = Path(plain)
        save_file({n: unpacked(n, t) for n, t in tensors.items()}, plain / "model.safetensors", metadata={"format": "pt"})
        write_json(plain / "config.json", config)
        with torch.no_grad():
            out["logits"] = load(plain)(input_ids=ids).logits
            save_file(tensors, plain / "model.safetensors", metadata={"format": "pt"})
            rounding = (load(plain)(input_ids=ids).logits - out["logits"]).abs().max() / out["logits"].abs().max()
        save_file({n: unpacked(n, t) for n, t in tensors.items()}, plain / "model.safetensors", metadata={"format": "pt"})
        model = with_adapter(name, config, plain, g, 1)
        (folder / "adapter").mkdir(exist_ok=True)
        for file in (plain / "adapter").iterdir():
            (folder / "adapter" / file.name).write_bytes(file.read_bytes())
    params = adapter(model)
    out["lora.logits"] = loss_of(model, ids, mask, positions, labels)[0].detach()
    out["lora.losses"], first = train(params, lambda: loss_of(model, ids, mask, positions, labels)[1])
    assert all(v.abs().max() > 1e-6 for v in first.values()), name
    out |= {f"lora.grad.{n}": v for n, v in first.items()}
    out |= {f"lora.final.{n}": p.detach() for n, p in params.items()}
    write_tensors(folder / "expected.safetensors", out)
    print(f"{name}: the blocks' rounding moves logits by {rounding:.1e} of the largest")


for seed, name in enumerate(name for name, (_, arch, _) in FAMILIES.items() if arch):
    reference(name, 1000 + seed)
