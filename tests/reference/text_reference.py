"""TF-IDF of titles and the scores of `text` by scikit-learn -> text/text.json; vectors by LAPACK's SVD -> text/svd.json.

Needs scikit-learn, scipy and numpy."""
import json
import random
from pathlib import Path

import numpy as np
from scipy.linalg import svd
from sklearn.feature_extraction.text import TfidfVectorizer

OUT = Path(__file__).parent.parent / "fixtures" / "reference" / "text"
# Words of one letter, repeated words, entities, digits, underscores, accents, other scripts, numbers that are no digits, no word at all.
TITLES = [
    "The Hobbit, or There and Back Again",
    "The Hobbit: An Unexpected Journey (The Hobbit #1)",
    "Back to the Future II",
    "A B C",
    "Labeling Tape, &frac12;&quot; x 23', Bla_ck",
    "Élan vital: l'élan des ÉTUDES",
    "Война и мир. Том 2",
    "战争与和平 第2卷",
    "tape tape tape x2 ½½ IV",
    "",
    "The Two Towers; the two",
    "Ink-Jet Paper 8.5x11 - 500 sheets",
    "ink jet paper, 500 SHEETS",
    "STRASSE straße İstanbul ΟΔΥΣΣΕΥΣ",
]
HISTORIES = [[0], [1, 0, 2], [4, 8, 4], [9, 3], [11, 10, 6, 5], [7, 13]]


def scores(vectors, history, exponent, decay):
    cosines = (vectors @ vectors.T).toarray()
    total = np.zeros(len(TITLES))
    for age, item in enumerate(reversed(history)):
        total += decay ** age * np.maximum(cosines[item], 0) ** exponent
    total[history] = 0
    return total.tolist()


cases = []
for longest, exponent, decay in [(2, 2.0, 0.75), (1, 1.0, 0.5), (3, 3.5, 1.0)]:
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, longest))
    vectors = vectorizer.fit_transform(TITLES).tocsr()
    cases.append({
        "ngrams": longest, "exponent": exponent, "decay": decay, "vocabulary": len(vectorizer.vocabulary_),
        "cosines": (vectors @ vectors.T).toarray().tolist(),
        "weights": [sorted(vectors[i].data.tolist()) for i in range(len(TITLES))],
        "scores": [scores(vectors, history, exponent, decay) for history in HISTORIES],
    })
OUT.mkdir(parents=True, exist_ok=True)
(OUT / "text.json").write_text(json.dumps({"titles": TITLES, "histories": HISTORIES, "cases": cases}, ensure_ascii=False) + "\n")

# Latent semantic analysis: the first columns of U Sigma, as TruncatedSVD defines them, from the dense decomposition.
DIM = 3
draw = random.Random(5)
TOPICS = ["fountain pen ink nib", "garden hose brass nozzle", "usb cable charger braided", "story of the lost king"]
EXTRA = "black blue red large small set pack new classic deluxe".split()
titles = []
for topic, count in zip(TOPICS, (20, 14, 9, 6)):
    words = topic.split()
    titles += [" ".join(draw.sample(words, draw.randint(2, 4)) + draw.sample(EXTRA, draw.randint(0, 2))) for _ in range(count)]
matrix = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)).fit_transform(titles).toarray()
u, sigma, _ = svd(matrix, full_matrices=False)
# itemlm iterates with 10 columns more: what is left of the first direction outside them after 12 multiplications by X X^T.
print("singular values", sigma[:DIM + 1].round(3), "convergence %.1e" % (sigma[DIM + 10] / sigma[DIM - 1]) ** 24)
assert min(sigma[:DIM] - sigma[1:DIM + 1]) > 0.05
(OUT / "svd.json").write_text(json.dumps({"titles": titles, "vectors": (u * sigma)[:, :DIM].round(7).tolist()}) + "\n")
