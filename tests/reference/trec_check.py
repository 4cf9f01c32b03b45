"""NDCG of `evaluate --trec DIR` (or `baseline --trec DIR`) by ranx, beside ours. Needs ranx.

    itemlm baseline cooccurrence CORPUS --trec DIR --json > baseline.json
    python tests/reference/trec_check.py DIR baseline.json
"""
import json
import sys
from pathlib import Path

from ranx import Qrels, Run, evaluate

folder, report = Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text())
split = report["split"]
qrels = Qrels.from_file(str(folder / f"qrels-{split}.txt"), kind="trec")
run = Run.from_file(str(folder / f"run-{split}.txt"), kind="trec")
worst = 0.0
for theirs, ours in (("ndcg", "ndcg"), ("hit_rate", "hr"), ("mrr", "mrr")):
    for k in (1, 5, 10):
        value = evaluate(qrels, run, f"{theirs}@{k}")
        difference = abs(value - report["metrics"][f"{ours}@{k}"])
        worst = max(worst, difference)
        print(f"{ours}@{k}: ranx {value:.9f}, itemlm {report['metrics'][f'{ours}@{k}']:.9f}, difference {difference:.1e}")
sys.exit(0 if worst <= 1e-6 else "the largest difference is above 1e-6")
