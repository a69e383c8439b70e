"""dacheng import: a model from anywhere, as a model directory."""

from __future__ import annotations

from pathlib import Path


def import_(source: str, *, out: Path, dtype: str | None = None, json: bool = False) -> int:
    """Writes a model directory from a package, another directory, a GGUF file or the Hugging Face hub.

    Example: dacheng import smollm2 --out models/smollm2

    What an interrupted import has fetched is kept beside OUT: the same command goes on from there. The hub is asked
    only for hf:…; HF_ENDPOINT names a mirror, HTTPS_PROXY a proxy, HF_TOKEN who you are. Pickles and code are never
    fetched.

    Parameters
    ----------
    source
        smollm2 or gemma3-270m (from pip packages), a directory, a .gguf file, or hf:org/name@revision (with :file.gguf
        for one GGUF file of it).
    out
        Where the model directory goes.
    dtype
        float32, bfloat16, float16: of the weights. When left out they stay what they are, and quantised ones become
        bfloat16.
    json
        One JSON document on stdout.
    """
    from dacheng.cli.console import amount, print_json, reporter, use_threads
    from dacheng.formats.importing import import_model

    use_threads()
    face = reporter()
    with face.task(f"importing {source}", unit="B") as task:

        def progress(done: int, total: int) -> None:
            task.update(done, total=total)

        made = import_model(source, out, dtype=dtype, note=face.note, progress=progress)
    for note in made.notes:
        face.note(note)
    if json:
        print_json({"model": str(made.directory), "parameters": made.parameters, "dtype": made.dtype,
                    "source": made.source, "notes": made.notes})  # fmt: skip
        return 0
    license_ = made.source.get("license")
    print(
        f"{made.directory}: {amount(made.parameters)} parameters, {made.dtype}"
        + (f", licence {license_}" if license_ else "")
    )
    print(f'try it: dacheng generate --model {made.directory} --prompt "The capital of France is" --max-tokens 16')
    return 0
