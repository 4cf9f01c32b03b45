"""Planted worlds: does ILM read co-visits where titles say nothing, cost nothing where titles say everything, and does phase 1 help a frozen LLM?

  python3 benches/planted.py --itemlm target/release/itemlm --work DIR [--seeds 3] [--first-seed 1] [--threads 1] [--report]
  python3 benches/planted.py --wide --itemlm target/release/itemlm --work ANOTHER_DIR --seeds 6

Needs nothing but Python and the binary (and pyarrow, if there, for the intervals within a seed). Each seed has one catalogue, 20 book series of 5
volumes ("Silent Orbit Three"), and one tiny Llama that has read about them (LML, every weight): half of the windows it reads go on with the volume
after the last one, the others with any title. So it writes every title and knows what a series is, and knows nobody's taste. It reads in ROUNDS,
some with K vectors after each title that say nothing: random ones through a new MLP each time, which is thrown away. For an LLM that never met
anything between titles is lost when something stands there, whatever it is. Then two worlds of 1000 training windows (4 items, then the target),
a tenth of the choices at random:

  covisits  items lie on 10 hidden shelves of 10, drawn across series: a reader stays on a shelf. Only who read what tells.
  titles    the target is the volume after the last one read. In half of the test windows it is cold: a last volume that is in no training window.

Collaborative vectors (`itemlm cf als`) and phase 1 (`itemlm align`: ITC and ITG; with II where it says so) learn from all training windows, phase 2
(`itemlm train`) from some. Three experiments: covisits and titles with vectors beside the text and LoRA; and "alone", the titles world with
vectors in the titles' place and the LLM frozen, as ILM's paper has it. All arms of the same experiment and windows have the same order, steps, rate and base.

Said beforehand. Hyperparameters were chosen on seeds 11 to 13 (see below); seeds 1 to 3 were run once, for the report. NDCG@10 on 1000 test windows
a world, mean and 95 % t-interval over the seeds of an arm and of its difference to another, seed by seed; beside it each seed's own paired interval.
  covisits  ILM beats text only: the interval of the difference is above 0.
  titles    ILM ties with text only: that interval includes 0 and the mean is within 0.03 of it.
  alone     phase 1 helps: the interval of ILM - ILM-rand is above 0, of 50 and of 200 windows at K = 4; the other rows are its circumstances.

With --wide one more, made after "alone" had not shown what it was made for: in that world even 50 windows show an untrained encoder most of 20 series, and
what has to be told, the volume, is nothing that a co-visit vector knows.
  wide      400 series, named by 20 x 20 words, of 5 volumes; the base has read that a reader of four volumes goes on with the fifth, in any order. So has
            who is to be served, but for a tenth of the choices. 10,000 windows make the vectors, which say which series an item is of, and phase 1
            learns what each is called; phase 2 sees 800 windows, as "alone" does: vectors in the titles' place, the LLM frozen.
Said beforehand: over six seeds the interval of ILM - ILM-rand at K = 4 is above 0; K = 1 and 8 are its circumstances. Hyperparameters from seeds 11 to 13
of this world.
Prints tables in Markdown; writes DIR/planted.json. What is done is not run again, so a run cut short goes on, and several with one seed each
(--seeds 1 --first-seed N) may run side by side in DIR; --report prints the tables of what is there. Some 6 to 8 minutes of one idle core a seed, 15 with --wide.
"""
import argparse, json, math, os, random, shutil, statistics, struct, subprocess, sys

p = argparse.ArgumentParser()
p.add_argument("--itemlm", required=True); p.add_argument("--work", required=True)
p.add_argument("--seeds", type=int, default=3); p.add_argument("--first-seed", type=int, default=1)
p.add_argument("--threads", type=int, default=1); p.add_argument("--report", action="store_true", help="only the tables of what is done")
p.add_argument("--wide", action="store_true", help="400 series, and phase 1 beside none; in a DIR of its own")
a = p.parse_args()
os.environ["RAYON_NUM_THREADS"] = os.environ["POLARS_MAX_THREADS"] = str(a.threads)

ADJECTIVES = "Silent Crimson Hollow Golden Broken Distant Winter Hidden".split()
NOUNS = "Alibi Manor Cipher Comet Orbit Nebula Orchid Meadow Willow Kettle".split()
VOLUMES = "One Two Three Four Five".split()
SERIES, SHELVES, HISTORY, TRAIN, TEST, READ = 20, 10, 4, 1000, 1000, 8000
WORLDS, EXPERIMENTS = ("covisits", "titles"), ("covisits", "titles", "alone")
NOISE = 0.1  # of a world's choices, made at random
HIDDEN, INNER, LAYERS, HEADS, HEAD = 64, 128, 2, 4, 16
WIDTH = 32  # of a collaborative vector
if a.wide:
    ADJECTIVES += "Velvet Burning Frozen Scarlet Ancient Wicked Gentle Midnight Copper Savage Marble Restless".split()
    NOUNS += "Lantern Harbor Raven Mirror Garden Tower Voyage Anthem Ember Quarry".split()
    SERIES, TRAIN, READ, WIDTH, WORLDS, EXPERIMENTS = 400, 10000, 32000, 64, ("wide",), ("wide",)

# Chosen on seeds 11 to 13, whose figures are no part of the report:
# What the base reads: epochs of how many windows, at which rate, and how many meaningless vectors stand after each title. (The first
# round alone ranked the titles world of seed 11 at .77 without vectors and .33 to .49 with untrained ones; all of them .76 and .69 to .74.)
ROUNDS = [(2, READ, 3e-3, 0)] + [(1, READ // 4, rate, k) for rate in (2e-3, 2e-3, 1e-3, 4e-4) for k in (4, 8, 1, 0)]
# Phase 2: epochs and rate by windows, in steps of 16 windows. Beside text 3e-3 was better for every arm than 1e-3; alone 1e-3, 3e-3, 1e-2 and 8 to 64 epochs were tried.
SCHEDULES = {"covisits": {200: (8, 3e-3), TRAIN: (3, 3e-3)}, "titles": {200: (8, 3e-3), TRAIN: (3, 3e-3)}, "alone": {50: (32, 1e-3), 200: (24, 3e-3), TRAIN: (6, 3e-3)},
             # At 3e-4 and 3e-3 both arms were worse, ILM-rand the more so.
             "wide": {800: (72, 1e-3)}}
# Phase 1's epochs, and the Q-Former's dropout in both phases. A ridge regression reads the volume of items it has
# not seen from what the queries give for .73 of them; for .52 after 200 epochs without dropout. II makes neighbours in a series alike, so it is an arm of its own.
ALIGNED = {"covisits": (200, 0.0), "titles": (200, 0.0), "alone": (400, 0.1), "wide": (100, 0.0)}
ENCODERS = {"text only": "none", "MLP": "mlp", "ILM-rand": "rand", "ILM": "aligned", "ILM-II": "aligned", "ILM-rand, no dropout": "rand"}

def arms():
    """(experiment, windows, encoder, K, loss), the most telling first"""
    vectors = ("ILM-rand", "ILM", "MLP")
    if a.wide:
        yield from (("wide", 800, encoder, 4, "msl") for encoder in vectors)
        yield from (("wide", 800, encoder, k, "msl") for k in (8, 1) for encoder in vectors[:2])
        return
    yield from ((experiment, 200, encoder, 4, "msl") for experiment in ("titles", "covisits") for encoder in ("text only", *vectors))
    yield from (("alone", windows, encoder, 4, "msl") for windows in (200, 50) for encoder in vectors[:2])
    yield from ((experiment, TRAIN, encoder, 4, "msl") for experiment in ("titles", "covisits") for encoder in ("text only", *vectors))
    yield from (("alone", 200, encoder, k, "msl") for k in (1, 8) for encoder in vectors[:2])
    yield from (("covisits", 200, encoder, k, "msl") for k in (1, 8) for encoder in vectors)
    yield from (("titles", 200, "ILM", k, "msl") for k in (1, 8))
    yield from (("alone", windows, encoder, 4, "msl") for windows, encoder in ((200, "ILM-rand, no dropout"), (TRAIN, "ILM-rand"), (TRAIN, "ILM"), (50, "MLP"), (200, "MLP"), (TRAIN, "MLP")))
    yield from (("covisits", 200, encoder, 4, "lml") for encoder in ("text only", *vectors))
    yield from ((experiment, 200, "ILM-II", 4, "msl") for experiment in ("alone", "covisits"))

def world_of(experiment):
    return "titles" if experiment == "alone" else experiment

def run_of(folder, experiment, windows, encoder, k, loss):
    return f"{folder}/" + f"{experiment}-{windows}-{encoder}-{loss}".replace(", ", "-").replace(" ", "-") + (f"-k{k}" if encoder != "text only" else "")

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
    values = lambda shape: [1.0] * shape[0] if len(shape) == 1 else [rng.gauss(0, 0.02) for _ in range(math.prod(shape))]
    safetensors(f"{folder}/model.safetensors", {f"{name}.weight": (shape, values(shape)) for name, shape in shapes.items()})

def safetensors(path, tensors):
    header, data = {}, b""
    for name, (shape, values) in tensors.items():
        packed = struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(packed)]}
        data += packed
    header = json.dumps(header).encode()
    write(path, struct.pack("<Q", len(header)) + header + data)

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

    def sequel(self, among):
        return self.rng.choice([item for item in among if item % len(VOLUMES) > 0])

    def read(self):
        """Of all series to their end: what is cold to a reader's taste is none to the LLM."""
        if self.rng.random() < 0.5:
            return self.whole_series() if a.wide else self.following(self.sequel(self.items))
        return [self.any(warm=False) for _ in range(HISTORY + 1)]

    def whole_series(self):
        """In any order."""
        first = self.rng.randrange(SERIES) * len(VOLUMES)
        return self.rng.sample(range(first, first + len(VOLUMES)), len(VOLUMES))

    def noisy(self, window):
        return [item if self.rng.random() > NOISE else self.any(warm=False) for item in window]

    def wide_window(self):
        return self.noisy(self.whole_series())

    def titles_window(self, cold=False):
        if cold:
            return self.following(self.rng.choice(self.cold))
        window = self.following(self.sequel(self.known))
        return window if self.rng.random() > NOISE else window[:-1] + [self.any()]

    def covisits_window(self):
        return self.noisy(self.rng.sample(self.rng.choice(self.shelves), HISTORY + 1))

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

def run_file(corpus, base, items, seed, samples, epochs, rate, tune="lora", loss="lml", warmup=20, batch=16):
    lora = {"rank": 8, "alpha": 16, "dropout": 0.0, "targets": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]}
    return {"seed": seed, "data": {"corpus": corpus, "prompt": "short", "train_samples": samples},
            "llm": {"path": base, "tune": tune} | ({"lora": lora} if tune == "lora" else {}), "items": items, "loss": {"kind": loss, "temperature": 1.0},
            "train": {"epochs": epochs, "batch_size": batch, "micro_batch_size": batch, "learning_rate": rate, "warmup_steps": warmup, "checkpoint_steps": 100000, "valid_windows": 0}}

def train(run, config):
    shutil.rmtree(run, ignore_errors=True)
    write(f"{run}.toml", toml(config))
    return itemlm("train", f"{run}.toml", "--out", run, "--ui", "none")

def base_of(folder):
    return f"{folder}/read/{len(ROUNDS) - 1}/model"

def shared(folder, seed):
    """What the arms of a seed share: base, corpora, vectors, baselines."""
    worlds = Worlds(random.Random(seed))
    if not os.path.exists(base_of(folder)):
        llm(f"{folder}/untrained", worlds.rng)
        bert(f"{folder}/bert")
        corpus, noise, base = f"{folder}/reading", f"{folder}/noise.safetensors", f"{folder}/untrained"
        worlds.save(f"{folder}/raw/reading", train=[worlds.read() for _ in range(READ)], valid=[worlds.read()], test=[worlds.read()])
        itemlm("prepare", "msl", f"{folder}/raw/reading", "--out", corpus)
        # For the ids beside it.
        itemlm("cf", "als", corpus, "--out", noise, "--set", f"dim={WIDTH}", "--set", "iterations=1")
        for n, (epochs, samples, rate, k) in enumerate(ROUNDS):
            drawn = lambda rows: ([rows, WIDTH], [worlds.rng.gauss(0, 1) for _ in range(rows * WIDTH)])
            safetensors(noise, {"item": drawn(len(worlds.titles)), "user": drawn(READ + 2)})
            items = {"encoder": "mlp", "vectors": noise, "queries": k} if k else {"encoder": "none"}
            config = run_file(corpus, base, items, seed * 100 + n, samples, epochs, rate, "full", warmup=50 if n == 0 else 10, batch=32)
            say(seed, f"read {samples} windows, {k} vectors an item", train(f"{folder}/read/{n}", config))
            base = f"{folder}/read/{n}/model"
    for world in WORLDS:
        if not os.path.exists(f"{folder}/{world}.json"):
            worlds.rng.seed(f"{seed} {world}")
            window = getattr(worlds, f"{world}_window")
            test = [window(cold=n % 2 == 0) if world == "titles" else window() for n in range(TEST)]
            worlds.save(f"{folder}/raw/{world}", train=[window() for _ in range(TRAIN)], valid=[window()], test=test)
            itemlm("prepare", "msl", f"{folder}/raw/{world}", "--out", f"{folder}/{world}")
            itemlm("cf", "als", f"{folder}/{world}", "--out", f"{folder}/{world}-als.safetensors", "--set", f"dim={WIDTH}", "--set", "regularization=1")
            write(f"{folder}/{world}.json", json.dumps({name: itemlm("baseline", name, f"{folder}/{world}") for name in ("cooccurrence", "als")}))
    for k in (0, 1, 4, 8):
        run = f"{folder}/untuned-k{k}"
        if not os.path.exists(f"{run}/evaluation-test.json"):
            items = {"encoder": "mlp", "vectors": f"{folder}/{WORLDS[-1]}-als.safetensors", "queries": k} if k else {"encoder": "none"}
            # One step, whose rate is 0, as warm-up begins.
            train(run, run_file(f"{folder}/{WORLDS[-1]}", base_of(folder), items, seed, 16, 1, 3e-3))
            say(seed, f"untuned, {k} vectors an item", None, itemlm("evaluate", run))

def arm(folder, seed, experiment, windows, encoder, k, loss):
    """Trains and evaluates, unless that is done."""
    run = run_of(folder, experiment, windows, encoder, k, loss)
    if os.path.exists(f"{run}/evaluation-test.json"):
        return
    corpus = f"{folder}/{world_of(experiment)}"
    vectors, aligned = f"{corpus}-als.safetensors", f"{folder}/{experiment}-align{'-ii' if encoder == 'ILM-II' else ''}-k{k}"
    epochs, dropout = ALIGNED[experiment]
    qformer = {"text": f"{folder}/bert", "init": "random", "queries": k, "layers": 2, "cross_attention_every": 1, "projection": 32, "max_text_tokens": 8, "dropout": 0.0 if "no dropout" in encoder else dropout}
    if ENCODERS[encoder] == "aligned" and not os.path.exists(f"{aligned}/qformer/config.toml"):
        shutil.rmtree(aligned, ignore_errors=True)
        # Without matching: it costs more than the rest together.
        write(f"{aligned}.toml", toml({
            "seed": seed, "data": {"corpus": corpus, "vectors": vectors, "held_out": 0.0}, "qformer": qformer, "loss": {"item_text_matching": 0.0, "item_item": float(encoder == "ILM-II")},
            "train": {"epochs": epochs, "batch_size": 50, "learning_rate": 3e-3, "min_learning_rate": 3e-4, "warmup_steps": 20}}))
        say(seed, f"phase 1: {aligned.split('/')[-1]}", itemlm("align", f"{aligned}.toml", "--out", aligned, "--ui", "none"))
    items = {"none": {"encoder": "none"}, "mlp": {"encoder": "mlp", "vectors": vectors, "queries": k}, "rand": {"encoder": "qformer", "vectors": vectors, "qformer": qformer},
             "aligned": {"encoder": "qformer", "vectors": vectors, "aligned": aligned}}[ENCODERS[encoder]]
    alone = experiment in ("alone", "wide")
    items |= {"beside_text": False} if alone else {}
    report = train(run, run_file(corpus, base_of(folder), items, seed, windows, *SCHEDULES[experiment][windows], "frozen" if alone else "lora", loss))
    say(seed, run.split("/")[-1], report, itemlm("evaluate", run))

def say(seed, what, report, found=None):
    steps = report and f", {report['steps']} steps, {report['seconds']:.0f} s, loss {report['loss']['first']:.2f} → {report['loss']['last']:.2f}"
    print(f"seed {seed}, {what}{steps or ''}" + (f", NDCG@10 {found['metrics']['ndcg@10']:.3f}" if found else ""), file=sys.stderr, flush=True)

def interval(values):
    """Mean and half the width of Student's 95 % interval."""
    if not values:
        return None
    half = T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values)) if 1 < len(values) <= len(T95) + 1 else None
    return {"mean": statistics.fmean(values), "half_width": half, "values": values}

def shown(found, sign=""):
    return "" if found is None else f"{found['mean']:{sign}.3f}" + ("" if found["half_width"] is None else f" ± {found['half_width']:.3f}")

def read(path, *keys):
    if not os.path.exists(path):
        return None
    with open(path) as f:
        found = json.load(f)
    for key in keys:
        found = found.get(key, {})
    return found if isinstance(found, float) else None

def gains(run):
    """NDCG@10 of each test window; none without pyarrow."""
    try:
        from pyarrow.parquet import read_table
    except ImportError:
        return None
    rows = sorted((row["window"], row["rank"]) for row in read_table(f"{run}/ranks-test.parquet").to_pylist())
    return [0.0 if rank is None or rank > 9 else 1 / math.log2(rank + 2) for _, rank in rows]

def difference(seeds, one, other):
    """NDCG@10 of `one` minus that of `other`, both arms: over the seeds, and in `paired` each seed's [mean, half of the normal 95 % interval over windows]."""
    runs = {s: [run_of(f"{home}/seed-{s}", *key) for key in (one, other)] for s in seeds}
    runs = {s: pair for s, pair in runs.items() if all(os.path.exists(f"{run}/evaluation-test.json") for run in pair)}
    found = interval([read(f"{a}/evaluation-test.json", *NDCG) - read(f"{b}/evaluation-test.json", *NDCG) for a, b in runs.values()])
    if found and all(gains(run) for pair in runs.values() for run in pair):
        each = [[x - y for x, y in zip(gains(a), gains(b))] for a, b in runs.values()]
        found["paired"] = [[statistics.fmean(d), 1.96 * statistics.stdev(d) / math.sqrt(len(d))] for d in each]
    return found

def tables(seeds):
    """Of what is done."""
    out = {}
    over = lambda file, *keys: interval([v for s in seeds if (v := read(f"{home}/seed-{s}/{file}", *keys)) is not None])
    print(f"Mean ± half of the 95 % t-interval over seeds {', '.join(map(str, seeds))}.\n\n| the base, untuned, {WORLDS[-1]} world | NDCG@10 |\n|---|---|")
    for k in (0, 1, 4, 8):
        out[f"untuned/{k}"] = over(f"untuned-k{k}/evaluation-test.json", *NDCG)
        print(f"| {k} vectors after each title | {shown(out[f'untuned/{k}'])} |")
    for experiment in EXPERIMENTS:
        groups = {"NDCG@10": NDCG} | ({"warm": ("warm", *NDCG), "cold": ("cold", *NDCG)} if world_of(experiment) == "titles" else {})
        others = ("ILM-rand", "MLP") if experiment in ("alone", "wide") else ("text only", "ILM-rand", "MLP")
        print(f"\n| {experiment} | windows, loss, K | {' | '.join(groups)} | {' | '.join(f'minus {other}' for other in others)} |\n|---|---|{'---|' * (len(groups) + len(others))}")
        for ranker in ("cooccurrence", "als"):
            cells = {n: over(f"{world_of(experiment)}.json", ranker, *keys) for n, keys in groups.items()}
            out[f"{experiment}/{ranker}"] = cells
            print(f"| {ranker} | {TRAIN} | {' | '.join(map(shown, cells.values()))} | {'| ' * len(others)}")
        for key in sorted((key for key in arms() if key[0] == experiment), key=lambda key: (key[1], key[4] == "lml", key[3])):
            _, windows, encoder, k, loss = key
            cells = {n: over(f"{os.path.basename(run_of('', *key))}/evaluation-test.json", *keys) for n, keys in groups.items()}
            if not cells["NDCG@10"]:
                continue
            for other in others:
                cells[f"minus {other}"] = None if encoder in (other, "text only") else difference(seeds, key, (experiment, windows, other, k, loss))
            out[os.path.basename(run_of("", *key))] = cells
            print(f"| {encoder} | {windows}, {loss}{f', {k}' if encoder != 'text only' else ''} | " + " | ".join(shown(c, "+" if n.startswith("minus") else "") for n, c in cells.items()) + " |")
    print("\n| said beforehand | windows, K | difference | each seed's own, paired | |\n|---|---|---|---|---|")
    above = lambda d: d["mean"] - d["half_width"] > 0
    tie = lambda d: abs(d["mean"]) <= min(0.03, d["half_width"])
    for experiment, windows, other, what, holds in (
            *(("covisits", windows, "text only", "ILM beats text only", above) for windows in (200, TRAIN)),
            *(("titles", windows, "text only", "ILM ties with text only", tie) for windows in (200, TRAIN)),
            *(("alone", windows, "ILM-rand", "phase 1 helps", above) for windows in (50, 200)),
            ("wide", 800, "ILM-rand", "phase 1 helps", above)):
        d = out.get(os.path.basename(run_of("", experiment, windows, "ILM", 4, "msl")), {}).get(f"minus {other}")
        if d and d["half_width"] is not None:
            print(f"| {experiment}: {what} | {windows}, 4 | {shown(d, '+')} | {', '.join(f'{m:+.3f} ± {h:.3f}' for m, h in d.get('paired', []))} | {'yes' if holds(d) else 'NOT SHOWN'} |")
    write(f"{home}/planted.json", json.dumps({"seeds": list(seeds), "ndcg@10": out}, indent=1))

NDCG = ("metrics", "ndcg@10")
T95 = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]
home = os.path.abspath(a.work)
seeds = range(a.first_seed, a.first_seed + a.seeds)
if not a.report:
    for seed in seeds:
        shared(f"{home}/seed-{seed}", seed)
    # Arm by arm, so that a run cut short has the most telling ones of every seed.
    for one in arms():
        for seed in seeds:
            arm(f"{home}/seed-{seed}", seed, *one)
tables(seeds)
