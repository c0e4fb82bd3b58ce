"""moejax: mixture-of-experts language models in JAX, with experts of different widths."""

__version__ = "0.1.0"
