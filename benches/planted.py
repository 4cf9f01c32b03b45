"""Planted worlds: does ILM read co-visits where titles say nothing, and does it cost anything where titles say everything?

  python3 benches/planted.py --itemlm target/release/itemlm --work DIR [--seeds 3] [--first-seed 1] [--threads 1] [--report]

Needs nothing but Python and the binary. Each seed has one catalogue, 20 book series of 5 volumes ("Silent Orbit Three"), and one tiny Llama that
has read about them: trained in full (LML) on 4000 windows, half of whose targets are the volume after the history's last one, the others any title.
So it writes every title and knows what a series is, and knows nobody's taste. Then two worlds of 1000 training windows (4 items, then the target), a tenth of the choices at random:

  covisits  items lie on 10 hidden shelves of 10, drawn across series: a reader stays on a shelf. Only who read what tells.
  titles    the target is the volume after the last one read. In half of the test windows it is cold: a last volume that is in no training window.

Collaborative vectors (`itemlm cf als`) and phase 1 (`itemlm align`: ITC, ITG, II) learn from all training windows, phase 2 (`itemlm train`, LoRA) from
200 of them (few) or all. All arms of the same windows have the same order, steps, learning rate and base; one set of hyperparameters for all, chosen before these seeds ran.
Prints a table in Markdown of NDCG@10 on the 200 test windows a world: mean and 95 % t-interval over the seeds, of an arm and of its difference, seed by seed,
to text only, ILM-rand and MLP; writes DIR/planted.json. What is done is not run again, so a run cut short goes on, and several with one seed each
(--seeds 1 --first-seed N) may run side by side in DIR; --report prints the tables of what is there. About 4 minutes of one idle core a seed.
"""
import argparse, json, math, os, random, shutil, statistics, struct, subprocess, sys

p = argparse.ArgumentParser()
p.add_argument("--itemlm", required=True); p.add_argument("--work", required=True)
p.add_argument("--seeds", type=int, default=3); p.add_argument("--first-seed", type=int, default=1)
p.add_argument("--threads", type=int, default=1); p.add_argument("--report", action="store_true", help="only the tables of what is done")
a = p.parse_args()
os.environ["RAYON_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(a.threads)

ADJECTIVES = "Silent Crimson Hollow Golden Broken Distant Winter Hidden".split()
NOUNS = "Alibi Manor Cipher Comet Orbit Nebula Orchid Meadow Willow Kettle".split()
VOLUMES = "One Two Three Four Five".split()
SERIES, SHELVES, HISTORY, TRAIN, TEST, READ = 20, 10, 4, 1000, 200, 4000
NOISE = 0.1  # of a world's choices, made at random
HIDDEN, INNER, LAYERS, HEADS, HEAD = 64, 128, 2, 4, 16

# Phase 2 of every arm.
WINDOWS = {"few": dict(train_samples=200, epochs=8), "all": dict(train_samples=TRAIN, epochs=3)}
RATE = 3e-3
ENCODERS = {"text only": "none", "MLP": "mlp", "ILM-rand": "rand", "ILM": "aligned"}

def arms():
    """(windows, encoder, K, loss), the most telling first"""
    main = [(windows, encoder, 4, "msl") for windows in ("few", "all") for encoder in ENCODERS]
    yield from main
    yield from (("few", encoder, k, "msl") for k in (1, 8) for encoder in ("ILM-rand", "ILM", "MLP"))
    yield from (("few", encoder, 4, "lml") for encoder in ENCODERS)

def name_of(windows, encoder, k, loss):
    return f"{windows}-{encoder.replace(' ', '-')}-{loss}" + (f"-k{k}" if encoder != "text only" else "")

def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb" if isinstance(text, bytes) else "w") as f:
        f.write(text)

def toml(tables):
    value = lambda v: json.dumps(v) if not isinstance(v, dict) else "{ " + ", ".join(f"{k} = {value(x)}" for k, x in v.items()) + " }"
    return "".join(f"{k} = {value(v)}\n" for k, v in tables.items() if not isinstance(v, dict)) + "".join(
        f"\n[{name}]\n" + "".join(f"{k} = {value(v)}\n" for k, v in table.items()) for name, table in tables.items() if isinstance(table, dict))

def itemlm(*command):
    """The JSON that a command prints; what it says elsewhere only if it fails."""
    command = [os.path.abspath(a.itemlm), *map(str, command), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout)

def llm(folder, rng):
    """A Llama with random weights. A word of the catalogue is a token; bytes cover all else."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = [chr(b) for b in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = ADJECTIVES + ["Ġ" + word for word in NOUNS + VOLUMES] + ["History", "Next", 'Ġ"', '",']
    vocab = {token: n for n, token in enumerate(["<|endoftext|>", *spelled, *words])}
    bytes_of = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True, "type": "ByteLevel"}
    write(f"{folder}/tokenizer.json", json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None, "pre_tokenizer": bytes_of, "decoder": bytes_of,
        "added_tokens": [{"id": 0, "content": "<|endoftext|>", "special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}],
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": []}}))
    write(f"{folder}/tokenizer_config.json", json.dumps({"eos_token": "<|endoftext|>"}))
    write(f"{folder}/config.json", json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "vocab_size": len(vocab),
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, "head_dim": HEAD,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True, "max_position_embeddings": 512, "eos_token_id": 0}))
    shapes = {"model.embed_tokens": [len(vocab), HIDDEN], "model.norm": [HIDDEN]}
    for n in range(LAYERS):
        of = {"input_layernorm": [HIDDEN], "post_attention_layernorm": [HIDDEN], "mlp.gate_proj": [INNER, HIDDEN], "mlp.up_proj": [INNER, HIDDEN], "mlp.down_proj": [HIDDEN, INNER],
              **{f"self_attn.{name}_proj": [HEADS * HEAD, HIDDEN] for name in "qkv"}, "self_attn.o_proj": [HIDDEN, HEADS * HEAD]}
        shapes |= {f"model.layers.{n}.{name}": shape for name, shape in of.items()}
    header, data = {}, b""
    for name, shape in shapes.items():
        values = [1.0] * shape[0] if len(shape) == 1 else [rng.gauss(0, 0.02) for _ in range(math.prod(shape))]
        packed = struct.pack(f"<{len(values)}f", *values)
        header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    header = json.dumps(header).encode()
    write(f"{folder}/model.safetensors", struct.pack("<Q", len(header)) + header + data)

def bert(folder):
    """A vocabulary and sizes for the Q-Former, which is drawn."""
    write(f"{folder}/vocab.txt", "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(w.lower() for w in ADJECTIVES + NOUNS + VOLUMES)]) + "\n")
    write(f"{folder}/config.json", json.dumps({
        "model_type": "bert", "hidden_act": "gelu", "vocab_size": 5 + len(ADJECTIVES + NOUNS + VOLUMES), "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 128, "max_position_embeddings": 16, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "pad_token_id": 0}))

class Worlds:
    """Items are numbered series by series."""
    def __init__(self, rng):
        self.rng, volumes = rng, len(VOLUMES)
        names = rng.sample([f"{x} {y}" for x in ADJECTIVES for y in NOUNS], SERIES)
        self.titles = [f"{name} {volume}" for name in names for volume in VOLUMES]
        self.items = range(len(self.titles))
        shuffled = rng.sample(self.items, len(self.items))
        self.shelves = [shuffled[n::SHELVES] for n in range(SHELVES)]
        # Every other series: its last volume is new.
        self.cold = [series * volumes + volumes - 1 for series in range(0, SERIES, 2)]
        self.known = [item for item in self.items if item not in self.cold]

    def any(self, warm=True):
        return self.rng.choice(self.known if warm else self.items)

    def following(self, target):
        """A history whose last item is the volume before `target`, and that before it if there is one."""
        before = [item for item in (target - 2, target - 1) if item // len(VOLUMES) == target // len(VOLUMES)]
        return [self.any() for _ in range(HISTORY - len(before))] + before + [target]

    def sequel(self):
        return self.rng.choice([item for item in self.known if item % len(VOLUMES) > 0])

    def read(self):
        return self.following(self.sequel()) if self.rng.random() < 0.5 else [self.any(warm=False) for _ in range(HISTORY + 1)]

    def titles_window(self, cold=False):
        if cold:
            return self.following(self.rng.choice(self.cold))
        window = self.following(self.sequel())
        return window if self.rng.random() > NOISE else window[:-1] + [self.any()]

    def covisits_window(self):
        shelf = self.rng.choice(self.shelves)
        return [item if self.rng.random() > NOISE else self.any(warm=False) for item in self.rng.sample(shelf, HISTORY + 1)]

    def save(self, folder, **splits):
        """The layout that MSL's authors release; every window is another reader's."""
        write(f"{folder}/id2name4Rec.json", json.dumps({str(n): title for n, title in enumerate(self.titles)}))
        number = 0
        for split, windows in splits.items():
            rows = "user_id,item_ids,timestamp\n"
            for window in windows:
                number += 1
                rows += f'{split}{number},"{window}",{number}\n'
            write(f"{folder}/{split}.csv", rows)

def run_file(corpus, base, windows, loss, items, seed=1):
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    return {"seed": seed, "data": {"corpus": corpus, "prompt": "short", "train_samples": windows["train_samples"]},
            "llm": {"path": base, "tune": "lora", "lora": lora}, "items": items, "loss": {"kind": loss, "temperature": 1.0},
            "train": {"epochs": windows["epochs"], "batch_size": 16, "micro_batch_size": 16, "learning_rate": RATE, "warmup_steps": 20, "checkpoint_steps": 100000, "valid_windows": 0}}

def shared(folder, seed):
    """What the arms of a seed share: base, corpora, vectors, baselines."""
    base = f"{folder}/base/model"
    worlds = Worlds(random.Random(seed))
    if not os.path.exists(base):
        shutil.rmtree(f"{folder}/base", ignore_errors=True)
        llm(f"{folder}/untrained", random.Random(seed))
        bert(f"{folder}/bert")
        worlds.save(f"{folder}/raw/read", train=[worlds.read() for _ in range(READ)], valid=[worlds.read()], test=[worlds.read()])
        itemlm("prepare", "msl", f"{folder}/raw/read", "--out", f"{folder}/read")
        config = run_file(f"{folder}/read", f"{folder}/untrained", {"train_samples": READ, "epochs": 4}, "lml", {"encoder": "none"})
        config["llm"] = {"path": f"{folder}/untrained", "tune": "full"}
        config["train"] |= {"batch_size": 32, "micro_batch_size": 32, "warmup_steps": 100}
        write(f"{folder}/base.toml", toml(config))
        say(seed, "base", itemlm("train", f"{folder}/base.toml", "--out", f"{folder}/base", "--ui", "none"))
    for world in WORLDS:
        if not os.path.exists(f"{folder}/{world}.json"):
            worlds.rng.seed(f"{seed} {world}")
            window = getattr(worlds, f"{world}_window")
            test = [window(cold=n % 2 == 0) if world == "titles" else window() for n in range(TEST)]
            worlds.save(f"{folder}/raw/{world}", train=[window() for _ in range(TRAIN)], valid=[window() for _ in range(TEST)], test=test)
            itemlm("prepare", "msl", f"{folder}/raw/{world}", "--out", f"{folder}/{world}")
            itemlm("cf", "als", f"{folder}/{world}", "--out", f"{folder}/{world}-als.safetensors", "--set", "dim=32", "--set", "regularization=1")
            write(f"{folder}/{world}.json", json.dumps({name: itemlm("baseline", name, f"{folder}/{world}") for name in ("cooccurrence", "als")}))

def arm(folder, seed, world, windows, encoder, k, loss):
    """Trains and evaluates, unless that is done."""
    run = f"{folder}/{world}/runs/{name_of(windows, encoder, k, loss)}"
    if os.path.exists(f"{run}/evaluation-test.json"):
        return
    shutil.rmtree(run, ignore_errors=True)
    corpus, vectors, aligned = f"{folder}/{world}", f"{folder}/{world}-als.safetensors", f"{folder}/{world}/runs/align-k{k}"
    qformer = {"text": f"{folder}/bert", "init": "random", "queries": k, "layers": 2, "cross_attention_every": 1, "projection": 32, "max_text_tokens": 8, "dropout": 0.0}
    if encoder == "ILM" and not os.path.exists(f"{aligned}/qformer/config.toml"):
        shutil.rmtree(aligned, ignore_errors=True)
        # Without matching: it costs more than the rest together, and stays at chance where titles say nothing.
        write(f"{aligned}.toml", toml({
            "seed": seed, "data": {"corpus": corpus, "vectors": vectors, "held_out": 0.0}, "qformer": qformer, "loss": {"item_text_matching": 0.0, "item_item": 1.0},
            "train": {"epochs": 200, "batch_size": 50, "learning_rate": RATE, "min_learning_rate": RATE / 10, "warmup_steps": 20}}))
        say(seed, f"{world}: phase 1, K = {k}", itemlm("align", f"{aligned}.toml", "--out", aligned, "--ui", "none"))
    items = {"none": {"encoder": "none"}, "mlp": {"encoder": "mlp", "vectors": vectors, "queries": k}, "rand": {"encoder": "qformer", "vectors": vectors, "qformer": qformer},
             "aligned": {"encoder": "qformer", "vectors": vectors, "aligned": aligned}}[ENCODERS[encoder]]
    write(f"{run}.toml", toml(run_file(corpus, f"{folder}/base/model", WINDOWS[windows], loss, items, seed)))
    report = itemlm("train", f"{run}.toml", "--out", run, "--ui", "none")
    found = itemlm("evaluate", run)
    say(seed, f"{world}: {name_of(windows, encoder, k, loss)}", report, f", NDCG@10 {found['metrics']['ndcg@10']:.3f}")

def say(seed, what, report, more=""):
    print(f"seed {seed}, {what}: {report['steps']} steps, {report['seconds']:.0f} s, loss {report['loss']['first']:.2f} → {report['loss']['last']:.2f}{more}", file=sys.stderr, flush=True)

def interval(values):
    """Mean and half the width of Student's 95 % interval, and how many seeds."""
    if not values:
        return None
    half = T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)) if 1 < len(values) <= len(T95) + 1 else None
    return {"mean": statistics.fmean(values), "half_width": half, "values": values}

def shown(found, sign=""):
    return "–" if found is None else f"{found['mean']:{sign}.3f}" + ("" if found["half_width"] is None else f" ± {found['half_width']:.3f}") + f" ({len(found['values'])})"

def read(path, *keys):
    if not os.path.exists(path):
        return None
    with open(path) as f:
        found = json.load(f)
    for key in keys:
        found = found.get(key, {})
    return found if isinstance(found, float) else None

def tables(seeds):
    """Of what is done."""
    out = {}
    measures = {"covisits": [("NDCG@10", ("metrics", "ndcg@10"))],
              "titles": [("NDCG@10", ("metrics", "ndcg@10")), ("warm", ("warm", "metrics", "ndcg@10")), ("cold", ("cold", "metrics", "ndcg@10"))]}
    for world, groups in measures.items():
        values = lambda windows, encoder, k, loss, keys: {s: v for s in seeds if (v := read(
            f"{home}/seed-{s}/{world}/runs/{name_of(windows, encoder, k, loss)}/evaluation-test.json", *keys)) is not None}
        print(f"\n### {world}: mean ± half of the 95 % t-interval (seeds)\n\n| windows | loss | K | arm | {' | '.join(n for n, _ in groups)} | minus text only | minus ILM-rand | minus MLP |\n"
              f"|---|---|---|---|{'---|' * len(groups)}---|---|---|")
        for ranker in ("cooccurrence", "als"):
            cells = [interval([v for s in seeds if (v := read(f"{home}/seed-{s}/{world}.json", ranker, *keys)) is not None]) for _, keys in groups]
            out[f"{world}/{ranker}"] = dict(zip((n for n, _ in groups), cells))
            print(f"| all | | | {ranker} | {' | '.join(map(shown, cells))} | | | |")
        for key in sorted(arms(), key=lambda arm: (arm[0] == "few", arm[3] == "lml", arm[2])):
            windows, encoder, k, loss = key
            own = values(*key, groups[0][1])
            cells = {n: interval(list(values(*key, keys).values())) for n, keys in groups}
            for other in ("text only", "ILM-rand", "MLP"):
                theirs = {} if other == encoder or encoder == "text only" else values(windows, other, k, loss, groups[0][1])
                if other == "text only" and encoder != other:
                    theirs = values(windows, other, 4, loss, groups[0][1])
                cells[f"minus {other}"] = interval([own[s] - theirs[s] for s in own if s in theirs])
            out[f"{world}/{name_of(*key)}"] = cells
            print(f"| {windows} | {loss} | {k if encoder != 'text only' else ''} | {encoder} | " + " | ".join(
                ("" if found is None else shown(found, "+")) if n.startswith("minus") else shown(found) for n, found in cells.items()) + " |")
    write(f"{home}/planted.json", json.dumps({"seeds": list(seeds), "ndcg@10": out}, indent=1))

WORLDS = ("covisits", "titles")
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
home = os.path.abspath(a.work)
seeds = range(a.first_seed, a.first_seed + a.seeds)
if not a.report:
    for seed in seeds:
        shared(f"{home}/seed-{seed}", seed)
    # Arm by arm, so that a run cut short has the most telling ones of every seed.
    for one in arms():
        for world in WORLDS:
            for seed in seeds:
                arm(f"{home}/seed-{seed}", seed, world, *one)
tables(seeds)
