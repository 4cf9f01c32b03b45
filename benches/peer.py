"""Training and ranking beside the usual Python way (`../shared/peer`), in turn, on the same windows.

  V/bin/python benches/peer.py --peer ../shared/peer --data ../shared/data/office --kind office --hf HF_DIR --itemlm target/release/itemlm
                               [--rounds 1] [--steps 3] [--batch 8] [--micro 2] [--users 8]

HF_DIR is the model as a Hugging Face directory (`to_hf.py` of the peer makes one of a GGUF file). Both sides: f32, 2 threads, LoRA rank 8 on
q_proj and v_proj, no dropout, MSL at temperature 1, ten beams. Prints one JSON line: medians of all rounds, and the ratios.
"""
import argparse, json, os, shutil, statistics, subprocess, sys, tempfile

p = argparse.ArgumentParser()
for name in ("peer", "data", "kind", "hf", "itemlm"):
    p.add_argument("--" + name, required=True)
p.add_argument("--rounds", type=int, default=1); p.add_argument("--steps", type=int, default=3)
p.add_argument("--batch", type=int, default=8); p.add_argument("--micro", type=int, default=2); p.add_argument("--users", type=int, default=8)
a = p.parse_args()
env = {**os.environ, "RAYON_NUM_THREADS": "2"}

def last_json(*command):
    print("+", *command, file=sys.stderr)
    line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=env).stdout.strip().splitlines()[-1]
    print(line, file=sys.stderr, flush=True)
    return json.loads(line)

def peer(script, *more):
    return last_json(sys.executable, os.path.join(a.peer, script), "--llm", a.hf, "--data", a.data, "--kind", a.kind, "--batch", str(a.batch), *more)

with tempfile.TemporaryDirectory() as work:
    release = os.path.join(work, "release"); os.mkdir(release)
    for name, source in (("train.csv", "train_10000.csv"), ("test.csv", "test.csv"), ("id2name4Rec.json", "id2name4Rec.json")):
        shutil.copyfile(os.path.join(a.data, source), os.path.join(release, name))
    # A valid.csv without rows: otherwise the latest tenth of train would validate and the windows would not be the same.
    with open(os.path.join(release, "valid.csv"), "w") as f:
        f.write("user_id,item_ids,timestamp\n")
    last_json(a.itemlm, "prepare", "msl", release, "--out", os.path.join(work, "corpus"), "--json")
    run_file = os.path.join(work, "run.toml")
    with open(run_file, "w") as f:
        f.write(f"""
[data]
corpus = "{work}/corpus"
prompt = "{a.kind}"
[llm]
path = "{os.path.abspath(a.hf)}"
lora = {{ rank = 8, alpha = 16, dropout = 0.0, targets = ["q_proj", "v_proj"] }}
[loss]
kind = "msl"
temperature = 1
[train]
epochs = 1000
batch_size = {a.batch}
micro_batch_size = {a.micro}
warmup_steps = 0
max_grad_norm = 1e9
shuffle = false
valid_windows = 0
""")
    last_json(a.itemlm, "train", run_file, "--out", os.path.join(work, "untuned"), "--max-steps", "0", "--ui", "none", "--json")
    found = {side: {"seconds_per_step": [], "train_peak": [], "users_per_second": [], "decode_peak": []} for side in ("peer", "itemlm")}
    losses = {}
    for number in range(a.rounds):
        out = os.path.join(work, f"run{number}")
        ours = last_json(a.itemlm, "train", run_file, "--out", out, "--max-steps", str(a.steps), "--ui", "none", "--json")
        steps = [json.loads(line) for line in open(os.path.join(out, "metrics.jsonl"))]
        theirs = peer("train_peer.py", "--steps", str(a.steps), "--loss", "msl", "--tau", "1")
        found["itemlm"]["seconds_per_step"].append(statistics.median([s["seconds"] for s in steps][1:]))
        found["itemlm"]["train_peak"].append(ours["peak_memory_bytes"])
        found["peer"]["seconds_per_step"].append(theirs["seconds_per_step"])
        found["peer"]["train_peak"].append(theirs["peak_memory_bytes"])
        losses = {"itemlm": [step["loss"] for step in steps], "peer": theirs["losses"]}
        ours = last_json(a.itemlm, "evaluate", os.path.join(work, "untuned"), "--limit", str(a.users), "--scoring", "full", "--length-penalty", "1", "--json")
        theirs = peer("decode_peer.py", "--users", str(a.users))
        for side, result in (("itemlm", ours), ("peer", theirs)):
            found[side]["users_per_second"].append(result["users_per_second"])
            found[side]["decode_peak"].append(result["peak_memory_bytes"])
    median = {side: {k: statistics.median(v) for k, v in values.items()} for side, values in found.items()}
    i, q = median["itemlm"], median["peer"]
    ratio = {"samples_per_second": q["seconds_per_step"] / i["seconds_per_step"], "users_per_second": i["users_per_second"] / q["users_per_second"],
             "train_peak": i["train_peak"] / q["train_peak"], "decode_peak": i["decode_peak"] / q["decode_peak"]}
    print(json.dumps({"median": median, "ratio": {k: round(v, 3) for k, v in ratio.items()}, "losses": losses}))
