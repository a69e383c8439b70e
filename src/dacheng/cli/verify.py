"""dacheng verify: whether two model directories compute the same."""

from __future__ import annotations

from pathlib import Path

from dacheng.errors import UsageError


def verify(
    model: str, *, against: str, text: list[Path] | None = None, tolerance: float = 1e-3, json: bool = False
) -> int:
    """Compares the logits of two models in float32 on the same tokens. Exit code 0 when they agree, 1 when not.

    Example: dacheng verify models/smollm2 --against other/dir

    Parameters
    ----------
    model
        A model directory, a .gguf file, the directory of a run, or the name of a run (dacheng history).
    against
        The other one.
    text
        A text file (UTF-8) to compare on; may be given several times. Random ids when left out.
    tolerance
        How large the largest difference of logits may be.
    json
        One JSON document on stdout.
    """
    if not tolerance >= 0:
        raise UsageError("not a tolerance", field="--tolerance", value=tolerance, remedy="--tolerance 1e-3")
    from dacheng.cli.models import find_model

    a, b = find_model(model), find_model(against)
    texts = [path.read_text(encoding="utf-8") for path in text] if text else None
    from dacheng.cli.console import print_json, use_threads
    from dacheng.formats.verify import verify as compare

    use_threads()
    found = compare(a, b, texts=texts)
    same = found["max_abs"] <= tolerance
    if json:
        print_json({"model": str(a), "against": str(b), "tolerance": tolerance, "same": same, **found})
    else:
        print(f"largest difference of logits  {found['max_abs']:.3g} (mean {found['mean_abs']:.3g})")
        print(f"same most likely token        {100 * found['top1_agreement']:.2f}% of {found['positions']:,} positions")
        print(f"KL divergence                 {found['kl']:.3g} nats a position, on {found['input']}")
        print("they agree" if same else f"they differ: more than {tolerance:g}")
    return 0 if same else 1
