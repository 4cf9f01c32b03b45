"""A plain torch Q-Former with phase 1's losses -> qformer/. Written from BLIP-2's paper and LAVIS's blip2_qformer.py; the parameters have
the names that itemlm gives them."""
import torch
from torch.nn import functional as F

from tiny import FIXTURES, generator, write_json, write_tensors

H, HEADS, LAYERS, INNER, VOCAB, POSITIONS, EPS = 32, 4, 3, 48, 26, 24, 1e-12
K, WIDTH, EVERY, PROJECTION, SMOOTHING = 3, 10, 2, 8, 0.1
DEC, CLS, SEP = VOCAB, 2, 3
NEGATIVES = {"items": [2, 0, 3, 1], "texts": [1, 3, 0, 2]}
WEIGHTS = {"itc": 1.0, "itg": 0.5, "itm": 2.0}
g = generator(800)
P = {}


def parameter(name, *shape, mean=0.0, deviation=0.2):
    P[name] = (mean + deviation * torch.randn(*shape, generator=g)).requires_grad_()


def dense(name, out, width):
    parameter(f"{name}.weight", out, width)
    parameter(f"{name}.bias", out, deviation=0.1)


def norm(name, width):
    parameter(f"{name}.gamma", width, mean=1.0, deviation=0.1)
    parameter(f"{name}.beta", width, deviation=0.1)


def attention(name, width):
    for part, size in (("query", H), ("key", width), ("value", width), ("output", H)):
        dense(f"{name}.{part}", H, size)
    norm(f"{name}.norm", H)


parameter("qformer.query_tokens", 1, K, H)
norm("qformer.vector_norm", WIDTH)
parameter("qformer.embeddings.words", VOCAB + 1, H)
parameter("qformer.embeddings.positions", POSITIONS, H)
norm("qformer.embeddings.norm", H)
for layer in range(LAYERS):
    name = f"qformer.layers.{layer}"
    attention(f"{name}.attention", H)
    if layer % EVERY == 0:
        attention(f"{name}.cross_attention", WIDTH)
    for branch in ("query_feed_forward", "text_feed_forward"):
        dense(f"{name}.{branch}.intermediate", INNER, H)
        dense(f"{name}.{branch}.output", H, INNER)
        norm(f"{name}.{branch}.norm", H)
dense("qformer.head.transform", H, H)
norm("qformer.head.norm", H)
parameter("qformer.head.bias", VOCAB + 1, deviation=0.1)
dense("query_projection", PROJECTION, H)
dense("text_projection", PROJECTION, H)
dense("matching", 2, H)
P["temperature"] = torch.tensor([0.07], requires_grad=True)
P["pair_temperature"] = torch.tensor([0.05], requires_grad=True)


def linear(name, x):
    return F.linear(x, P[f"{name}.weight"], P[f"{name}.bias"])


def layer_norm(name, x, eps=EPS):
    return F.layer_norm(x, x.shape[-1:], P[f"{name}.gamma"], P[f"{name}.beta"], eps)


def attend(name, x, context, mask=None, past=None):
    """mask: [batch, 1, queries, keys], 1 where seen; past: keys and values before those of the context."""
    heads = lambda t: t.view(t.shape[0], t.shape[1], HEADS, H // HEADS).transpose(1, 2)
    q, k, v = heads(linear(f"{name}.query", x)), heads(linear(f"{name}.key", context)), heads(linear(f"{name}.value", context))
    if past is not None:
        k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
    scores = q @ k.transpose(-1, -2) / (H // HEADS) ** 0.5
    if mask is not None:
        scores = scores + (1.0 - mask) * -10000.0
    out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    return layer_norm(f"{name}.norm", x + linear(f"{name}.output", out)), (k, v)


def feed_forward(name, x):
    return layer_norm(f"{name}.norm", x + linear(f"{name}.output", F.gelu(linear(f"{name}.intermediate", x))))


def run(vectors=None, ids=None, mask=None, past=None):
    """Hidden states of [queries; text] (queries only with vectors) and each layer's keys and values."""
    parts = []
    if vectors is not None:
        vectors = layer_norm("qformer.vector_norm", vectors, 1e-5)
        parts.append(P["qformer.query_tokens"].expand(vectors.shape[0], -1, -1))
    if ids is not None:
        parts.append(P["qformer.embeddings.words"][ids] + P["qformer.embeddings.positions"][: ids.shape[1]])
    x = layer_norm("qformer.embeddings.norm", torch.cat(parts, 1))
    k, caches = (K if vectors is not None else 0), []
    for layer in range(LAYERS):
        name = f"qformer.layers.{layer}"
        x, cache = attend(f"{name}.attention", x, x, mask, None if past is None else past[layer])
        caches.append(cache)
        queries, text = x[:, :k], x[:, k:]
        if k and layer % EVERY == 0:
            queries, _ = attend(f"{name}.cross_attention", queries, vectors)
        if k:
            queries = feed_forward(f"{name}.query_feed_forward", queries)
        if ids is not None:
            text = feed_forward(f"{name}.text_feed_forward", text)
        x = torch.cat([queries, text], 1)
    return x, caches


def joint_mask(kind, attention):
    """[batch, 1, K + seq, K + seq]"""
    batch, seq = attention.shape
    block = torch.zeros(K + seq, K + seq)
    if kind == "unimodal":
        block[:K, :K], block[K:, K:] = 1, 1
    elif kind == "bidirectional":
        block[:] = 1
    else:
        block[:, :K] = 1
        block[K:, K:] = torch.tril(torch.ones(seq, seq))
    real = torch.cat([torch.ones(batch, K), attention.float()], 1)
    return (block[None] * real[:, None])[:, None]


def query_features(hidden):
    return F.normalize(linear("query_projection", hidden), dim=-1)


def itc_and_similarity(vectors, ids, mask):
    queries = query_features(run(vectors)[0])
    text = F.normalize(linear("text_projection", run(ids=ids, mask=mask[:, None, None].float())[0][:, 0]), dim=-1)
    similarity = torch.einsum("bkp,tp->bkt", queries, text).max(1)[0] / P["temperature"]
    targets = torch.arange(len(ids))
    loss = (F.cross_entropy(similarity, targets, label_smoothing=SMOOTHING) + F.cross_entropy(similarity.T, targets, label_smoothing=SMOOTHING)) / 2
    return loss, similarity


def itm(vectors, ids, mask):
    n = len(ids)
    all_vectors = torch.cat([vectors, vectors[NEGATIVES["items"]], vectors])
    all_ids, all_mask = torch.cat([ids, ids, ids[NEGATIVES["texts"]]]), torch.cat([mask, mask, mask[NEGATIVES["texts"]]])
    hidden = run(all_vectors, all_ids, joint_mask("bidirectional", all_mask))[0][:, :K]
    logits = linear("matching", hidden).mean(1)
    return F.cross_entropy(logits, torch.cat([torch.ones(n), torch.zeros(2 * n)]).long()), logits


def itg(vectors, ids, mask):
    ids = ids.clone()
    ids[:, 0] = DEC
    hidden = run(vectors, ids, joint_mask("causal", mask))[0][:, K:]
    # As LAVIS does it: the queries alone first, their keys and values kept.
    _, past = run(vectors)
    seq = ids.shape[1]
    causal = torch.cat([torch.ones(len(ids), seq, K), torch.tril(torch.ones(seq, seq)) * mask[:, None].float()], 2)
    cached = run(ids=ids, mask=causal[:, None], past=past)[0]
    assert torch.allclose(hidden[mask.bool()], cached[mask.bool()], atol=1e-5)
    x = layer_norm("qformer.head.norm", F.gelu(linear("qformer.head.transform", hidden)))
    logits = x @ P["qformer.embeddings.words"].T + P["qformer.head.bias"]
    labels = ids.masked_fill(mask == 0, -100)
    return F.cross_entropy(logits[:, :-1].reshape(-1, VOCAB + 1), labels[:, 1:].reshape(-1), label_smoothing=SMOOTHING)


def pairs(left, right):
    a, b = query_features(run(left)[0]), query_features(run(right)[0])
    similarity = torch.einsum("bkp,clp->bckl", a, b).flatten(2).max(-1)[0] / P["pair_temperature"]
    targets = torch.arange(len(left))
    return (F.cross_entropy(similarity, targets, label_smoothing=SMOOTHING) + F.cross_entropy(similarity.T, targets, label_smoothing=SMOOTHING)) / 2


lengths = [7, 5, 2, 6]
ids = torch.randint(5, VOCAB, (4, 7), generator=g)
mask = torch.zeros(4, 7, dtype=torch.long)
for row, length in enumerate(lengths):
    ids[row, 0], ids[row, length - 1], ids[row, length:] = CLS, SEP, 0
    mask[row, :length] = 1
vectors, right = torch.randn(4, 1, WIDTH, generator=g), torch.randn(4, 1, WIDTH, generator=g)
several = torch.randn(4, 3, WIDTH, generator=g)
out = {"input_ids": ids, "attention_mask": mask, "vectors": vectors, "right": right, "several": several}
with torch.no_grad():
    out["encoded"], out["encoded_several"] = run(vectors)[0], run(several)[0]
    out["text"] = run(ids=ids, mask=mask[:, None, None].float())[0] * mask[..., None]
    for kind in ("unimodal", "bidirectional", "causal"):
        hidden, _ = run(vectors, ids, joint_mask(kind, mask))
        out[f"{kind}.queries"], out[f"{kind}.text"] = hidden[:, :K], hidden[:, K:] * mask[..., None]
    # The unimodal mask is each alone.
    assert torch.allclose(out["unimodal.queries"], out["encoded"], atol=1e-5) and torch.allclose(out["unimodal.text"], out["text"], atol=1e-5)
    out["similarity"], out["match_logits"] = itc_and_similarity(vectors, ids, mask)[1], itm(vectors, ids, mask)[1]
write_tensors(FIXTURES / "qformer" / "model.safetensors", P)

GRADIENTS = [
    "qformer.query_tokens", "qformer.vector_norm.gamma", "qformer.embeddings.words", "qformer.embeddings.positions", "qformer.embeddings.norm.beta",
    "qformer.layers.0.attention.query.weight", "qformer.layers.1.attention.value.bias", "qformer.layers.0.cross_attention.value.weight",
    "qformer.layers.2.cross_attention.norm.gamma", "qformer.layers.1.query_feed_forward.output.weight",
    "qformer.layers.2.query_feed_forward.norm.beta", "qformer.layers.0.text_feed_forward.intermediate.bias",
    "qformer.head.transform.weight", "qformer.head.bias", "query_projection.weight", "text_projection.weight", "matching.weight", "matching.bias",
    "temperature", "pair_temperature"]
LOSSES = {
    "itc": lambda: itc_and_similarity(vectors, ids, mask)[0], "itg": lambda: itg(vectors, ids, mask),
    "itm": lambda: itm(vectors, ids, mask)[0], "pair": lambda: pairs(vectors, right)}
described = {"negatives": NEGATIVES, "weights": WEIGHTS, "losses": {}, "steps": []}
for name, loss in LOSSES.items():
    for p in P.values():
        p.grad = None
    value = loss()
    value.backward()
    described["losses"][name] = value.item()
    out |= {f"grad.{name}.{n}": P[n].grad.clone() for n in GRADIENTS if P[n].grad is not None}
# With three vectors to read, the cross-attention's queries and keys matter.
for p in P.values():
    p.grad = None
run(several)[0].square().sum().backward()
out |= {f"grad.several.{n}": P[n].grad.clone() for n in ("qformer.layers.0.cross_attention.key.weight", "qformer.layers.2.cross_attention.query.weight")}

# Four optimiser steps, items and texts in turn with pairs; weight decay on matrices alone, as LAVIS.
rule = dict(lr=0.0, betas=(0.9, 0.999), eps=1e-8)
optimizer = torch.optim.AdamW([
    {"params": [p for p in P.values() if p.ndim >= 2], "weight_decay": 0.05},
    {"params": [p for p in P.values() if p.ndim < 2], "weight_decay": 0.0}], **rule)
import math
PEAK, FLOOR, START, WARMUP, TOTAL = 1e-2, 1e-3, 1e-4, 2, 6
for step in range(4):
    lr = START + (PEAK - START) * step / WARMUP if step < WARMUP else FLOOR + (PEAK - FLOOR) * 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (TOTAL - WARMUP)))
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.zero_grad()
    value = pairs(vectors, right) if step % 2 else sum(WEIGHTS[n] * LOSSES[n]() for n in WEIGHTS)
    value.backward()
    norm_before = torch.nn.utils.clip_grad_norm_(P.values(), 1.0)
    optimizer.step()
    described["steps"].append({"loss": value.item(), "lr": lr, "grad_norm": norm_before.item()})
out |= {f"final.{n}": P[n] for n in GRADIENTS}
write_tensors(FIXTURES / "qformer" / "expected.safetensors", out)
write_json(FIXTURES / "qformer" / "expected.json", described)
print(described)
