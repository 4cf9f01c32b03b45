"""NDCG, HR and MRR of ranked windows and two paired tests by ranx -> statistics/ranx.json. Needs ranx.

ranx's `compare` gives Student's paired t-test, and Fisher's randomisation test by random draws. scipy's p of Student's test must be ranx's.
"""
import json
from pathlib import Path

import numpy as np
from ranx import Qrels, Run, evaluate
from ranx.statistical_tests.fisher_randomization_test import fisher_randomization_test
from ranx.statistical_tests.paired_student_t_test import paired_student_t_test
from scipy import stats

OUT = Path(__file__).parent.parent / "fixtures" / "reference" / "statistics"
METRICS = [f"{name}@{k}" for name in ("ndcg", "hit_rate", "mrr") for k in (1, 3, 5, 10)]
rng = np.random.default_rng(11)


def ranks(n, found):
    """0-based ranks of the targets in lists of 10; None where they are not in them."""
    return [int(rng.integers(0, 10)) if rng.random() < found else None for _ in range(n)]


def case(n, found_a, found_b):
    both = {"a": ranks(n, found_a), "b": ranks(n, found_b)}
    qrels = Qrels({f"w{w}": {"target": 1} for w in range(n)})
    case, ndcg = {}, []
    for name, list_of in both.items():
        lists = {
            f"w{w}": {("target" if rank == at else f"item{at}"): 10.0 - at for at in range(10)} for w, rank in enumerate(list_of)
        }
        run = Run(lists, name=name)
        ndcg.append(evaluate(qrels, run, "ndcg@10", return_mean=False))
        case[name] = {
            "ranks": list_of,
            "means": {metric.replace("hit_rate", "hr"): float(evaluate(qrels, run, metric)) for metric in METRICS},
        }
    a, b = ndcg
    student = paired_student_t_test(a, b, max_p=0.05)
    fisher = fisher_randomization_test(a, b, 200_000, 0.05, 1)
    case["student"] = float(student[0])
    case["randomisation"] = float(fisher[0])
    assert abs(case["student"] - stats.ttest_rel(a, b).pvalue) < 1e-9
    return case


OUT.mkdir(parents=True, exist_ok=True)
(OUT / "ranx.json").write_text(json.dumps([case(40, 0.6, 0.3), case(80, 0.4, 0.35), case(25, 0.5, 0.5)]) + "\n")
