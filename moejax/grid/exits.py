"""Exit codes of the commands that run cells or look at them; 0, 1, 2 are those of every program."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 6
"""At least one selected cell failed."""
EXIT_MISSING = 7
"""No selected cell failed, but some are not done."""
