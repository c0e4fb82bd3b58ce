"""Fine-tunings in the report: scores against the base, costs, chosen experts, spectra.

NumPy only, from files: `docs/finetuning_report.md` says what the numbers mean.
"""
