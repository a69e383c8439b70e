"""dacheng compress quantize, sweep, judge: fewer bits, many ways of that beside each other, two models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dacheng.cli.one_stage import carry_out_stage, model_path, said
from dacheng.errors import UsageError

if TYPE_CHECKING:
    from dacheng.life.run import LifeResult

Method = Literal["rtn", "gptq", "awq", "smoothquant", "nf4", "fp8"]
Layout = Literal["dacheng", "compressed-tensors", "gguf"]
_SWEEP = ("rtn:8", "rtn:4", "gptq:4", "awq:4", "rtn:3", "gptq:3", "awq:3", "nf4")


def quantize(
    model: str,
    *,
    out: Path,
    method: Method = "gptq",
    bits: int = 4,
    group: str = "auto",
    asymmetric: bool = False,
    embedding: str | None = None,
    budget_mb: float | None = None,
    calibration: Path | None = None,
    rows: int = 32,
    length: int = 512,
    layout: Layout = "dacheng",
    text: Path | None = None,
    task: Path | None = None,
    no_judge: bool = False,
    again: bool = False,
    seed: int = 0,
    json: bool = False,
) -> int:
    """Puts a model's matrices into fewer bits, and says what that cost. More knobs: recipes/compress/quantize.yaml.

    Example: dacheng compress quantize models/smollm2 --method gptq --bits 4 --out models/smollm2-gptq4

    Parameters
    ----------
    model
        A directory, a GGUF file, or a name from history.
    out
        Where everything goes; the same command goes on from what an interrupted one left.
    method
        rtn rounds; gptq and awq look at a text first; smoothquant is for eight bits in weights and inputs; nf4, fp8.
    bits
        2 to 8, of the integer methods.
    group
        Columns that share a scale, or channel, tensor; auto is the widest of 128, 64, 32 that divides every map.
    asymmetric
        With a zero point.
    embedding
        Format of the embedding and the head: 8g32 when left out, keep for floats.
    budget_mb
        Megabytes of all maps together: bits map by map, fewest where the loss feels it least.
    calibration
        A text of the kind that the model is for (UTF-8 or .gz); Python's own documentation when left out.
    rows
        Stretches of it.
    length
        Tokens of a stretch.
    layout
        dacheng, compressed-tensors (vLLM, transformers) or gguf (llama.cpp).
    text
        Held-out text for the perplexity before and after.
    task
        JSON lines of {"prompt", "choices", "answer"}, for a score before and after.
    no_judge
        Without the table.
    again
        Also a model that is compressed already.
    seed
        Of the places in the calibration text.
    json
        One JSON document on stdout.
    """
    kept = "keep" if layout == "compressed-tensors" else "8g32"
    section = {
        "model": model_path(model), "method": method, "bits": bits, "group": int(group) if group.isdecimal() else group,
        "symmetric": not asymmetric, "embedding": embedding or kept, "rows": rows, "length": length, "layout": layout,
        "judge": not no_judge, "again": again, "seed": seed,
    }  # fmt: skip
    section |= said(budget_mb=budget_mb, calibration=calibration, judge_text=text, task=task)
    return carry_out_stage("quantize", section, out, json)


def sweep(
    model: str,
    /,
    *variants: str,
    out: Path,
    calibration: Path | None = None,
    text: Path | None = None,
    rows: int = 32,
    length: int = 512,
    tokens: int = 8192,
    no_speed: bool = False,
    json: bool = False,
) -> int:
    """Quantises one model in several ways and shows which of them no other beats in both bytes and perplexity.

    Example: dacheng compress sweep models/smollm2 rtn:4 gptq:4 gptq:3 awq:3 nf4 --out runs/sweep

    Parameters
    ----------
    model
        A directory, a GGUF file, or a name from history.
    variants
        method:format, as gptq:4g64, awq:3-channel, rtn:8, nf4; a usual choice when left out.
    out
        Where everything goes: a model of each, sweep.json, pareto.svg. The same command goes on; what is done stays.
    calibration
        A text of the kind that the model is for (UTF-8 or .gz); Python's own documentation when left out.
    text
        Held-out text for the perplexity.
    rows
        Stretches of the calibration text.
    length
        Tokens of a stretch.
    tokens
        Of the held-out text, that are scored.
    no_speed
        Without prefill and decode.
    json
        One JSON document on stdout.
    """
    path = model_path(model)
    shared = {"model": path, "rows": rows, "length": length, "judge_tokens": tokens, "speed": not no_speed}
    shared |= said(calibration=calibration, judge_text=text)
    stages = [_stage(variant, shared) for variant in (variants or _SWEEP)]
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.cli.summary import stage_line
    from dacheng.compress.pareto import Variant, front, plot, table
    from dacheng.formats.json_files import write_json
    from dacheng.life.expand import load_recipe
    from dacheng.life.run import run_life

    use_threads()
    face = reporter()
    life = load_recipe({"name": out.name, "stages": stages})
    result = run_life(life, out, reporter=face, on_stage=stage_line(face, 16))
    points = [Variant.of(name, comparison) for name, comparison in _comparisons(result)]
    best = front(points)
    found = {"model": path, "variants": [point.to_dict() | {"on_front": point.name in best} for point in points]}
    write_json(out / "sweep.json", found)
    if not plot(points, out / "pareto.svg"):
        face.note("no plot: pip install 'dacheng[report]'")
    if json:
        print_json(found)
    else:
        print(table(points))
    return 0


def judge(
    before: str,
    after: str,
    *,
    text: Path | None = None,
    task: Path | None = None,
    tokens: int = 8192,
    kv_dtype: str | None = None,
    no_speed: bool = False,
    json: bool = False,
) -> int:
    """Two models side by side: bytes on disk, resident memory, perplexity and task score, prefill and decode.

    Example: dacheng compress judge models/smollm2 runs/gptq4 --text held_out.txt

    Parameters
    ----------
    before
        A directory, a GGUF file, or a name from history.
    after
        Another, made of it.
    text
        For the perplexity (UTF-8 or .gz).
    task
        JSON lines of {"prompt", "choices", "answer"}.
    tokens
        Of the text, that are scored.
    kv_dtype
        How the second one keeps keys and values: int8, bfloat16.
    no_speed
        Without prefill and decode.
    json
        One JSON document on stdout.
    """
    paths = [Path(model_path(name)) for name in (before, after)]
    from dacheng.cli.console import print_json, reporter, use_threads
    from dacheng.compress.judge import judge as judged

    use_threads()
    with reporter().task("measuring both") as bar:
        found = judged(paths[0], paths[1], text=text, task=task, speed=not no_speed, tokens=tokens, kv_dtype=kv_dtype,
                       progress=bar.update)  # fmt: skip
    if json:
        print_json(found.to_dict())
    else:
        print(f"{found.table()}\n{found.sentence()}")
    return 0


def _stage(variant: str, shared: dict[str, Any]) -> dict[str, Any]:
    """gptq:4g64 -> a stage of that name."""
    method, _, format = variant.partition(":")
    stage: dict[str, Any] = {"name": variant.replace(":", "-"), "do": "quantize", "method": method, **shared}
    if method in ("nf4", "fp8"):
        if format:
            raise UsageError(f"{method} has one format", field="variants", value=variant, remedy=method)
        return stage
    from dacheng.ops.integers import QSpec

    spec = QSpec.parse(format or "4")
    stage |= {"bits": spec.bits, "symmetric": spec.symmetric}
    if isinstance(spec.group, int) or "channel" in format or "tensor" in format:
        stage["group"] = spec.group
    return stage


def _comparisons(result: LifeResult) -> list[tuple[str, dict[str, Any]]]:
    return [
        (stage.name, stage.artifact.metrics["comparison"])
        for stage in result.stages
        if stage.artifact is not None and "comparison" in stage.artifact.metrics
    ]
