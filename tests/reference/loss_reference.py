"""The losses of loss_functions.py on random logits over small catalogues -> loss.safetensors, loss.json."""
import torch

from loss_functions import ALPHA, ETA, HIGH, LOW, START, ats, bear, lml, msl
from tiny import FIXTURES, Trie, generator, write_json, write_tensors


def main_catalogue():
    """Vocabulary 50, EOS 49, 6 root children; token sequences without their EOS, all distinct but the last."""
    wide = [[5, t] for t in (7, 8, 9, 10, 11, 12)]                     # node [5]: as many children as the root
    return [
        *wide[:4], wide[4] + [13], wide[4] + [14], wide[5] + [15, 16, 17],
        [6, 20], [6, 20, 21], [6, 20, 21, 22], [6, 23],                # prefixes of one another: EOS competes with a token
        [18], [18, 19], [18, 19, 24, 25, 26, 27, 28],                  # a title of one token, a long tail
        [30, 31, 32, 33, 34],                                          # a chain from the root on
        [40, 1], [40, 2], [40, 2, 3], [40, 2, 4, 0], [40, 41, 42], [40, 41, 43], [40, 41, 44, 45], [40, 46, 47, 48],
        [35, 36, 1], [35, 36, 2], [35, 36, 37, 38], [35, 39, 1], [35, 39, 2, 3], [35, 39, 2, 4], [35, 39, 2, 4, 29],
        [40, 41, 42],                                                  # an equal title: same leaf
    ]


def narrow_catalogue(m):
    return [s for r in range(m) for s in ([r, 10], [r, 11, 12], [r, 11, 13 + r])]


VOCAB, END = 50, 49
# name, catalogue, steps of (samples, spread of the logits, what is added to the label's logit)
main = main_catalogue()
CASES = [
    ("main", main, [([0, 7, 14, 24, 18, 11], 3.0, 0.0), ([4, 9, 13, 28, 22, 30], 3.0, 8.0),
                    ([6, 8, 29, 15, 19, 2], 3.0, 3.0), ([12, 10, 23, 5, 26, 14], 1.5, 2.2)]),
    ("three-roots", narrow_catalogue(3), [([0, 4, 8, 5], 3.0, 3.0), ([1, 3, 7, 2], 3.0, 0.0)]),
    ("four-roots", narrow_catalogue(4), [([0, 4, 8, 11], 3.0, 3.0)]),
    ("one-root", [[7] + s for s in narrow_catalogue(3)], [([0, 4, 8], 3.0, 3.0)]),  # no ATS row at all
]

tensors, described = {}, {}
for seed, (name, titles, steps) in enumerate(CASES):
    catalogue = [t + [END] for t in titles]
    trie = Trie(catalogue)
    m = len(trie.root)
    g = generator(300 + seed)
    tau, record = START, []
    for s, (samples, spread, lift) in enumerate(steps):
        labels = torch.tensor([t for i in samples for t in catalogue[i]])
        children = [c for i in samples for c in trie.children_along(catalogue[i])]
        masks = torch.zeros(len(labels), VOCAB, dtype=torch.bool)
        for r, c in enumerate(children):
            masks[r, c] = True
        logits = torch.randn(len(labels), VOCAB, generator=g) * spread
        logits[torch.arange(len(labels)), labels] += lift
        tensors[f"{name}.{s}.logits"] = logits
        row = {"samples": samples, "positions": len(labels), "children": [len(c) for c in children]}

        def run(kind, f):
            z = logits.clone().requires_grad_()
            out = f(z)
            loss = out[0] if isinstance(out, tuple) else out
            loss.backward()
            if not kind.startswith("lml"):
                # Zero outside the children, so only theirs are kept: row after row, in ascending token id.
                assert not z.grad[~masks].any()
                tensors[f"{name}.{s}.grad.{kind}"] = z.grad[masks]
            elif s == 0:
                tensors[f"{name}.{s}.grad.{kind}"] = z.grad
            row[kind] = {"loss": loss.item()}
            return out

        run("lml", lambda z: lml(z, labels, masks))
        run("msl-1", lambda z: msl(z, labels, masks, 1.0))
        run("msl-4.5", lambda z: msl(z, labels, masks, 4.5))
        run("lml-2", lambda z: lml(z / 2.0, labels, masks))
        run("bear-3", lambda z: bear(z, labels, masks, 3))
        run("bear-10", lambda z: bear(z, labels, masks, 10, tau=2.0, lam=1.0, xi=0.5))
        previous = tau
        _, tau, stats = run("ats", lambda z: ats(z, labels, masks, m, previous))
        row["ats"] |= stats | {"previous_temperature": previous, "temperature": tau}
        record.append(row)
        print(name, s, row["lml"]["loss"], row["msl-1"]["loss"], row["msl-4.5"]["loss"], row["ats"])
    described[name] = {"root_children": m, "catalogue": catalogue, "steps": record}

# Each branch of the temperature is taken once: below the clamp, above it, between with disc < 0 and with disc > 0.
seen = [(r["ats"]["discriminant"] > 0, r["ats"]["raw_temperature"] < LOW, r["ats"]["raw_temperature"] > HIGH) for r in described["main"]["steps"]]
assert seen[0][1:] == (True, False) and seen[1] == (True, False, True), seen
assert seen[2] == (False, False, False) and seen[3] == (True, False, False), seen
assert all(r["ats"]["temperature"] == START for n in ("three-roots", "four-roots", "one-root") for r in described[n]["steps"])
# In some step a node below the root has as many children as the root and is counted.
assert any(r["ats"]["ats_rows"] > len(r["samples"]) for r in described["main"]["steps"])
write_tensors(FIXTURES / "loss.safetensors", tensors)
write_json(FIXTURES / "loss.json", {
    "vocabulary": VOCAB, "eos": END, "eta": ETA, "alpha": ALPHA, "clamp": [LOW, HIGH], "start": START, "cases": described})
