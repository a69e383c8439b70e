"""dacheng align report: the page of a run that learnt from rewards."""

from __future__ import annotations

from pathlib import Path


def report(run: Path, *, json: bool = False) -> int:
    """Writes RUN/report.html: reward against KL, lengths, entropy, who wins, answers side by side; says the findings.

    Example: dacheng align report runs/grpo/reinforce

    Parameters
    ----------
    run
        The directory of a `do: reinforce` stage, or of train_policy.
    json
        One JSON document on stdout.
    """
    from dacheng.align.reinforce.report import findings, read_story, write_report
    from dacheng.cli.console import print_json

    page = write_report(run, title=f"Learning from rewards: {run.name}")
    notes = findings(read_story(run))
    if json:
        print_json({"report": str(page), "findings": notes})
        return 0
    print("\n".join([*notes, str(page)]))
    return 0
