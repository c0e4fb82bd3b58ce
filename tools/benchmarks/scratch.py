"""Memory of a back end that the compiler does not see, measured in a process of its own.

`python -m tools.benchmarks.scratch TOKENS D_MODEL WIDTH EXPERTS K` prints the most bytes that the
native kernel held while it ran one layer forward and backward. The kernel counts over the life of
a process, so each shape needs a fresh one.
"""

from __future__ import annotations

import subprocess
import sys

from tools.benchmarks.layers import LayerShape, moe_program, tokens


def scratch_bytes(backend: str, shape: LayerShape) -> int:
    """Bytes beside the compiled program's own; 0 for back ends that are nothing but XLA.

    Raises:
      CalledProcessError: the layer does not run.
    """
    if backend != "native":
        return 0
    sizes = (shape.tokens, shape.d_model, shape.width, shape.experts, shape.k)
    line = [sys.executable, "-m", "tools.benchmarks.scratch", *map(str, sizes)]
    return int(subprocess.run(line, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Runs the layer that the arguments name."""
    from moejax.experts import native
    from moejax.routing.routers import TopK

    shape = LayerShape(*map(int, sys.argv[1:]))
    x_TD, dy_TD = tokens(shape)
    program = moe_program(shape.d_model, shape.config(TopK(k=shape.k), "native"), x_TD, dy_TD)
    for _ in range(3):
        program.run()
    print(native.load().scratch().peak)


if __name__ == "__main__":
    main()
