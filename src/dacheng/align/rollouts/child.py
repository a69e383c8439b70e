"""python -m dacheng.align.rollouts.child FOLDER STORE COMMANDS: a process that writes rollouts (see processes.py).

FOLDER holds the model's traits, the sampling and the tokenizer. Commands come as lines of JSON on the descriptor
COMMANDS, answers go to standard output, a line each; weights come over STORE. It ends when standard input closes.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from dacheng.adapt.worker import end_with_parent

SETUP, TOKENIZER = "setup.json", "tokenizer"


def main(arguments: list[str]) -> int:
    from dacheng.errors import DachengError

    end_with_parent()
    folder, store, commands = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever else prints goes to the log
    with open(commands, encoding="utf-8") as lines:
        try:
            _serve(folder, store, lines, answers)
        except DachengError as error:
            told = {"problem": error.problem, "field": error.field, "value": repr(error.value), "remedy": error.remedy}
            answers.write(json.dumps({"error": told}) + "\n")
            answers.flush()
            return 1
    return 0


def _serve(folder: Path, store: Path, lines: Any, answers: Any) -> None:
    import torch

    from dacheng.align.rollouts.ask import Ask, Sampling
    from dacheng.align.rollouts.inline import InlineWorker
    from dacheng.align.rollouts.weights import WRITER, WeightLink, plain_names
    from dacheng.formats.json_files import read_json
    from dacheng.models.decoder import Decoder
    from dacheng.models.traits import DecoderTraits
    from dacheng.recipes import build
    from dacheng.text import Tokenizer

    setup = read_json(folder / SETUP)
    torch.set_num_threads(setup["threads"])
    traits = DecoderTraits.from_dict(setup["traits"])
    model = Decoder(traits).requires_grad_(False).eval()
    parameters = dict(model.named_parameters())
    worker = InlineWorker(model, Tokenizer.load(folder / TOKENIZER), build(Sampling, setup["sampling"], "sampling"))
    link = WeightLink(store, WRITER)
    for line in lines:
        command = json.loads(line)
        if command["do"] == "weights":
            link.receive(parameters[name] for name in plain_names(traits))
            worker.update_weights(model, command["version"])
            answer: dict[str, Any] = {"version": command["version"]}
        else:
            asks = [Ask(a["id"], tuple(a["prompt_ids"]), a["group"], a["seed"], a["meta"]) for a in command["asks"]]
            answer = {"rollouts": [rollout.to_dict() for rollout in worker.generate(asks)]}
        answers.write(json.dumps(answer, ensure_ascii=False) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
