"""Intervals, tests and corrections by scipy, statsmodels and numpy -> statistics/statistics.json. Needs scipy, statsmodels, numpy."""
import json
from pathlib import Path

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

OUT = Path(__file__).parent.parent / "fixtures" / "reference" / "statistics"
rng = np.random.default_rng(7)


def interval(values):
    n, mean, sd = len(values), np.mean(values), np.std(values, ddof=1)
    low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=sd / np.sqrt(n))
    return {"values": list(values), "mean": mean, "sd": sd, "low": low, "high": high}


def wilcoxon(differences, method):
    result = stats.wilcoxon(differences, zero_method="wilcox", correction=False, method=method)
    return {"differences": list(differences), "method": method, "statistic": result.statistic, "p": result.pvalue}


def ndcg(n):
    """NDCG@10 of ranks that are often none: many zeros and ties, as real differences have."""
    ranks = rng.integers(0, 30, n)
    return np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)


def paired(differences):
    differences = np.asarray(differences)
    test = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=10_000, vectorized=False)
    big = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=200_000, vectorized=False, rng=1)
    boot = stats.bootstrap((differences,), np.mean, n_resamples=200_000, method="percentile", rng=2, batch=2000)
    return {
        "differences": list(differences), "exact": bool(2 ** len(differences) <= 10_000),
        "p": test.pvalue if 2 ** len(differences) <= 10_000 else big.pvalue,
        "low": boot.confidence_interval.low, "high": boot.confidence_interval.high,
        "dz": np.mean(differences) / np.std(differences, ddof=1),
    }


normal = lambda n, shift: np.round(rng.normal(shift, 1, n), 6)
p_values = [[0.01, 0.04, 0.03, 0.005], [0.2, 0.2, 0.01], [0.9], list(np.round(rng.uniform(0, 0.2, 12), 6))]
reference = {
    "intervals": [interval(v) for v in ([0.1, 0.2], [0.0512, 0.0498, 0.0533], list(normal(5, 3)), list(normal(31, 0)))],
    "wilcoxon": [
        wilcoxon(normal(6, 0.5), "exact"), wilcoxon(normal(20, 0.3), "exact"), wilcoxon(normal(50, 0.2), "exact"),
        wilcoxon(normal(120, 0.1), "approx"), wilcoxon(ndcg(40) - ndcg(40), "approx"), wilcoxon(ndcg(300) - ndcg(300), "approx"),
    ],
    "paired": [paired(normal(6, 0.8)), paired(normal(12, 0.4)), paired(np.round(ndcg(60) - ndcg(60), 9)), paired(normal(80, 0.2))],
    "holm": [{"p": list(p), "corrected": list(multipletests(p, method="holm")[1])} for p in p_values],
}
OUT.mkdir(parents=True, exist_ok=True)
(OUT / "statistics.json").write_text(json.dumps(reference, default=float) + "\n")
