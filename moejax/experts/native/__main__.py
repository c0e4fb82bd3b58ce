"""`python -m moejax.experts.native`: compiles the kernel ahead, for what this machine can run."""

from __future__ import annotations

import sys
import time

from moejax.config.knobs import ConfigError
from moejax.experts.native.build import build
from moejax.experts.native.isa import ISAS, Unavailable, choose, cpu_flags
from moejax.experts.native.library import load


def main() -> int:
    """Returns 0 if the kernel is ready, 1 if programs will use `tiles`; one line for each step."""
    try:
        choose()
        have = cpu_flags()
        for isa in ISAS:
            if isa.cpu <= have:
                start = time.perf_counter()
                path = build(isa, again=True).path
                print(f"{isa.name}: {path} ({time.perf_counter() - start:.1f} s)")
        print(f"programs on this CPU use {load().isa}")
    except (Unavailable, ConfigError) as reason:
        print(f"no native expert kernel: {reason}; programs use the back end 'tiles'")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
