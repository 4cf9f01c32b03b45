"""Every catalogue item's log-probability after three prompts, and transformers' constrained beam search, on llama-untied -> decode/."""
import torch

from tiny import EOS, FIXTURES, Trie, generator, load, write_json

CATALOGUE = [s + [EOS] for s in (
    [10, 20], [10, 20, 21], [10, 20, 22, 23], [10, 24],   # shared prefixes; the first ends inside the second
    [11, 25, 26, 27, 28, 29],                             # a chain from its first token on
    [12], [12, 30, 31], [13, 32, 33], [13, 32, 34], [14, 35])]
PROMPT_LENGTHS = (5, 9, 12)

model = load("llama-untied")
trie = Trie(CATALOGUE)
g = generator(500)


@torch.no_grad()
def item_scores(prompt, item):
    z = model(input_ids=torch.tensor([prompt + item[:-1]])).logits[0, len(prompt) - 1:].double()
    full = sum(torch.log_softmax(z[i], -1)[t].item() for i, t in enumerate(item))
    masked = sum(torch.log_softmax(z[i][c], -1)[c.index(t)].item() for i, (t, c) in enumerate(zip(item, trie.children_along(item))))
    return full, masked


@torch.no_grad()
def beam_search(prompt, length_penalty):
    def allowed(_, sequence):
        node = trie.node(sequence.tolist()[len(prompt):])
        return sorted(node) if node else [EOS]
    n = len(CATALOGUE)
    out = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), num_beams=n,
        num_return_sequences=n, max_new_tokens=8, do_sample=False, pad_token_id=0, eos_token_id=EOS,
        length_penalty=length_penalty, early_stopping=False, prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True, output_scores=True)
    items = []
    for s in out.sequences[:, len(prompt):].tolist():
        items.append(CATALOGUE.index(s[:s.index(EOS) + 1]))
    return items, out.sequences_scores.tolist()


prompts = []
for length in PROMPT_LENGTHS:
    prompt = torch.randint(40, 96, (length,), generator=g).tolist()
    full, masked = zip(*(item_scores(prompt, item) for item in CATALOGUE))
    row = {"prompt": prompt, "full": full, "masked": masked}
    # Masked over the whole catalogue is a distribution.
    total = torch.tensor(masked, dtype=torch.float64).exp().sum().item()
    assert abs(total - 1) < 1e-5, total  # each item is a forward of its own in f32, so not exactly 1
    for penalty in (0.0, 1.0):
        items, scores = beam_search(prompt, penalty)
        by_hand = [full[i] / len(CATALOGUE[i]) ** penalty for i in range(len(CATALOGUE))]
        assert sorted(items) == list(range(len(CATALOGUE))), items
        assert items == sorted(items, key=lambda i: -by_hand[i])
        for i, s in zip(items, scores):
            assert abs(s - by_hand[i]) < 1e-4, (i, s, by_hand[i])
        row[f"beam_full_penalty_{penalty:g}"] = {"items": items, "scores": scores}
        row[f"ranked_masked_penalty_{penalty:g}"] = sorted(
            range(len(CATALOGUE)), key=lambda i: -masked[i] / len(CATALOGUE[i]) ** penalty)
    # No two items so close that rounding could swap them.
    for values in (full, masked, [f / len(c) for f, c in zip(full, CATALOGUE)], [x / len(c) for x, c in zip(masked, CATALOGUE)]):
        ordered = sorted(values)
        assert min(b - a for a, b in zip(ordered, ordered[1:])) > 1e-3
    prompts.append(row)
    print(row)
# The two scorings and the two penalties must not all agree, or the fixture proves nothing.
assert any(p["beam_full_penalty_0"]["items"] != p["ranked_masked_penalty_0"] for p in prompts)
assert any(p["beam_full_penalty_0"]["items"] != p["beam_full_penalty_1"]["items"] for p in prompts)
write_json(FIXTURES / "decode" / "decode.json", {"model": "llama-untied", "eos": EOS, "catalogue": CATALOGUE, "prompts": prompts})
