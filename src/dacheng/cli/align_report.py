"""dacheng align report: the page of a run that learnt from rewards."""

from __future__ import annotations

from pathlib import Path


def report(run: Path, *, json: bool = False) -> int:
    """Writes RUN/report.html: reward against KL, lengths, entropy, who wins, answers side by side; says the findings.

    Example: dacheng align report runs/grpo

    Parameters
    ----------
    run
        What dacheng train wrote for a recipe of do: reinforce, a life or the stage in it, or train_policy.
    json
        One JSON document on stdout.
    """
    from dacheng.align.reinforce.report import findings, read_story, stage_of, write_report
    from dacheng.cli.console import print_json

    stage = stage_of(run)
    page = write_report(stage, title=f"Learning from rewards: {run.name}")
    notes = findings(read_story(stage))
    if json:
        print_json({"report": str(page), "findings": notes})
        return 0
    print("\n".join([*notes, str(page)]))
    return 0
