"""Several processes that train one model: how they find one another, agree, and stop together.

Each runs the same program on its own devices and loads its own rows; process 0 alone writes metrics, reports and
manifests. What one process sees of the others goes through these few functions; in a single process they do nothing.
"""

import itertools
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

CONNECT_SECONDS = 120  # to find the coordinator
HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead and the others end


class ProcessError(RuntimeError):
    """Another process failed, cannot be reached, or runs something else."""


def initialize(coordinator: str | None = None, processes: int | None = None, process: int | None = None) -> None:
    """Connects the processes, before JAX touches a device; on a machine of its own, nothing happens.

    What is not given is found out on Cloud TPU, GKE, Slurm and Open MPI (jax.distributed.initialize).

    Raises:
        ValueError: some of the three are given and the rest is not found out.
        ProcessError: the coordinator does not answer in time.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator={coordinator!r}; allowed: HOST:PORT, such as 10.0.0.1:8476")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"process={process} of {processes}; allowed: 0 … {processes - 1}")
    if jax.distributed.is_initialized():
        return
    seconds = int(os.environ.get("JAXNLP_CONNECT_SECONDS", CONNECT_SECONDS))
    try:
        if coordinator is not None and process not in (None, 0):
            _reach(coordinator, seconds)  # JAX itself would abort the program without a word of ours
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except ValueError as error:  # no cluster was found
        if missing := [name for name, value in given.items() if value is None]:
            if len(missing) == len(given):
                return
            raise ValueError(f"{', '.join(missing)}: not given, and no cluster to ask: {error}") from error
        raise
    except (RuntimeError, TimeoutError) as error:
        raise ProcessError(
            f"the coordinator {coordinator or 'of this cluster'} did not answer in {seconds} s, or not all "
            f"{processes or ''} processes came: {error}"
        ) from error


def _reach(coordinator: str, seconds: float) -> None:
    """Waits until the coordinator's port is open; TimeoutError."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise TimeoutError(str(error)) from error
            time.sleep(0.2)


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def broadcast(text: str) -> str:
    """Process 0's text, on all."""
    if jax.process_count() == 1:
        return text
    data = np.frombuffer(text.encode(), np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    if first():
        padded[:] = data
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8)).decode()


def on_first(function: Callable[[], Any]) -> Any:
    """Calls the function on process 0 alone while the others wait; what it raises there ends all of them."""
    result, failure = None, None
    if first():
        try:
            result = function()
        except Exception as error:
            failure = error
    message = broadcast("" if failure is None else f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    if message:
        raise ProcessError(f"process 0 failed: {message}")
    return result


def check_same(what: str, text: str) -> None:
    """ProcessError, in all processes, if one of them has another text than process 0; shows the first difference."""
    if jax.process_count() == 1:
        return
    theirs, mine = broadcast(text).splitlines(), text.splitlines()
    differences = [(a.strip(), b.strip()) for a, b in itertools.zip_longest(theirs, mine, fillvalue="") if a != b]
    differs = multihost_utils.process_allgather(np.int32(len(differences)))
    if differences:
        there, here = differences[0]
        raise ProcessError(
            f"process {jax.process_index()} has another {what} than process 0: {here or 'nothing'} instead of "
            f"{there or 'nothing'}; allowed: the same command in all processes"
        )
    if differs.any():
        numbers = ", ".join(str(i) for i in np.flatnonzero(differs))
        raise ProcessError(f"process {numbers} has another {what} than process 0, and says where")


def stop_together(step: int) -> bool:
    """Whether a preemption notice reached any process; True in all of them at the same step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
