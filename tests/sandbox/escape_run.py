"""Runs the programs of a JSON file ({name: program}) in the sandbox and prints {name: [status, stdout, stderr]}.

A process of its own, so that it can be another user's and another Python's. First word: the mechanism.
"""

from __future__ import annotations

import json
import os
import sys

from dacheng.sandbox import Limits, available, run_python


def main() -> None:
    mechanism, path = sys.argv[1:3]
    with open(path) as file:
        programs = json.load(file)
    found = available()
    results = {"available": [found, os.getuid(), ""]}
    if found and mechanism in found:
        for name, program in programs.items():
            program = program.replace("PARENT", str(os.getpid()))
            result = run_python(program, limits=Limits(seconds=10), mechanism=mechanism)
            results[name] = [result.status, result.stdout, result.stderr]
    print(json.dumps(results))


if __name__ == "__main__":
    main()
