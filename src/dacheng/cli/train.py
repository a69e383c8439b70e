"""dacheng train: one training recipe, with everything that it needs before it."""

from __future__ import annotations

from pathlib import Path


def train(
    recipe: Path,
    *overrides: str,
    out: Path | None = None,
    prices: Path | None = None,
    json: bool = False,
) -> int:
    """Trains what a recipe says; its data and tokenizer are prepared first, and what is done already stays.

    Example: dacheng train recipes/pretrain/tiny.yaml train.steps=200
    Example: dacheng train recipes/adapt/lora.yaml adapt.seconds=120
    Example: dacheng train recipes/align/sft.yaml sft.method=full

    Parameters
    ----------
    recipe
        YAML with do: train and sections data, tokenizer, tokens, train; or do: adapt, sft, prefer, reward, reinforce,
        classify or distil, and a section of that name.
    overrides
        section.key=value, as often as you like.
    out
        Where everything goes; runs/NAME, with the recipe's name, when left out.
    prices
        Your prices of power, hardware and labour (YAML); assumed ones are marked so.
    json
        One JSON document on stdout: stages, artifacts, metrics, costs.
    """
    from dacheng.cli.run import carry_out
    from dacheng.life.expand import load_recipe

    stages = ("train", "adapt", "sft", "prefer", "reward", "reinforce", "classify", "distil")
    return carry_out(load_recipe(recipe, overrides, do=stages), out, prices, json)
