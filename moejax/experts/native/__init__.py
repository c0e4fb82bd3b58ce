"""The expert kernel in C++ behind the back end `native`: its sources, their compilation into a
per-user cache, and the library in this process.

`python -m moejax.experts.native` compiles ahead; otherwise the first program that is lowered for
this CPU does.
"""

from moejax.experts.native.isa import Unavailable
from moejax.experts.native.library import Library, load

__all__ = ["Library", "Unavailable", "load"]
