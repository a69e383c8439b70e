"""A verb with sub-verbs whose modules are imported when they are used, each with a line in the verb's own help."""

from __future__ import annotations

from collections.abc import Mapping

from cyclopts import App


def lazy_verbs(name: str, summary: str, verbs: Mapping[str, tuple[str, str]], more: str = "") -> App:
    """verbs: name -> (module:function, one line). more: a last line, of what is elsewhere.

    The lines stand in the summary and not as each command's own help: that is its docstring, with an example, and would
    have to be imported here.
    """
    lines = [summary, "", *(f"{verb}: {says}" for verb, (_, says) in verbs.items())]
    lines += ["", more] if more else []
    app = App(name=name, help="\n".join(lines), help_format="plaintext")
    for verb, (target, _) in verbs.items():
        app.command(target, name=verb)
    return app
