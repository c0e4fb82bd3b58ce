"""The Language Model Evaluation Harness on runs of ours: `adapter` (needs the extra `lm-eval`), and
what it asks for (`arguments`, which does not)."""
