"""Figures of traces: what models did with each token of one text.

All runs of a figure were traced on the same corpus; the caption names it.
"""
