"""What `itemlm score` must print for the real Gemma 3 270M, by transformers on the GGUF file's weights dequantised, and by sentencepiece on its vocabulary:

  V/bin/python tests/reference/gemma_reference.py --gguf models/gemma3-270m.gguf --catalogue FILE --input FILE.jsonl > expected.jsonl

Catalogue and input are those of `make_score_input.py`. Nothing of transformers' GGUF reader is used: see gemma_gguf.py.
"""
import argparse
import json

import gguf
import torch

from gemma_gguf import model, spm_processor
from tiny import Trie

p = argparse.ArgumentParser()
p.add_argument("--gguf", required=True)
p.add_argument("--catalogue", required=True)
p.add_argument("--input", required=True)
p.add_argument("--threads", type=int, default=2)
a = p.parse_args()
torch.set_num_threads(a.threads)
reader = gguf.GGUFReader(a.gguf)
llm, spm = model(reader), spm_processor(reader)


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
