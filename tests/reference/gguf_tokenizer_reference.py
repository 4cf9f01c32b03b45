"""Writes tests/fixtures/gguf/publishers.json: vocabularies as GGUF's metadata holds them, texts, and the ids that the
publisher's own kind of tokenizer.json gives them; and tests/fixtures/gguf/tokenizers.json: these tokenizer.json, but for
the vocabulary and merges that publishers.json has. Needs tokenizers: python tests/reference/gguf_tokenizer_reference.py

Each kind is built as the tokenizer.json of the model that it is named after (normalizer, pre-tokenizer, model flags),
over a small vocabulary learnt here; the GGUF side is what llama.cpp's convert_hf_to_gguf.py writes of it."""
import json
import os
import random

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

random.seed(0)
OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "fixtures", "gguf", "publishers.json")
TEXTS = [
    "Ball Pens,  8 Pack", " a leading space", "  two", "   three  and   more    spaces", "12345 items, ½ inch and 10²", "Café Noir — naïve",
    "Cafe\u0301 decomposed", "書道 筆ペン 12本", "tabs\tand\n\nnewlines\r\n", "don't DON'T we'll", "x<|end|>y", "<|end|> after", "a</s>b</s> c", "emoji 🖊️🖊",
    "\"Red Pen\", \"Blue Pen\"", "(parens) [brackets] {braces}", "CamelCase HTTPServer", "Русский текст", "", "a", "end. ", "0 00 000 0000", "path/to/file.txt", "中文字符测试",
]
CORPUS = TEXTS * 3 + ["Red Pen 12 pack", "Blue Pen  24 pack", "\"Red Pen\"", "\"Blue Pen\"", "The Pens and the Packs of Pens", "100 200 300 123 456", "HTTPServer HTTPClient"] * 20

GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(expression):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def digits():
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])


def deepseek_coder():
    parts = [pre_tokenizers.Split(Regex(e), "isolated") for e in [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+"]]
    last = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return pre_tokenizers.Sequence(parts + last)


def byte_level(pre, pre_tokenizer, ignore_merges=False, normalizer=None, drop_merges=0, added=("<|end|>",), bos=None):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in added])
    tokenizer.train_from_iterator(CORPUS, trainer)
    document = json.loads(tokenizer.to_str())
    if drop_merges:  # tokens that merges do not reach
        document["model"]["merges"] = document["model"]["merges"][:-drop_merges]
    if bos:
        document["post_processor"] = json.loads(
            Tokenizer_with(processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])))
    tokenizer = Tokenizer.from_str(json.dumps(document))
    vocab = document["model"]["vocab"]
    names = sorted(vocab, key=vocab.get)
    merges = [" ".join(m) if isinstance(m, list) else m for m in document["model"]["merges"]]
    entry = dict(model="gpt2", pre=pre, tokens=names, types=[3.0 if t in added else 1.0 for t in names], merges=merges, eos=0)
    if bos:
        entry.update(bos=tokenizer.token_to_id(bos), add_bos=True)
    return finish(tokenizer, entry)


def Tokenizer_with(post_processor):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.post_processor = post_processor
    return json.dumps(json.loads(tokenizer.to_str())["post_processor"])


def learnt_pieces():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("▁+[^▁]*|[^▁]+"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=330, limit_alphabet=90, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab, merges = model["vocab"], ["".join(m) if isinstance(m, list) else m.replace(" ", "") for m in model["merges"]]
    made = list(dict.fromkeys(merges))
    return made + [t for t in sorted(vocab, key=vocab.get) if t not in made]


def generate_merges(vocab, score):
    merges = []
    for piece, s in score.items():
        local = [(piece[:i], piece[i:], s) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += sorted(local, key=lambda x: (vocab[x[0]], vocab[x[1]]))
    return [m[:2] for m in sorted(merges, key=lambda m: (m[2], len(m[0]), len(m[1])), reverse=True)]


def by_position(vocab):
    """As GemmaConverter: the vocabulary's order, ascending lengths."""
    merges = []
    for piece, s in vocab.items():
        local = [(piece[:i], piece[i:], s) for i in range(1, len(piece)) if piece[:i] in vocab and piece[i:] in vocab]
        merges += sorted(local, key=lambda x: (vocab[x[0]], vocab[x[1]]))
    return [m[:2] for m in sorted(merges, key=lambda m: (m[2], len(m[0]), len(m[1])))]


def sentencepiece(kind, user_defined=(), byte_tokens=True):
    specials = ["<pad>", "</s>", "<s>", "<unk>"] if kind == "gemma" else ["<unk>", "<s>", "</s>"]
    control = [t for t in specials if t != "<unk>"]
    if kind == "mistral-v3":
        specials, control = specials + ["[INST]", "[/INST]"], control + ["[INST]", "[/INST]"]
    raw_bytes = [f"<0x{b:02X}>" for b in range(256)] if byte_tokens else []
    pieces = [p for p in learnt_pieces() if p not in user_defined]
    names = specials + list(user_defined) + raw_bytes + pieces
    vocab = {name: i for i, name in enumerate(names)}
    score = {name: -1000.0 if name in user_defined else 0.0 for name in names}
    score.update({name: -float(i) for i, name in enumerate(pieces)})
    merges = by_position(vocab) if kind == "gemma" else generate_merges(vocab, score)
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    if kind == "llama2":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace])
    elif kind == "mistral-v3":
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    else:
        tokenizer.normalizer = replace
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in specials])
    tokenizer.add_tokens([AddedToken(t, normalized=False, special=False) for t in user_defined])
    bos = "<s>"
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, vocab[bos])])
    kinds = {**{t: 3.0 for t in control}, "<unk>": 2.0, **{t: 4.0 for t in user_defined}, **{t: 6.0 for t in raw_bytes}}
    entry = dict(
        model="llama", pre="default", tokens=[t.replace("▁", " ") if t in user_defined else t for t in names],
        types=[kinds.get(t, 1.0) for t in names], scores=[score[t] for t in names], eos=vocab["</s>"], bos=vocab["<s>"],
        unknown=vocab["<unk>"], add_bos=True, add_space_prefix=False if kind == "gemma" else None)
    return finish(tokenizer, entry)


def random_scores():
    """Scores in no order, and pieces that several merges make."""
    pieces, seen = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)], set("▁abcde")
    while len(seen) < 150:
        seen.add("".join(random.choices("▁abcde", k=random.randint(2, 5))))
    learned = sorted(seen, key=lambda piece: (len(piece), piece))
    names = pieces + learned
    vocab = {name: i for i, name in enumerate(names)}
    score = {**{name: 0.0 for name in pieces}, **{name: round(random.uniform(-9, -1), 2) for name in learned}}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=generate_merges(vocab, score), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in pieces[:3]])
    texts = ["".join(random.choices(" abcde", k=20)) for _ in range(20)] + ["</s>ab é!", "  x", ""]
    types = [2.0, 3.0, 3.0] + [6.0] * 256 + [1.0] * len(learned)
    entry = dict(model="llama", pre=None, tokens=names, types=types, scores=[score[t] for t in names], eos=2, unknown=0, bos=1, add_bos=False)
    return finish(tokenizer, entry, texts)


def finish(tokenizer, entry, texts=TEXTS):
    document = json.loads(tokenizer.to_str())
    assert document["model"]["vocab"] == {token.replace(" ", "▁") if kind == 4 else token: n
                                          for n, (token, kind) in enumerate(zip(entry["tokens"], entry["types"]))}
    del document["model"]["vocab"]
    if [" ".join(m) for m in document["model"]["merges"]] == entry.get("merges"):
        del document["model"]["merges"]
    tokenizers.append(document)
    encode = lambda text, special: tokenizer.encode(text, add_special_tokens=special).ids
    return {**entry, "texts": texts, "ids": [encode(t, False) for t in texts], "prompt": encode(texts[0], True)}


tokenizers = []
USER_DEFINED = ["\n", "\n\n", "▁▁", "▁▁▁", "▁▁▁▁", "<table>"]
cases = {
    "gpt-2": byte_level("gpt-2", GPT2),
    "smollm": byte_level("smollm", digits()),
    "llama-bpe": byte_level("llama-bpe", split(LLAMA3), ignore_merges=True, drop_merges=25, added=("<|end|>", "<|begin|>"), bos="<|begin|>"),
    "smaug-bpe": byte_level("smaug-bpe", split(LLAMA3), ignore_merges=True, drop_merges=25),
    "dbrx": byte_level("dbrx", split(LLAMA3), drop_merges=25),
    "qwen2": byte_level("qwen2", split(QWEN2), normalizer=normalizers.NFC(), drop_merges=25),
    "tekken": byte_level("tekken", split(TEKKEN), ignore_merges=True, drop_merges=25),
    "deepseek-coder": byte_level("deepseek-coder", deepseek_coder(), added=("<|end|>", "<｜begin▁of▁sentence｜>"), bos="<｜begin▁of▁sentence｜>"),
    "llama2": sentencepiece("llama2"),
    "mistral-v3": sentencepiece("mistral-v3"),
    "gemma": sentencepiece("gemma", USER_DEFINED),
    "without bytes": sentencepiece("llama2", byte_tokens=False),
    "random scores": random_scores(),
}
with open(OUT, "w", encoding="utf-8") as file:
    json.dump(cases, file, ensure_ascii=False, separators=(",", ":"))
    file.write("\n")
with open(OUT.replace("publishers", "tokenizers"), "w", encoding="utf-8") as file:
    json.dump(dict(zip(cases, tokenizers)), file, ensure_ascii=False, separators=(",", ":"))
    file.write("\n")
