"""Collaborative filtering: an ALS sweep in numpy's closed form; first steps of BPR and SASRec in plain torch -> cf/."""
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tiny import FIXTURES, generator, write_json, write_tensors

OUT = FIXTURES / "cf"
STEPS, LR = 3, 1e-2


def als(g):
    """One sweep of Hu, Koren, Volinsky (ICDM 2008, Eq. 4 and 5), every row by a dense solve in f64."""
    users, items, dim, alpha, reg = 6, 7, 3, 2.0, 0.5
    counts = torch.poisson(torch.full((users, items), 0.6), generator=g)
    counts[4] = 0  # a user without interactions
    start = torch.randn(items, dim, generator=g)
    r, y = counts.double().numpy(), start.double().numpy()
    c, p = 1 + alpha * r, (r > 0).astype(float)

    def solve(fixed, c, p):
        return np.stack([
            np.linalg.solve(fixed.T @ np.diag(cu) @ fixed + reg * np.eye(dim), fixed.T @ np.diag(cu) @ pu) for cu, pu in zip(c, p)])

    x = solve(y, c, p)
    y = solve(x, c.T, p.T)
    objective = (c * (p - x @ y.T) ** 2).sum() + reg * ((x ** 2).sum() + (y ** 2).sum())
    write_tensors(OUT / "als.safetensors", {
        "counts": counts, "items.0": start, "users.1": torch.tensor(x).float(), "items.1": torch.tensor(y).float()})
    return {"dim": dim, "alpha": alpha, "regularization": reg, "objective": objective}


def steps(params, loss_of, batches):
    """Losses, gradients of the first step, and weights after all of them, with torch's AdamW."""
    params = {n: p.detach().clone().requires_grad_() for n, p in params.items()}
    optimiser = torch.optim.AdamW(params.values(), lr=LR, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    losses, tensors = [], {}
    for s, batch in enumerate(batches):
        loss = loss_of(params, batch)
        optimiser.zero_grad()
        loss.backward()
        losses.append(loss.item())
        if s == 0:
            tensors |= {f"grad.{n}": p.grad.clone() for n, p in params.items()}
        optimiser.step()
    return losses, tensors | {f"final.{n}": p for n, p in params.items()}


def bpr(g):
    users, items, dim, reg, batch = 5, 8, 4, 0.02, 9
    start = {"users": torch.randn(users, dim, generator=g), "items": torch.randn(items, dim, generator=g)}
    draw = lambda high: torch.randint(0, high, (batch,), generator=g)
    batches = [(draw(users), draw(items), draw(items)) for _ in range(STEPS)]

    def loss_of(params, batch):
        u, i, j = params["users"][batch[0]], params["items"][batch[1]], params["items"][batch[2]]
        ranking = -F.logsigmoid((u * i).sum(1) - (u * j).sum(1)).mean()
        return ranking + reg * ((u ** 2).sum(1) + (i ** 2).sum(1) + (j ** 2).sum(1)).mean()

    losses, tensors = steps(start, loss_of, batches)
    write_tensors(OUT / "bpr.safetensors", {f"start.{n}": t for n, t in start.items()} | tensors)
    return {"dim": dim, "regularization": reg, "learning_rate": LR, "losses": losses,
            "batches": [[column.tolist() for column in b] for b in batches]}


ITEMS, DIM, HEADS, BLOCKS, MAX_LEN = 11, 8, 2, 2, 6
LINEARS = ["query", "key", "value", "output", "inner", "outer"]
NORMS = ["attention_norm", "forward_norm"]


def states(params, rows):
    """SASRec's states after each item of left-padded rows (pmixer's `log2feats`, with its padding masked out of attention)."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(r)) + r for r in rows])
    padding = torch.tensor([[True] * (width - len(r)) + [False] * len(r) for r in rows])
    x = params["items"][ids] * math.sqrt(DIM) + params["positions"][MAX_LEN - width:]
    blocked = ~torch.tril(torch.ones(width, width, dtype=torch.bool))[None] | padding[:, None, :]
    blocked &= ~torch.eye(width, dtype=torch.bool)
    norm = lambda x, name: F.layer_norm(x, (DIM,), params[f"{name}.weight"], params[f"{name}.bias"], eps=1e-8)
    for b in range(BLOCKS):
        linear = lambda x, name: F.linear(x, params[f"blocks.{b}.{name}.weight"], params[f"blocks.{b}.{name}.bias"])
        q = norm(x, f"blocks.{b}.attention_norm")
        attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        joint = {kind: torch.cat([params[f"blocks.{b}.{n}.{kind}"] for n in ("query", "key", "value")]) for kind in ("weight", "bias")}
        attended, _ = torch.func.functional_call(attention, {
            "in_proj_weight": joint["weight"], "in_proj_bias": joint["bias"],
            "out_proj.weight": params[f"blocks.{b}.output.weight"], "out_proj.bias": params[f"blocks.{b}.output.bias"],
        }, (q, x, x), {"attn_mask": blocked.repeat_interleave(HEADS, 0)})
        x = norm(q + attended, f"blocks.{b}.forward_norm")
        x = x + linear(F.relu(linear(x, "inner")), "outer")
    return norm(x, "norm")[~padding]  # row after row, oldest first


def sasrec(g):
    start = {"items": torch.randn(ITEMS, DIM, generator=g) * 0.3, "positions": torch.randn(MAX_LEN, DIM, generator=g) * 0.3}
    norm = lambda: {"weight": 1 + torch.randn(DIM, generator=g) * 0.1, "bias": torch.randn(DIM, generator=g) * 0.1}
    linear = lambda: {"weight": torch.randn(DIM, DIM, generator=g) * 0.4, "bias": torch.randn(DIM, generator=g) * 0.1}
    for b in range(BLOCKS):
        for n in LINEARS + NORMS:
            start |= {f"blocks.{b}.{n}.{k}": t for k, t in (linear() if n in LINEARS else norm()).items()}
    start |= {f"norm.{k}": t for k, t in norm().items()}

    draw = lambda length: torch.randint(0, ITEMS, (length,), generator=g).tolist()
    lengths = [[6, 1, 3, 4], [2, 5, 5], [4, 1, 2, 6, 3]]  # the second batch is narrower than max_len
    batches = [{k: [draw(n) for n in ns] for k in ("inputs", "targets", "negatives")} for ns in lengths]
    flat = lambda rows: torch.tensor([i for row in rows for i in row])

    def softmax(params, batch):
        return F.cross_entropy(states(params, batch["inputs"]) @ params["items"].T, flat(batch["targets"]))

    def bce(params, batch):
        h = states(params, batch["inputs"])
        positive, negative = ((h * params["items"][flat(batch[k])]).sum(1) for k in ("targets", "negatives"))
        return (F.binary_cross_entropy_with_logits(positive, torch.ones_like(positive))
                + F.binary_cross_entropy_with_logits(negative, torch.zeros_like(negative)))

    with torch.no_grad():
        tensors = {f"start.{n}": t for n, t in start.items()}
        tensors |= {f"states.{s}": states(start, b["inputs"]) for s, b in enumerate(batches)}
        # Without positions, which count from the end, an item's state is that of a row that ends there: it sees neither what comes
        # later nor padding nor other rows.
        shifted = start | {"positions": torch.zeros(MAX_LEN, DIM)}
        whole = states(shifted, batches[1]["inputs"])
        alone = torch.cat([states(shifted, [row[:k + 1]])[-1:] for row in batches[1]["inputs"] for k in range(len(row))])
    torch.testing.assert_close(whole, alone)
    losses = {}
    for kind, loss_of in (("softmax", softmax), ("bce", bce)):
        losses[kind], found = steps(start, loss_of, batches)
        exact, check = steps({n: t.double() for n, t in start.items()}, loss_of, batches)
        for n, t in found.items():
            # A key's bias shifts all scores of a query alike: its gradient is 0, and Adam makes steps of the rounding error.
            if ".key.bias" not in n:
                torch.testing.assert_close(t.double(), check[n], rtol=1e-3, atol=2e-5)
        print("sasrec", kind, losses[kind], "f32 - f64: %.1e" % max(abs(a - b) for a, b in zip(losses[kind], exact)))
        tensors |= {f"{kind}.{n}": t for n, t in found.items()}
    write_tensors(OUT / "sasrec.safetensors", tensors)
    return {"dim": DIM, "heads": HEADS, "blocks": BLOCKS, "max_len": MAX_LEN, "items": ITEMS, "learning_rate": LR,
            "batches": batches, "losses": losses}


TEXT_DIM = 5


def sasrec_text(g):
    """SASRec whose items' vectors are a projection of fixed text vectors plus vectors of their own; the softmax loss."""
    start = {"items": torch.randn(ITEMS, DIM, generator=g) * 0.2, "text.weight": torch.randn(TEXT_DIM, DIM, generator=g) * 0.3}
    start["positions"] = torch.randn(MAX_LEN, DIM, generator=g) * 0.3
    norm = lambda: {"weight": 1 + torch.randn(DIM, generator=g) * 0.1, "bias": torch.randn(DIM, generator=g) * 0.1}
    linear = lambda: {"weight": torch.randn(DIM, DIM, generator=g) * 0.4, "bias": torch.randn(DIM, generator=g) * 0.1}
    for b in range(BLOCKS):
        for n in LINEARS + NORMS:
            start |= {f"blocks.{b}.{n}.{k}": t for k, t in (linear() if n in LINEARS else norm()).items()}
    start |= {f"norm.{k}": t for k, t in norm().items()}
    text = F.normalize(torch.randn(ITEMS, TEXT_DIM, generator=g), dim=1)

    draw = lambda length: torch.randint(0, ITEMS, (length,), generator=g).tolist()
    batches = [{k: [draw(n) for n in ns] for k in ("inputs", "targets")} for ns in ([6, 1, 3], [2, 5, 5], [4, 6, 3])]
    flat = lambda rows: torch.tensor([i for row in rows for i in row])
    table = lambda params: params["items"] + text.to(params["items"].dtype) @ params["text.weight"]

    def softmax(params, batch):
        joined = params | {"items": table(params)}
        return F.cross_entropy(states(joined, batch["inputs"]) @ joined["items"].T, flat(batch["targets"]))

    tensors = {f"start.{n}": t for n, t in start.items()} | {"text": text, "table": table(start)}
    losses, found = steps(start, softmax, batches)
    _, check = steps({n: t.double() for n, t in start.items()}, softmax, batches)
    for n, t in found.items():
        if ".key.bias" not in n:
            torch.testing.assert_close(t.double(), check[n], rtol=1e-3, atol=2e-5)
    write_tensors(OUT / "sasrec_text.safetensors", tensors | found)
    return {"text_dim": TEXT_DIM, "batches": batches, "losses": losses}


g = generator(407)
report = {"als": als(g), "bpr": bpr(g), "sasrec": sasrec(g)}
write_json(OUT / "cf.json", report | {"sasrec_text": sasrec_text(generator(11))})
