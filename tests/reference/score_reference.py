"""What `itemlm score` must print, by transformers: python score_reference.py --llm DIR --catalogue FILE --input FILE.jsonl > expected.jsonl

For every item one plain forward of prompt + target, without cache or padding; f32 model, log-softmax in f64.
The target is `"item"` + EOS; prompt and target are tokenised each alone, without special tokens.
"""
import argparse
import json
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import Trie

p = argparse.ArgumentParser()
p.add_argument("--llm", required=True)
p.add_argument("--catalogue", required=True)
p.add_argument("--input", required=True)
p.add_argument("--threads", type=int, default=2)
a = p.parse_args()
torch.set_num_threads(a.threads)
tok = AutoTokenizer.from_pretrained(a.llm)
model = AutoModelForCausalLM.from_pretrained(a.llm, dtype=torch.float32).eval()
EOS = tok.eos_token_id


def tokens(text):
    return tok(text, add_special_tokens=False).input_ids


def target(item):
    return tokens(f'"{item}"') + [EOS]


with open(a.catalogue, encoding="utf-8", newline="\n") as f:
    catalogue = [line.removesuffix("\n") for line in f]
trie = Trie(target(t) for t in catalogue)
known = set(catalogue)

with open(a.input, encoding="utf-8", newline="\n") as f:
    for number, line in enumerate(f, 1):
        row = json.loads(line)
        x = tokens(row["prompt"])
        full, masked = [], []
        for item in row["items"]:
            if item not in known:
                sys.exit(f"{a.input}, line {number}: {item!r} is not in {a.catalogue}")
            y = target(item)
            with torch.no_grad():
                # Only the logits that predict the target: the last len(y) positions of prompt + target without its last token.
                z = model(input_ids=torch.tensor([x + y[:-1]]), logits_to_keep=len(y)).logits[0].double()
            full.append(sum(torch.log_softmax(z[i], -1)[t].item() for i, t in enumerate(y)))
            masked.append(sum(torch.log_softmax(z[i][c], -1)[c.index(t)].item()
                              for i, (t, c) in enumerate(zip(y, trie.children_along(y)))))
        print(json.dumps({"full": full, "masked": masked}), flush=True)
