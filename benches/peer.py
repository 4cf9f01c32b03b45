"""Training and ranking beside the usual Python way (`../shared/peer`), in turn, on the same windows.

  python3 benches/peer.py books|office [--llm smollm2-135m|gemma3-270m] [--python V/bin/python] [--rounds 3] [--steps 3] [--users 4]

Needs the release build (`cargo build --release`), the model of `just llm NAME` (or --gguf FILE), the released data in --data DIR (`../shared/data/KIND`)
and the peer's scripts in --peer DIR. --python is one with torch, transformers, peft, gguf and safetensors, for Gemma sentencepiece and protobuf too (the running
one if it has them); without such a one they are installed into a temporary environment, through pip. For Gemma, whose GGUF files transformers does not read
rightly, the peer's directory is made by tests/reference/gemma_gguf.py. A vocabulary of 262,144 makes the peer's logits large: with --batch 2 it needs about 8 GB there.

Both sides: f32, 2 threads, batches of 8 windows in one forward pass, in the data's order, LoRA rank 8 on q_proj and v_proj, no dropout, MSL at temperature 1; ten beams
with the untuned model. A round runs everything once: the peer's training, itemlm's with the last item as target and with every item, the peer's ranking,
itemlm's with `full` and with `masked` scoring. The peer has no targets = "every" and no masked scoring: it does what it can, a target a window and the softmax over
the vocabulary. Prints a table in Markdown: medians, their ratios, and the least and the greatest ratio of a round. --json FILE keeps all numbers.
"""
import argparse, ast, csv, json, os, platform, shutil, statistics, subprocess, sys, tempfile

PACKAGES = ["torch", "transformers", "peft", "gguf", "safetensors"]
IMPORTS = {"smollm2-135m": [], "gemma3-270m": ["sentencepiece", "google.protobuf"]}
here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("kind", nargs="?", choices=["books", "office"], default="books")
p.add_argument("--llm", choices=list(IMPORTS), default="smollm2-135m")
p.add_argument("--python", help="with " + ", ".join(PACKAGES) + "; for Gemma sentencepiece and protobuf too")
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--steps", type=int, default=3, help="training steps a round; the first warms up")
p.add_argument("--users", type=int, default=4, help="ranked users a round")
p.add_argument("--batch", type=int, default=8); p.add_argument("--threads", type=int, default=2)
p.add_argument("--peer", default=os.path.join(here, "../shared/peer")); p.add_argument("--data")
p.add_argument("--gguf", help="default: models/LLM.gguf"); p.add_argument("--hf", help="the model as a Hugging Face directory")
p.add_argument("--itemlm", default=os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(here, "target")), "release/itemlm"))
p.add_argument("--json", metavar="FILE")
a = p.parse_args()
data = a.data or os.path.join(here, "../shared/data", a.kind)
gguf = os.path.abspath(a.gguf or os.path.join(here, f"models/{a.llm}.gguf"))
imports = PACKAGES + IMPORTS[a.llm]
threads = str(a.threads)
env = {**os.environ, "RAYON_NUM_THREADS": threads, "OMP_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}

def run(*command):
    print("+", *command, file=sys.stderr, flush=True)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout

def last_json(*command):
    line = run(*command).strip().splitlines()[-1]
    print(line, file=sys.stderr, flush=True)
    return json.loads(line)

def python(work):
    """One that can run the peer."""
    found = a.python or sys.executable
    if subprocess.run([found, "-c", "import " + ", ".join(imports)], capture_output=True).returncode == 0:
        return found
    if a.python:
        sys.exit(f"error: {a.python} lacks one of {', '.join(imports)}")
    run(sys.executable, "-m", "venv", f"{work}/python")
    run(f"{work}/python/bin/pip", "install", "--quiet", *PACKAGES, *(name.split(".")[-1] for name in IMPORTS[a.llm]))
    return f"{work}/python/bin/python"

def prepare(work):
    """A corpus of the peer's windows, and a run file without `targets`."""
    release = f"{work}/release"; os.mkdir(release)
    for name, source in (("train.csv", "train_10000.csv"), ("test.csv", "test.csv"), ("id2name4Rec.json", "id2name4Rec.json")):
        shutil.copyfile(f"{data}/{source}", f"{release}/{name}")
    # A valid.csv without rows: otherwise the latest tenth of train would validate and the windows would not be the same.
    with open(f"{release}/valid.csv", "w") as f:
        f.write("user_id,item_ids,timestamp\n")
    last_json(a.itemlm, "prepare", "msl", release, "--out", f"{work}/corpus", "--json")
    with open(f"{work}/run.toml", "w") as f:
        f.write(f"""
[data]
corpus = "{work}/corpus"
prompt = "{a.kind}"
bos = false # as the peer, which adds no special tokens
[llm]
path = "{hf}"
lora = {{ rank = 8, alpha = 16, dropout = 0.0, targets = ["q_proj", "v_proj"] }}
[loss]
kind = "msl"
temperature = 1
[train]
epochs = 1000
batch_size = {a.batch}
micro_batch_size = {a.batch}
warmup_steps = 0
max_grad_norm = 1e9
shuffle = false
valid_windows = 0
""")
    train(f"{work}/untuned", 0)

def targets(steps):
    """How many items a step of the windows asks for with targets = "every": all but a window's first."""
    with open(f"{data}/train_10000.csv") as f:
        lengths = [len(ast.literal_eval(row["item_ids"])) for row, _ in zip(csv.DictReader(f), range(a.batch * steps))]
    return [sum(lengths[n:n + a.batch]) - a.batch for n in range(0, len(lengths), a.batch)]

def train(out, steps, *more):
    found = last_json(a.itemlm, "train", f"{work}/run.toml", "--out", out, "--max-steps", str(steps), "--ui", "none", "--json", *more)
    metrics = f"{out}/metrics.jsonl"
    found["lines"] = [json.loads(line) for line in open(metrics)] if os.path.exists(metrics) else []
    return found

def peer(script, *more):
    return last_json(interpreter, os.path.join(a.peer, script), "--llm", hf, "--data", data, "--kind", a.kind, "--batch", str(a.batch), "--threads", threads, *more)

def rank(scoring, penalty):
    return last_json(a.itemlm, "evaluate", f"{work}/untuned", "--limit", str(a.users), "--scoring", scoring, "--length-penalty", penalty, "--json")

def one_round(number):
    """name → the peer's value, itemlm's"""
    theirs = peer("train_peer.py", "--steps", str(a.steps), "--loss", "msl", "--tau", "1")
    ours = train(f"{work}/last{number}", a.steps)
    every = train(f"{work}/every{number}", a.steps, "--set", 'train.targets="every"')
    after_first = lambda values: values[1:] or values
    samples = a.batch / statistics.median(after_first([line["seconds"] for line in ours["lines"]]))
    asked = statistics.median(after_first([count / line["seconds"] for count, line in zip(targets(a.steps), every["lines"])]))
    losses = f'loss of the first step: {theirs["losses"][0]:.5f} and {ours["lines"][0]["loss"]:.5f}'
    searched = peer("decode_peer.py", "--users", str(a.users))
    full, masked = rank("full", "1"), rank("masked", "0")
    gib = lambda found: found["peak_memory_bytes"] / 2**30
    return losses, {
        "training, samples/s": (theirs["samples_per_second"], samples),
        'training, targets/s, `targets = "every"`': (theirs["samples_per_second"], asked),
        "training, peak memory, GiB": (gib(theirs), gib(ours)),
        'training, peak memory, GiB, `targets = "every"`': (gib(theirs), gib(every)),
        "ranking, users/s, `masked`": (searched["users_per_second"], masked["users_per_second"]),
        "ranking, users/s, `full`": (searched["users_per_second"], full["users_per_second"]),
        "ranking, peak memory, GiB, `full`": (gib(searched), gib(full)),
    }

def table(rounds):
    rows = [f"| {a.kind}, {a.llm} | Python | itemlm | itemlm / Python | least – greatest of {len(rounds)} rounds |", "|---|---|---|---|---|"]
    for name in rounds[0]:
        theirs, ours = ([found[name][side] for found in rounds] for side in (0, 1))
        ratios = [o / t for t, o in zip(theirs, ours)]
        x, y = statistics.median(theirs), statistics.median(ours)
        rows.append(f"| {name} | {x:.3g} | {y:.3g} | {y / x:.2f} | {min(ratios):.2f} – {max(ratios):.2f} |")
    return "\n".join(rows)

with tempfile.TemporaryDirectory() as work:
    interpreter = python(work)
    hf = os.path.abspath(a.hf) if a.hf else f"{work}/hf"
    if not a.hf:
        convert = os.path.join(a.peer, "to_hf.py") if a.llm == "smollm2-135m" else os.path.join(here, "tests/reference/gemma_gguf.py")
        run(interpreter, convert, gguf, hf)
    prepare(work)
    losses, rounds = zip(*(one_round(number) for number in range(a.rounds)))
print(table(rounds))
print(f"\n{losses[0]}. {a.threads} threads of {os.cpu_count()} ({platform.machine()}), {a.steps} steps of {a.batch} windows and {a.users} users a round.")
if a.json:
    with open(a.json, "w") as f:
        json.dump(rounds, f)
