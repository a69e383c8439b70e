"""dacheng compress prune, merge, experts: fewer weights, fewer parts, one model of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from dacheng.cli.one_stage import carry_out_stage, model_path, said
from dacheng.errors import UsageError

Pruning = Literal["magnitude", "wanda", "sparsegpt", "layers", "heads", "neurons", "width", "vocabulary", "low_rank"]
Merging = Literal["linear", "slerp", "task_arithmetic", "ties", "dare_linear", "dare_ties", "upcycle"]


def prune(
    model: str,
    *,
    out: Path,
    method: Pruning = "wanda",
    sparsity: str = "0.5",
    count: int | None = None,
    ratio: float = 0.8,
    text: Path | None = None,
    heal_steps: int = 0,
    judge_text: Path | None = None,
    speed: bool = False,
    dense: bool = False,
    dtype: str | None = None,
    seed: int = 1,
    json: bool = False,
) -> int:
    """Makes a model sparser or smaller, and says what that cost. More knobs: recipes/compress/prune.yaml.

    Example: dacheng compress prune models/smollm2 --method layers --count 5 --text notes.txt --out runs/shallow

    Parameters
    ----------
    model
        A directory, a GGUF file, or a name from history.
    out
        Where everything goes; the same command goes on from what an interrupted one left.
    method
        Zeros by magnitude, wanda or sparsegpt; layers, heads, neurons, width or vocabulary to cut out; low_rank.
    sparsity
        Of zeros: a share (0.5) or n of m (2:4).
    count
        Layers that go; heads, neurons or channels that stay.
    ratio
        Of low_rank: the share of a matrix's numbers that stays.
    text
        What calibrates, and heals; of the kind that the model is for (UTF-8 or .gz).
    heal_steps
        Steps of training afterwards, with adapters that are merged.
    judge_text
        Held-out text for the perplexity before and after.
    speed
        Also measure prefill and decode.
    dense
        Store zeros too, as transformers wants them; else they are left out on disk.
    dtype
        float32, bfloat16, float16: of what is stored; as it was when left out.
    seed
        Of the calibration text and of the healing.
    json
        One JSON document on stdout.
    """
    section = {"method": method, "sparsity": sparsity, "ratio": ratio, "heal_steps": heal_steps, "speed": speed}
    section |= {"seed": seed, "sparse": not dense} | said(count=count, text=text, judge_text=judge_text, dtype=dtype)
    return carry_out_stage("prune", {"model": model_path(model)} | section, out, json)


def merge(
    models: list[str],
    /,
    *,
    out: Path,
    method: Merging = "linear",
    base: str | None = None,
    weights: str | None = None,
    t: float = 0.5,
    density: float = 0.5,
    scale: float = 1.0,
    experts: int = 8,
    per_token: int = 2,
    judge_text: Path | None = None,
    dtype: str | None = None,
    seed: int = 1,
    json: bool = False,
) -> int:
    """One model of several that were tuned from one base, or experts of one.

    Example: dacheng compress merge runs/a/model runs/b/model --method ties --base models/smollm2 --out runs/merged

    Parameters
    ----------
    models
        Directories, GGUF files, or names from history.
    out
        Where everything goes.
    method
        linear, slerp, task_arithmetic, ties, dare_linear, dare_ties; upcycle makes experts of one dense model.
    base
        What they were tuned from: task_arithmetic, ties and dare add up differences from it.
    weights
        One for each model: 0.7,0.3.
    t
        Of slerp: from the first (0) to the second (1).
    density
        Of ties and dare: the share of a difference that stays.
    scale
        Multiplies the summed differences.
    experts
        Of upcycle.
    per_token
        Of upcycle: how many of them a token goes through.
    judge_text
        Held-out text for the perplexity of the first model and of the merged one.
    dtype
        float32, bfloat16, float16: of what is stored.
    seed
        Of dare's choices and of upcycle's routers.
    json
        One JSON document on stdout.
    """
    if not models:
        raise UsageError("no model is named", field="MODELS", remedy="dacheng compress merge A B --out runs/merged")
    section: dict[str, Any] = {
        "method": method, "models": [model_path(model) for model in models], "t": t, "density": density, "scale": scale,
        "experts": experts, "per_token": per_token, "seed": seed,
    }  # fmt: skip
    section |= said(base=None if base is None else model_path(base), judge_text=judge_text, dtype=dtype)
    if weights is not None:
        section["weights"] = _numbers(weights)
    return carry_out_stage("merge", section, out, json)


def experts(model: str, *, text: Path, rows: int = 16, length: int = 256, json: bool = False) -> int:
    """Which experts a mixture uses on a text, layer by layer.

    Example: dacheng compress experts runs/moe --text notes.txt

    Parameters
    ----------
    model
        A directory, or a name from history.
    text
        UTF-8 or .gz, of the kind that the model is for.
    rows
        Stretches of the text.
    length
        Tokens of a stretch.
    json
        One JSON document on stdout.
    """
    from types import SimpleNamespace

    path = Path(model_path(model))
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.compress.experts import expert_usage
    from dacheng.stages.compressing import open_model, text_batches

    use_threads()
    opened = open_model(path, reporter())
    settings = SimpleNamespace(rows=rows, length=length, seed=1)
    usage = expert_usage(opened.model, text_batches(opened, text, settings, targets=True))
    if json:
        print_json(usage.to_dict())
    else:
        print(usage.table())
    return 0


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError("not numbers", field="--weights", value=text, remedy="--weights 0.7,0.3") from None
