"""dacheng compress: fewer bits, fewer weights, a smaller student. A sub-verb's module is imported when it is used."""

from __future__ import annotations

from cyclopts import App

app = App(name="compress", help="Make a model smaller or faster, and see what that costs.")

_VERBS = {
    "quantize": "dacheng.cli.compress_quantize:quantize",
    "sweep": "dacheng.cli.compress_quantize:sweep",
    "judge": "dacheng.cli.compress_quantize:judge",
    "prune": "dacheng.cli.compress_prune:prune",
    "distil": "dacheng.cli.compress_distil:distil",
    "merge": "dacheng.cli.compress_prune:merge",
    "experts": "dacheng.cli.compress_prune:experts",
}

for _name, _target in _VERBS.items():
    app.command(_target, name=_name)
