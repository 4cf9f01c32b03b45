"""Four optimiser steps of LoRA on llama-tied with torch, peft and transformers' schedule, for LML, MSL and MSL+ATS -> training/."""
import math

import torch
from peft import LoraConfig, get_peft_model
from transformers import get_linear_schedule_with_warmup

from loss_functions import ALPHA, ETA, HIGH, LOW, START, ats, lml, msl
from tiny import EOS, FIXTURES, Trie, generator, load, write_json, write_tensors

OUT = FIXTURES / "training"
RANK, LORA_ALPHA, BATCH, STEPS = 4, 8, 8, 4
LR, WARMUP, TOTAL, CLIP, TAU = 1e-2, 2, 8, 1.0, 2.0
ADAMW = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}

CATALOGUE = [s + [EOS] for s in (
    [10, 20], [10, 20, 21], [10, 22, 23, 24], [11, 25], [11, 26, 27], [12, 28, 29, 30],
    [13, 31], [13, 32, 33], [13, 32, 34], [14, 35, 36, 37, 38], [15, 39], [15, 40, 41])]
TRIE = Trie(CATALOGUE)
M = len(TRIE.root)


def windows(g):
    """16 prompts of 5 to 12 tokens. Every second target starts with the root child that the untrained model likes best, so that
    the label's logits stand out and the temperature leaves its floor."""
    model, out = load("llama-tied"), []
    for i in range(16):
        prompt = torch.randint(42, 96, (int(torch.randint(5, 13, (1,), generator=g)),), generator=g)
        target = int(torch.randint(0, len(CATALOGUE), (1,), generator=g))
        with torch.no_grad():
            last = model(input_ids=prompt[None]).logits[0, -1]
        if i % 2:
            target = max(range(len(CATALOGUE)), key=lambda t: last[CATALOGUE[t][0]].item())
        out.append({"prompt": prompt.tolist(), "target": target})
    return out


def target_logits(model, batch):
    """Logits that predict each target token, window after window: [target tokens of the batch, vocabulary]."""
    rows = [w["prompt"] + CATALOGUE[w["target"]] for w in batch]
    length = max(map(len, rows))
    ids = torch.tensor([r + [0] * (length - len(r)) for r in rows])
    mask = torch.tensor([[1] * len(r) + [0] * (length - len(r)) for r in rows])
    logits = model(input_ids=ids, attention_mask=mask).logits
    return torch.cat([logits[i, len(w["prompt"]) - 1:len(r) - 1] for i, (w, r) in enumerate(zip(batch, rows))])


def train(kind, data, start, dtype):
    config = LoraConfig(r=RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules=["q_proj", "v_proj"], bias="none",
                        task_type="CAUSAL_LM")
    model = get_peft_model(load("llama-tied", dtype), config)
    params = {n.replace(".default", ""): p for n, p in model.named_parameters() if p.requires_grad}
    assert params.keys() == start.keys()
    for n, p in params.items():
        p.data = start[n].to(dtype, copy=True)
    model.train()
    optimiser = torch.optim.AdamW(params.values(), lr=LR, **ADAMW)
    schedule = get_linear_schedule_with_warmup(optimiser, WARMUP, TOTAL)
    tau, record, grads = START, [], {}
    for step in range(STEPS):
        at = step * BATCH % len(data)
        batch = data[at:at + BATCH]
        targets = [CATALOGUE[w["target"]] for w in batch]
        labels = torch.tensor([t for y in targets for t in y])
        masks = torch.zeros(len(labels), model.config.vocab_size, dtype=torch.bool)
        for r, c in enumerate(c for y in targets for c in TRIE.children_along(y)):
            masks[r, c] = True
        logits = target_logits(model, batch)
        if kind == "lml":
            loss, stats = lml(logits, labels, masks), {}
        elif kind == "msl":
            loss, stats = msl(logits, labels, masks, TAU), {"temperature": TAU}
        else:
            loss, tau, stats = ats(logits, labels, masks, M, tau)
            stats["temperature"] = tau
        loss.backward()
        if step in (0, 2):
            grads |= {f"grad.{step}.{n}": p.grad.clone() for n, p in params.items()}
        norm = torch.nn.utils.clip_grad_norm_(params.values(), CLIP).item()
        record.append({"windows": [at, at + BATCH], "loss": loss.item(), "lr": schedule.get_last_lr()[0], "grad_norm": norm} | stats)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return record, grads | {f"final.{n}": p.detach() for n, p in params.items()}


g = generator(406)
data = windows(g)
names = [f"base_model.model.model.layers.{i}.self_attn.{m}.lora_{x}.weight" for i in range(2) for m in ("q_proj", "v_proj") for x in "AB"]
rows = {"q_proj": 32, "v_proj": 16}
bound = 1 / math.sqrt(32)  # kaiming uniform with a = sqrt(5)
start = {n: (torch.rand(RANK, 32, generator=g) * 2 - 1) * bound if "lora_A" in n else torch.zeros(rows[n.split(".")[-3]], RANK) for n in names}

runs, untouched = {}, {n: t.clone() for n, t in start.items()}
for kind in ("lml", "msl", "ats"):
    record, tensors = train(kind, data, start, torch.float32)
    exact, check = train(kind, data, start, torch.float64)
    assert all(v.any() for n, v in tensors.items() if "grad.2" in n)
    assert all(torch.equal(start[n], untouched[n]) for n in start)  # every run starts from the same weights
    for n in tensors:
        torch.testing.assert_close(tensors[n].double(), check[n], rtol=1e-3, atol=1e-5)
    write_tensors(OUT / f"{kind}.safetensors", tensors)
    runs[kind] = record
    for r in record:
        print(kind, r)
    print(kind, "f32 - f64: loss %.1e, weights %.1e" % (
        max(abs(a["loss"] - b["loss"]) for a, b in zip(record, exact)),
        max((tensors[n] - check[n]).abs().max().item() for n in tensors if n.startswith("final"))))
write_tensors(OUT / "start.safetensors", start)
write_json(OUT / "training.json", {
    "model": "llama-tied", "eos": EOS, "catalogue": CATALOGUE, "root_children": M, "windows": data,
    "lora": {"rank": RANK, "alpha": LORA_ALPHA, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
    "optimiser": {"learning_rate": LR, "beta_1": 0.9, "beta_2": 0.999, "epsilon": 1e-8, "weight_decay": 0.01,
                  "max_grad_norm": CLIP, "warmup_steps": WARMUP, "total_steps": TOTAL, "batch_size": BATCH, "steps": STEPS},
    "msl_temperature": TAU, "ats": {"eta": ETA, "alpha": ALPHA, "clamp": [LOW, HIGH], "start": START}, "runs": runs})
# The fixture is to show both a clipped and an unclipped step, and a temperature that moves both ways or at least off its floor.
norms = [r["grad_norm"] for rs in runs.values() for r in rs]
assert min(norms) < CLIP < max(norms), norms
assert any(LOW < r["raw_temperature"] for r in runs["ats"]), runs["ats"]
