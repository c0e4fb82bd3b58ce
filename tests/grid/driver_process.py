"""Reads orders, a JSON object a line, and forks a driver for each; see `grid_roots.Zygote`."""

import json
import os
import signal
import sys

from grid_roots import FAST, STANDIN, Row

from moejax.grid.driver import Driver, Policy
from moejax.grid.launchers.local import Local
from moejax.grid.live import make_display
from moejax.grid.places import Places


def drive(order):
    places = Places(order["root"])
    cells = [Row(one["name"], one["directory"], tuple(one["argv"])) for one in order["cells"]]
    launcher = Local(places, parallel=order["parallel"], train=STANDIN)
    display = make_display(cells, every=0.2)
    return Driver(cells, places, launcher, display, Policy(), FAST).run()


signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the drivers
for line in sys.stdin:
    order = json.loads(line)
    pid = os.fork()
    if pid:
        print(pid, flush=True)
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    code = 1
    try:
        code = drive(order)
    finally:
        print(f"\nends with {code}", flush=True)
        os._exit(code)
