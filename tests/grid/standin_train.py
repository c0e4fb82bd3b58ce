"""Stands in for `experiments.train`: the same run directory, signals and exit codes, no model.

It runs without jax and without moejax, so that it starts in a moment. Every start and every end is
a line in `ledger.txt` beside the run directory; that is how tests know what ran twice.

  --workdir=DIR --steps=N --pause=SECONDS --fault=none|crash|nan|bad|hang|full|quiet|stubborn
"""

import fcntl
import hashlib
import json
import os
import signal
import sys
import time

options = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
workdir, fault = options["workdir"], options.get("fault", "none")
steps, pause = int(options.get("steps", "5")), float(options.get("pause", "0.01"))
stopped = []


def path(name):
    return os.path.join(workdir, name)


def write(name, content):
    temporary = path(f".{name}.{os.getpid()}.tmp")
    with open(temporary, "w") as file:
        json.dump(content, file)
    os.replace(temporary, path(name))


def read(name, default):
    try:
        with open(path(name)) as file:
            return json.load(file)
    except FileNotFoundError:
        return default


def ledger(event, **more):
    line = {"event": event, "cell": os.path.basename(workdir), "pid": os.getpid(), **more}
    with open(os.path.join(os.path.dirname(workdir), "ledger.txt"), "a") as file:
        file.write(json.dumps(line) + "\n")


def status(state, step, reason="", code=None):
    content = {"state": state, "step": step, "total_steps": steps, "attempt": attempt}
    content |= {"pid": os.getpid(), "host": "here", "reason": reason, "exit_code": code}
    write("status.json", content | {"format_version": 1, "heartbeat": time.time()})


def end(state, step, reason, code):
    print(f"{state}: {reason}", file=sys.stderr, flush=True)
    status(state, step, reason, code)
    ledger("end", code=code)
    sys.exit(code)


signal.signal(signal.SIGINT, signal.SIG_IGN)
if fault == "bad":
    print("error: config.model.d_modle: unknown key; did you mean 'd_model'?", file=sys.stderr)
    sys.exit(2)
os.makedirs(workdir, exist_ok=True)
lock = os.open(path("run.lock"), os.O_RDWR | os.O_CREAT, 0o644)
try:
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    ledger("occupied")
    print("error: the run directory is in use", file=sys.stderr)
    sys.exit(2)
signal.signal(
    signal.SIGTERM, signal.SIG_IGN if fault == "stubborn" else lambda *_: stopped.append(1)
)
if os.path.exists(path("final.json")):
    ledger("again")
    sys.exit(0)
attempt = read("status.json", {}).get("attempt", 0) + 1
state = read("checkpoint.json", {"step": 0, "digest": ""})
variables = ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "TPU_VISIBLE_CHIPS")
ledger(
    "start",
    step=state["step"],
    time=time.time(),
    cores=sorted(os.sched_getaffinity(0)),
    variables={name: os.environ[name] for name in variables if name in os.environ},
    note=options.get("note", ""),
)
print(f"step {state['step']}, attempt {attempt}", flush=True)
try:
    status("running", state["step"])
    while state["step"] < steps:
        if stopped:
            write("checkpoint.json", state)
            end("interrupted", state["step"], "SIGTERM: state saved", 143)
        step = state["step"] + 1
        if step == 3 and fault == "crash":
            raise ValueError("the third step is cursed")
        if step == 3 and fault == "nan":
            end("failed", 2, "non-finite at step 3: loss nan", 3)
        if step == 3 and fault in ("hang", "stubborn"):
            while not stopped:
                time.sleep(0.02)
            continue
        if step == 3 and fault == "quiet":
            os._exit(7)
        if step == 3 and fault == "full":
            with open(path("trace.bin"), "wb") as file:
                file.write(b"x" * 10_000_000)
        time.sleep(pause)
        digest = hashlib.sha256(f"{state['digest']} {step}".encode()).hexdigest()
        state = {"step": step, "digest": digest}
        if step % 2 == 0:
            write("checkpoint.json", state)
        line = {"step": step, "train/loss": 1 / step, "perf/tokens_per_second": 1000.0}
        with open(path("metrics.jsonl"), "a") as file:
            file.write(json.dumps(line | {"time/elapsed": step * pause}) + "\n")
        status("running", step)
    score = {"loss": int(state["digest"][:6], 16) / 2**24}
    write("final.json", {"format_version": 1, "step": steps, "eval": score})
    status("done", steps, code=0)
    ledger("done", time=time.time())
except OSError as error:
    print(f"failed: {error.filename or workdir}: {error.strerror}", file=sys.stderr, flush=True)
    sys.exit(4)
