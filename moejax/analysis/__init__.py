"""Reads run directories and writes the report: NumPy and matplotlib only, never JAX.

    from moejax.analysis.report import write_report
    write_report(["runs/dense", "runs/top_k"], "runs/report")

`runs` loads, `summary` and `groups` measure (with the formulas of `metrics`), `figures` draw,
`page` lays out. A run is untrusted input: JSON and `.npz` without pickle, every text escaped.
"""
