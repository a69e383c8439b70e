"""Cohen's kappa by scikit-learn and Krippendorff's alpha by the krippendorff package, on drawn labels with gaps:
python tests/goldens/make_agreement.py, with both installed."""

from __future__ import annotations

import json
import random
from pathlib import Path


def cases() -> list[dict]:
    import krippendorff
    import numpy as np
    from sklearn.metrics import cohen_kappa_score

    found = []
    for seed, annotators, items, values, noise in (
        (1, 2, 40, 3, 0.3),
        (2, 3, 25, 5, 0.5),
        (3, 5, 60, 2, 0.2),
        (4, 4, 12, 5, 0.9),
    ):
        draw = random.Random(seed)
        truth = [draw.randrange(values) - values // 2 for _ in range(items)]
        table = []
        for _ in range(annotators):
            row = [draw.randrange(values) - values // 2 if draw.random() < noise else t for t in truth]
            table.append([None if draw.random() < 0.2 else float(v) for v in row])
        both = [(a, b) for a, b in zip(table[0], table[1]) if a is not None and b is not None]
        data = np.array([[np.nan if v is None else v for v in row] for row in table])
        alphas = {
            level: float(krippendorff.alpha(reliability_data=data, level_of_measurement=level))
            for level in ("nominal", "ordinal", "interval")
        }
        kappa = float(cohen_kappa_score([a for a, _ in both], [b for _, b in both]))
        found.append({"labels": table, "kappa": kappa, "alpha": alphas})
    return found


if __name__ == "__main__":
    path = Path(__file__).parent / "agreement.json"
    path.write_text(json.dumps({"peer": "scikit-learn, krippendorff", "cases": cases()}) + "\n")
