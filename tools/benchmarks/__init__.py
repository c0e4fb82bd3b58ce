"""What `tools/bench.py` measures with. Nothing here is imported by moejax, or by a test that times.

`suites/` holds one file per suite: what is timed together and which ratios come of it. The rest is
shared: timing, targets, rows, the processes that measure, the machine, tables, peers.
"""
