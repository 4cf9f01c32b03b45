"""Shared by the reference scripts: where fixtures lie, how they are written, the tiny models, a plain trie."""
import json
import os
import pathlib

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("PYTHONHASHSEED", "0")

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

logging.set_verbosity_error()
logging.disable_progress_bar()
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "reference"
EOS = 2


def generator(seed):
    return torch.Generator().manual_seed(seed)


def write_tensors(path, tensors):
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = {k: v.detach().contiguous().clone() for k, v in tensors.items()}
    for k, v in plain.items():
        assert v.dtype in (torch.float32, torch.int64), (k, v.dtype)
        assert not v.is_floating_point() or torch.isfinite(v).all(), k
    save_file(plain, path, metadata={"format": "pt"})
    path.chmod(0o644)


def write_json(path, value):
    """Indented, but with every list of numbers on one line."""
    def lay(v, pad):
        inner = pad + "  "
        if isinstance(v, dict) and v:
            return "{\n" + ",\n".join(f"{inner}{json.dumps(k)}: {lay(x, inner)}" for k, x in v.items()) + f"\n{pad}}}"
        if isinstance(v, list) and any(isinstance(x, (dict, list)) for x in v):
            return "[\n" + ",\n".join(inner + lay(x, inner) for x in v) + f"\n{pad}]"
        return json.dumps(v, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lay(value, "") + "\n")


def load(name, dtype=torch.float32):
    """The tiny model in fixtures/reference/NAME, read back from disk as any user of transformers would."""
    model = AutoModelForCausalLM.from_pretrained(FIXTURES / name, dtype=dtype, attn_implementation="eager")
    return model.eval()


class Trie:
    """Nested dicts, one level a token; the children of a node are sorted by token id."""

    def __init__(self, sequences):
        self.root = {}
        for s in sequences:
            node = self.root
            for t in s:
                node = node.setdefault(t, {})

    def node(self, prefix):
        n = self.root
        for t in prefix:
            n = n.get(t)
            if n is None:
                return None
        return n

    def children_along(self, sequence):
        """For each token of the sequence the sorted tokens that were allowed in its place."""
        return [sorted(self.node(sequence[:i])) for i in range(len(sequence))]
