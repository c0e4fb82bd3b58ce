"""What several processes must do together: act on process 0's word, and stop at the same step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moejax.config.knobs import ConfigError
from moejax.sharding.distributed import exchange
from moejax.train.errors import EXIT_USAGE, Interrupted, RunError
from moejax.train.signals import StopSignal, interrupted_by


def on_first(action: Callable[[], Any]) -> Any:
    """Does `action` in process 0 alone; returns its result, which JSON can hold, in all of them.

    Raises:
      BaseException: what `action` raised, in process 0; its one line, in the others.
    """
    if jax.process_count() == 1:
        return action()
    error: Exception | None = None
    answer: dict[str, Any] = {}
    if jax.process_index() == 0:
        try:
            answer = {"result": action()}
        except Exception as caught:
            error = caught
            usage = EXIT_USAGE if isinstance(caught, ConfigError) else 0
            answer = {
                "error": str(caught) or type(caught).__name__,
                "code": usage or getattr(caught, "exit_code", RunError.exit_code),
            }
    answer = json.loads(exchange(json.dumps(answer))[0])
    if error is not None:
        raise error
    if "error" in answer:
        if answer["code"] == EXIT_USAGE:
            raise ConfigError(f"process 0: {answer['error']}")
        failure = RunError(f"process 0: {answer['error']}")
        failure.exit_code = answer["code"]
        raise failure
    return answer["result"]


def require_equal(what: str, value: str) -> None:
    """Raises ConfigError in every process when one has another value than process 0."""
    first, *others = exchange(value)
    different = [index for index, other in enumerate(others, start=1) if other != first]
    if different:
        raise ConfigError(
            f"{what} of process {different[0]} is {others[different[0] - 1]!r}, of process 0 "
            f"{first!r}: all processes need the same command and the same text"
        )


def all_problems(problem: str) -> list[str]:
    """The problems that any process has, by number; an empty text is none."""
    found = [(index, said) for index, said in enumerate(exchange(problem)) if said]
    if jax.process_count() == 1:
        return [said for _, said in found]
    return [f"process {index}: {said}" for index, said in found]


class Votes:
    """A stop by signal, or a save by the clock: of one process at once, of several by vote.

    Processes that take different steps wait for each other for ever. So each dispatches its wish
    with every step as a tiny collective behind it, and reads the sum of all wishes with the
    metrics of that step, one step later: the same step in all of them, and no waiting. (A device of
    an accelerator runs its programs one after the other. A CPU does not, and collectives of two
    programs between the same devices then mix up: there the wish waits for the step.)
    """

    def __init__(self, local: StopSignal) -> None:
        self._local = local
        self._alone = jax.process_count() == 1
        self._signum = 0
        self._overdue = False
        if self._alone:
            return
        one_each = [jax.local_devices(process_index=i)[0] for i in range(jax.process_count())]
        self._waits = one_each[0].platform == "cpu"
        mesh = Mesh(np.asarray(one_each), ("process",))
        self._split = NamedSharding(mesh, PartitionSpec("process"))
        whole = NamedSharding(mesh, PartitionSpec())
        self._most = jax.jit(lambda votes: jnp.max(votes, axis=0), out_shardings=whole)

    @property
    def requested(self) -> bool:
        """Whether all are to stop."""
        return self._local.requested if self._alone else self._signum != 0

    @property
    def overdue(self) -> bool:
        """Whether all are to save."""
        return self._overdue

    def cast(self, overdue: bool, step: Any) -> jax.Array | None:
        """This process' wishes, on their way to the others; what `count` takes.

        Args:
          overdue: by this process' clock it is time to save.
          step: arrays that the step before makes.
        """
        if self._alone:
            self._overdue = overdue
            return None
        own = np.asarray([[self._local.signum, int(overdue)]], np.int32)
        shape = (jax.process_count(), 2)
        if self._waits:
            jax.block_until_ready(step)
        ballot = self._most(jax.make_array_from_process_local_data(self._split, own, shape))
        return jax.block_until_ready(ballot) if self._waits else ballot

    def count(self, ballot: jax.Array | None) -> None:
        """Waits for all wishes of a `cast`."""
        if ballot is not None:
            signum, overdue = np.asarray(ballot)
            self._signum = max(self._signum, int(signum))
            self._overdue = bool(overdue)

    def saved(self) -> None:
        """The state was saved just now, in all processes."""
        self._overdue = False

    def meet(self) -> None:
        """Agrees here and now, where there are no steps; all processes must call it."""
        if not self._alone:
            self._signum = max(self._signum, *map(int, exchange(str(self._local.signum))))

    def error(self, what: str) -> Interrupted:
        """The exception that ends the run with the signal's exit code."""
        return interrupted_by(self._local.signum if self._alone else self._signum, what)
