"""Figures of fine-tuned runs: what they gained, what they forgot, and what it took.

All are made of `Evidence.finetuning`, an `analysis.finetuning.study.Study`, and of files beside
the runs.
"""
