"""Runs `experiments.train` with many command lines, each in a fork after one import.

stdin: a JSON list of argument lists; stdout: a JSON list of [exit code, stdout, stderr].
"""

from __future__ import annotations

import json
import os
import sys
import tempfile

import experiments.train as program
from moejax.train.cli import launch


def one(arguments: list[str]) -> tuple[int, str, str]:
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = os.fork()
        if child == 0:
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            sys.argv = ["experiments/train.py", *arguments]
            code = 70
            try:
                launch(program.main)
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1 if end.code else 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        _, status = os.waitpid(child, 0)
        out.seek(0)
        err.seek(0)
        return os.waitstatus_to_exitcode(status), out.read(), err.read()


if __name__ == "__main__":
    # `launch` prints the docstring and the flags of the main module: make that the program.
    sys.modules["__main__"] = program
    print(json.dumps([one(arguments) for arguments in json.load(sys.stdin)]))
