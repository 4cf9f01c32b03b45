"""`itemlm prepare table` of two binaries on one log, in turn: processor time, wall time, and whether all Parquet files are equal byte for byte.

  python3 benches/prepare_ab.py OLD NEW LOG.csv [--rounds 7] [--threads 1,2] [--work DIR]

LOG.csv has the columns user, item, rating, timestamp, title, as `benches/prepare.py` writes it (`log.csv` in its --work) and as --rows N makes
it here. Each round runs both binaries, in another order than the round before, so that a slow drift of the machine hits both. Printed for each
number of threads: the medians, the quartiles of the rounds' ratios NEW / OLD (their distance is the noise), and a JSON line.
Needs Python's standard library alone.
"""
import argparse, filecmp, glob, json, os, random, shutil, statistics, subprocess, sys, tempfile, time

p = argparse.ArgumentParser()
p.add_argument("old"); p.add_argument("new"); p.add_argument("log")
p.add_argument("--rounds", type=int, default=7); p.add_argument("--threads", default="1,2")
p.add_argument("--work", help="folder for the corpora (default: a temporary one)")
p.add_argument("--rows", type=int, help="write LOG first, with so many rows")
a = p.parse_args()

if a.rows:
    rng = random.Random(7)
    with open(a.log, "w") as f:
        f.write("user,item,rating,timestamp,title\n")
        items = sorted(int(a.rows / 60 * rng.random() ** 2.5) for _ in range(a.rows))
        for item in items:
            user = int(a.rows / 12 * rng.random() ** 1.5)
            f.write(f'U{user:08},I{item:06},{rng.randint(1, 5)},{1104537600 + 86400 * rng.randint(0, 5000)},"Title of item {item}, the {item % 9 + 1}th"\n')

def run(binary, out, threads):
    """Seconds of processor and wall time."""
    shutil.rmtree(out, ignore_errors=True)
    command = [binary, "prepare", "table", a.log, *"--user user --item item --time timestamp --title title --rating rating".split(), "--out", out, "--json"]
    environment = {**os.environ, "RAYON_NUM_THREADS": threads, "POLARS_MAX_THREADS": threads}
    started = time.monotonic()
    child = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    message = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        sys.exit(f"{command}: wait status {status}: {message.decode(errors='replace')}")
    return {"cpu": usage.ru_utime + usage.ru_stime, "user": usage.ru_utime, "wall": time.monotonic() - started}

work = a.work or tempfile.mkdtemp(prefix="prepare_ab-")
os.makedirs(work, exist_ok=True)
outs = [os.path.join(work, side) for side in ("old", "new")]
report = {"log": a.log, "rounds": a.rounds}
for threads in a.threads.split(","):
    times = ([], [])
    for number in range(a.rounds):
        for side in ((0, 1), (1, 0))[number % 2]:
            times[side].append(run((a.old, a.new)[side], outs[side], threads))
    files = sorted(os.path.basename(path) for path in glob.glob(outs[0] + "/*.parquet"))
    differ = [name for name in files if not filecmp.cmp(*(f"{out}/{name}" for out in outs), shallow=False)]
    one = {"files": len(files), "differ": differ}
    for what in ("cpu", "user", "wall"):
        old, new = ([round[what] for round in side] for side in times)
        ratios = sorted(n / o for o, n in zip(old, new))
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        one[what] = {"old": round(statistics.median(old), 3), "new": round(statistics.median(new), 3), "ratio": [round(q, 3) for q in quartiles]}
        print(f"{threads} thread(s), {what:4}: old {one[what]['old']:.2f} s, new {one[what]['new']:.2f} s, ratio {quartiles[1]:.3f} "
              f"(quartiles {quartiles[0]:.3f} to {quartiles[2]:.3f})", file=sys.stderr)
    print(f"{threads} thread(s): {len(files)} Parquet files, " + ("all equal" if not differ else f"different: {differ}"), file=sys.stderr)
    report[threads] = one
if not a.work:
    shutil.rmtree(work)
print(json.dumps(report))
