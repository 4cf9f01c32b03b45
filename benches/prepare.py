"""Raw log → corpus beside the usual pandas way (`tests/reference/prepare_pandas.py`), in turn, on a generated log, same output checked.

  V/bin/python benches/prepare.py --work DIR --itemlm target/release/itemlm [--rows 10000000] [--rounds 1] [--logs amazon,table]

Writes to DIR, once, a seeded log: Zipf items, users of very different activity, times of whole days (so many ties), 3 % of the items without
a title; as reviews and metadata of Amazon 2018 (JSON lines of about 300 bytes, grouped by item as the real ones are) and as one CSV
(user, item, rating, timestamp, title). 10 million rows take about 4 GB. Then for each: pandas; itemlm with 1 thread, with 2, and with --memory of
a third of the log's size. Wall and processor time, rows a second, peak resident memory (wait4's ru_maxrss); a JSON line of the medians and ratios at the end.
Needs numpy, pandas, pyarrow.
"""
import argparse, json, os, shutil, statistics, sys, time

p = argparse.ArgumentParser()
p.add_argument("--work", required=True); p.add_argument("--itemlm", required=True)
p.add_argument("--rows", type=int, default=10_000_000); p.add_argument("--rounds", type=int, default=1)
p.add_argument("--logs", default="amazon,table"); p.add_argument("--seed", type=int, default=7)
a = p.parse_args()
here = os.path.dirname(os.path.abspath(__file__))

def apart(work, *arguments):
    """Runs `work` in a process of its own: the peak memory of a child counts what its parent held when it began, so this one stays small."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(*arguments)
            code = 0
        except BaseException as error:
            print(f"{work.__name__}: {error!r}", file=sys.stderr, flush=True)
        os._exit(code)
    if os.waitpid(pid, 0)[1] != 0:
        sys.exit(1)

def ids(prefix, count, width, rng):
    """Distinct ids of letters and digits, in no order."""
    import numpy as np
    DIGITS = np.frombuffer(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ", dtype="S1")
    numbers = rng.permutation(count).astype(np.int64) * 7919 + 36 ** (width - 1)
    digits = [DIGITS[numbers // 36**place % 36] for place in reversed(range(width))]
    return [prefix + text for text in np.stack(digits, axis=1).view(f"S{width}")[:, 0].astype(str)]

def generate(folder):
    import numpy as np
    rng = np.random.default_rng(a.seed)
    users, items = max(a.rows // 10, 10), max(a.rows // 60, 10)
    def draw(weights):
        return np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(a.rows), side="right").clip(max=len(weights) - 1)
    who = draw(rng.pareto(1.3, users) + 0.2)
    what = np.sort(draw(1 / np.arange(1, items + 1) ** 0.9))
    what = rng.permutation(items)[what]  # Popular items anywhere in the order of ids; rows stay grouped by item.
    when = (rng.beta(4, 1, a.rows) * 5000).astype(np.int64) * 86400 + 1_104_537_600
    stars = rng.choice([1, 2, 3, 4, 5], a.rows, p=[0.06, 0.05, 0.09, 0.2, 0.6])
    names, asins = ids("A", users, 12, rng), ids("B0", items, 8, rng)
    words = ["Classic", "Deluxe", "Steel", "Paper", "Garden", "Pocket", "Blue", "Kids'", "Atlas", "Lamp", "Guide", "12-Pack", "&amp; More", "Set"]
    picked = rng.integers(0, len(words), (items, 4))
    titles = [None if i % 33 == 0 else " ".join(words[w] for w in picked[i]) + f", {i}" for i in range(items)]
    with open(f"{folder}/meta.json", "w") as f:
        for asin, title in zip(asins, titles):
            f.write(json.dumps({"category": ["Office Products", "Paper"], "tech1": "", "description": ["A thing, in its box."], "title": title or "",
                                "also_buy": [asin], "brand": "Brand", "rank": "1,234 in Office Products", "main_cat": "Office Products",
                                "price": "$9.99", "asin": asin}) + "\n")
    with open(f"{folder}/reviews.json", "w") as reviews, open(f"{folder}/log.csv", "w") as table:
        table.write("user,item,rating,timestamp,title\n")
        for low in range(0, a.rows, 200_000):
            part = slice(low, low + 200_000)
            rows = list(zip(who[part].tolist(), what[part].tolist(), when[part].tolist(), stars[part].tolist()))
            reviews.write("".join(
                f'{{"overall": {s}.0, "verified": true, "reviewTime": "09 13, 2009", "reviewerID": "{names[u]}", "asin": "{asins[i]}", "style": '
                f'{{"Format:": " Paper"}}, "reviewerName": "Jo Doe", "reviewText": "It does what it says, \\"as advertised\\"; the box came in time and I '
                f'would buy it again.", "summary": "Does what it says", "unixReviewTime": {t}}}\n' for u, i, t, s in rows))
            table.write("".join(
                f'{names[u]},{asins[i]},{s}.0,{t},{chr(34) + titles[i] + chr(34) if titles[i] else ""}\n' for u, i, t, s in rows))

def run(*command, **env):
    """The JSON a command prints last, its seconds, those of its processor time, its peak memory in MiB."""
    print("+", " ".join(f"{k}={v}" for k, v in env.items()), *command, file=sys.stderr, flush=True)
    read, write = os.pipe()
    started = time.monotonic()
    pid = os.posix_spawn(command[0], command, {**os.environ, **env}, file_actions=[(os.POSIX_SPAWN_DUP2, write, 1), (os.POSIX_SPAWN_CLOSE, read)])
    os.close(write)
    with os.fdopen(read) as f:
        text = f.read()
    _, status, usage = os.wait4(pid, 0)
    seconds = time.monotonic() - started
    if status != 0:
        sys.exit(f"{command}: wait status {status}")
    peak, cpu = usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime
    print(f"  {seconds:.1f} s, {cpu:.1f} s of processor time, {a.rows / seconds / 1e6:.2f} million rows/s, {peak:.0f} MiB", file=sys.stderr, flush=True)
    return json.loads(text.strip().splitlines()[-1]), {"seconds": seconds, "cpu_seconds": cpu, "peak_mib": peak}

def same(ours, theirs):
    """Do both folders hold the same corpus?"""
    import pyarrow.parquet as pq
    for name, columns in [("items", ["item", "id", "title"]), ("interactions", ["user", "user_id", "item", "timestamp", "rating"]),
                          *((f"windows-{split}", ["user", "start", "len", "timestamp"]) for split in ("train", "valid", "test"))]:
        pair = [pq.read_table(f"{folder}/{name}.parquet", columns=columns) for folder in (ours, theirs)]
        for column in columns:
            kind = "large_string" if column in ("id", "title", "user_id") else "double"
            x, y = (table[column].cast(kind).combine_chunks() for table in pair)
            if not x.equals(y):
                raise SystemExit(f"{name}.{column} differs between {ours} and {theirs}")

os.makedirs(a.work, exist_ok=True)
done = f"{a.work}/generated-{a.rows}-{a.seed}"
if not os.path.exists(done):
    apart(generate, a.work)
    open(done, "w").close()
out = {"rows": a.rows, "rounds": a.rounds}
for log in a.logs.split(","):
    inputs = {"amazon": [f"{a.work}/reviews.json", f"{a.work}/meta.json"], "table": [f"{a.work}/log.csv"]}[log]
    size = os.path.getsize(inputs[0])
    columns = [] if log == "amazon" else "--user user --item item --time timestamp --title title --rating rating".split()
    limit = max(size // 3 >> 20, 256)
    corpora = {side: f"{a.work}/{log}-{side}" for side in ("pandas", "1", "2", "third")}
    found = {side: {"seconds": [], "cpu_seconds": [], "peak_mib": []} for side in corpora}
    counts = {}
    for number in range(a.rounds):
        for side, corpus in corpora.items():
            shutil.rmtree(corpus, ignore_errors=True)
            if side == "pandas":
                result = run(sys.executable, f"{here}/../tests/reference/prepare_pandas.py", log, *inputs, corpus)
            else:
                threads = "2" if side == "third" else side
                more = ["--memory", f"{limit}MB"] if side == "third" else []
                result = run(os.path.abspath(a.itemlm), "prepare", log, *inputs, *columns, "--out", corpus, "--json", *more,
                             RAYON_NUM_THREADS=threads, POLARS_MAX_THREADS=threads)
            counts[side] = {key: result[0][key] for key in ("users", "items", "interactions", "windows")}
            for key, value in result[1].items():
                found[side][key].append(value)
            if counts[side] != counts["pandas"]:
                sys.exit(f"{log}: {side} gives {counts[side]}, pandas {counts['pandas']}")
            if side != "pandas" and number == 0:
                apart(same, corpus, corpora["pandas"])
    median = {side: {k: round(statistics.median(v), 1) for k, v in values.items()} for side, values in found.items()}
    base = median["pandas"]
    out[log] = {
        "log_mib": size >> 20, "limit_mib": limit, "counts": counts["pandas"], "median": median,
        "rows_per_second": {side: round(a.rows / m["seconds"]) for side, m in median.items()},
        "times_faster": {side: round(base["seconds"] / m["seconds"], 2) for side, m in median.items()},
        "share_of_memory": {side: round(m["peak_mib"] / base["peak_mib"], 3) for side, m in median.items()},
        "within_limit": median["third"]["peak_mib"] <= limit,
    }
    print(json.dumps(out[log]), file=sys.stderr, flush=True)
print(json.dumps(out))
