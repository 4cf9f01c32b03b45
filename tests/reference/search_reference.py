"""transformers' constrained beam search with few beams, for both scorings and several length penalties, on llama-untied -> decode/search.json.

What the released customised constrained beam search (MSL) computes is `masked`: prefix_allowed_tokens_fn and then renormalize_logits, in
transformers' own beam search. The lists are what `decode.search = "transformers"` must return; fillers (a beam that never was one: its score
is about -1e9, or it repeats an item) are left out.
"""
import torch
import transformers

from tiny import EOS, FIXTURES, Trie, generator, load, write_json

MAX_LENGTH = 12
model = load("llama-untied")
g = generator(501)


def catalogue(items, branches, tokens, chain):
    """Titles that branch over few tokens, then go on alone for a while; different ones, closed by EOS."""
    titles = []
    while len(titles) < items:
        head = torch.randint(3, 3 + tokens, (torch.randint(1, branches + 1, (), generator=g).item(),), generator=g).tolist()
        tail = torch.randint(20, 96, (torch.randint(0, chain + 1, (), generator=g).item(),), generator=g).tolist()
        title = head + tail + [EOS]
        if title not in titles:
            titles.append(title)
    return titles


@torch.no_grad()
def beam_search(trie, titles, prompt, beams, masked, length_penalty):
    def allowed(_, sequence):
        node = trie.node(sequence.tolist()[len(prompt):])
        return sorted(node) if node else [EOS]
    out = model.generate(
        input_ids=torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.int64), num_beams=beams,
        num_return_sequences=beams, max_new_tokens=MAX_LENGTH, do_sample=False, pad_token_id=0, eos_token_id=EOS,
        length_penalty=length_penalty, early_stopping=False, prefix_allowed_tokens_fn=allowed, renormalize_logits=masked,
        return_dict_in_generate=True, output_scores=True)
    items, scores = [], []
    for sequence, score in zip(out.sequences[:, len(prompt):].tolist(), out.sequences_scores.tolist()):
        title = sequence[:sequence.index(EOS) + 1] if EOS in sequence else sequence
        if score > -1e6 and title in titles and titles.index(title) not in items:
            items.append(titles.index(title))
            scores.append(score)
    return items, scores


cases, differ = [], 0
for items, branches, tokens, chain in [(12, 3, 3, 3), (40, 3, 4, 7), (60, 6, 3, 2), (5, 2, 2, 4)]:
    titles = catalogue(items, branches, tokens, chain)
    trie = Trie(titles)
    rows = []
    for length in (1, 4, 9):
        prompt = torch.randint(3, 96, (length,), generator=g).tolist()
        for beams in (2, 5, 10):
            for masked in (False, True):
                lists = {}
                for penalty in (0.0, 0.5, 1.0, 2.0):
                    found, scores = beam_search(trie, titles, prompt, beams, masked, penalty)
                    assert scores == sorted(scores, reverse=True)
                    lists[f"{penalty:g}"] = {"items": found, "scores": scores}
                differ += len({tuple(x["items"]) for x in lists.values()}) > 1
                rows.append({"prompt": prompt, "beams": beams, "scoring": "masked" if masked else "full", "lists": lists})
    cases.append({"catalogue": titles, "searches": rows})
assert differ > 20, differ
write_json(FIXTURES / "decode" / "search.json", {"model": "llama-untied", "eos": EOS, "transformers": transformers.__version__, "cases": cases})
print(differ, "searches whose lists depend on the penalty")
