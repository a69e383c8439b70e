"""dacheng compress distil: a smaller student of a classifier or a language model."""

from __future__ import annotations

from pathlib import Path

from dacheng.cli.one_stage import carry_out_stage, model_path, said


def distil(
    teacher: str,
    /,
    *data: str,
    out: Path,
    layers: int | None = None,
    epochs: float | None = None,
    steps: int | None = None,
    minutes: float | None = None,
    held_out: str | None = None,
    vocabulary: int | None = None,
    int8: bool = False,
    beta: float = 0.0,
    share: float = 0.0,
    text: Path | None = None,
    seed: int = 1,
    json: bool = False,
) -> int:
    """Trains a model with some of the teacher's layers to say what the teacher says, and shows both beside each other.

    Example: dacheng compress distil runs/intents/model texts.jsonl --layers 3 --epochs 4 --out runs/student

    Parameters
    ----------
    teacher
        A classifier's directory (do: classify), or a language model's.
    data
        For a classifier: JSON lines, CSV or TSV of texts and labels, or file.json#split. For a language model:
        conversations (JSON lines of messages), or plain text (.txt, .md).
    out
        Where everything goes; the same command goes on from what an interrupted one left.
    layers
        How many of the teacher's, evenly spread; half when left out.
    epochs
        Of a classifier's data.
    steps
        At most so many.
    minutes
        At most so long.
    held_out
        Of a classifier: labelled texts for the table.
    vocabulary
        Of a classifier: tokens that stay; 0 for those of the data alone.
    int8
        Of a classifier: weights in eight bits.
    beta
        Of a language model: 0 for KL(teacher ‖ student), 1 for the reverse, between for both.
    share
        Of a language model: the share of steps on the student's own answers (on-policy).
    text
        Of a language model: held-out text for the table.
    seed
        Of the order and of dropout.
    json
        One JSON document on stdout.
    """
    section = {"teacher": model_path(teacher), "data": list(data), "seed": seed}
    section |= said(layers=layers, epochs=epochs, steps=steps, minutes=minutes, vocabulary=vocabulary, judge_text=text)
    section |= {name: value for name, value in (("int8", int8), ("beta", beta), ("share", share)) if value}
    if held_out is not None:
        section["held_out"] = [held_out]
    return carry_out_stage("distil", section, out, json)
