"""Input for `itemlm score` from a released MSL data set: python make_score_input.py --data DIR --kind office --out DIR [--prompts 20] [--items 5]

Writes DIR/catalogue.txt (one distinct title a line) and DIR/input.jsonl: the prompts of the first test windows in the peer's
format (../shared/peer/common.py), each with its target, the last item of the history and other titles drawn by a fixed seed.
"""
import argparse
import json
import pathlib
import random
import sys

p = argparse.ArgumentParser()
p.add_argument("--data", required=True)
p.add_argument("--kind", required=True)
p.add_argument("--out", required=True, type=pathlib.Path)
p.add_argument("--peer", default="/work/shared/peer")
p.add_argument("--prompts", type=int, default=20)
p.add_argument("--items", type=int, default=5)
a = p.parse_args()
sys.path.insert(0, a.peer)
from common import names, prompt, windows

title = names(a.data)
distinct = list(dict.fromkeys(title[i] for i in sorted(title)))
# One item text a line: a title with a line break in it (office has one) cannot be written, so it is left out, aloud.
catalogue = [t for t in distinct if not {"\n", "\r"} & set(t)]
for t in distinct:
    if {"\n", "\r"} & set(t):
        print(f"left out of the catalogue (line break): {t!r}", file=sys.stderr)
known = set(catalogue)
draw = random.Random(42)
a.out.mkdir(parents=True, exist_ok=True)
with open(a.out / "catalogue.txt", "w", encoding="utf-8", newline="\n") as f:
    f.writelines(t + "\n" for t in catalogue)
with open(a.out / "input.jsonl", "w", encoding="utf-8", newline="\n") as f:
    for history, target in windows(f"{a.data}/test.csv", title, a.prompts):
        items = dict.fromkeys([title[target], title[history[-1]]] + draw.sample(catalogue, a.items))
        items = [t for t in items if t in known][:a.items]
        f.write(json.dumps({"prompt": prompt(a.kind, [title[i] for i in history]), "items": items}, ensure_ascii=False) + "\n")
