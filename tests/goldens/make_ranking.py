"""Makes tests/goldens/ranking.json: measures of random runs by trec_eval's own code.

    python tests/goldens/make_ranking.py      # made with pytrec-eval-terrier 0.5.11

Runs have ties, more and fewer documents than are judged, and unjudged ones; some queries have nothing
that is relevant, or found. Each line: scores, relevance, and the measures.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytrec_eval

MEASURES = {"ndcg_cut.1,5,10,100", "ndcg", "recall.1,5,10,100", "recip_rank", "map", "map_cut.5,10"}


def main() -> None:
    draw = random.Random(0)
    lines = []
    for number in range(60):
        documents = [f"d{i}" for i in range(draw.choice([1, 3, 12, 40, 150]))]
        judged = draw.sample(documents, draw.randint(1, len(documents)))
        grades = draw.choice([[0, 1], [0, 0, 0, 1, 2, 3], [0, 0, 5, 1], [0]])
        relevance = {document: draw.choice(grades) for document in judged}
        relevance |= {f"never_found{i}": draw.choice([0, 1, 2]) for i in range(draw.choice([0, 0, 1, 5]))}
        steps = draw.choice([3, 10, 10**6])
        close = 1e-9 if number % 10 == 0 else 0  # differences that single precision does not have
        run = {
            document: draw.randint(0, steps) / steps + close * draw.random()
            for document in draw.sample(documents, draw.randint(1, len(documents)))
        }
        query = f"q{number}"
        found = pytrec_eval.RelevanceEvaluator({query: relevance}, MEASURES).evaluate({query: run})[query]
        lines.append({"scores": run, "relevance": relevance, "measures": found})
    path = Path(__file__).with_name("ranking.json")
    path.write_text("[\n" + ",\n".join(json.dumps(line) for line in lines) + "\n]\n")


if __name__ == "__main__":
    main()
