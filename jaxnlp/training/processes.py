"""Several processes that train one model: how they find one another, agree, and stop together.

Each runs the same program on its own devices and loads its own rows; process 0 alone writes metrics, reports and
manifests. What one process sees of the others goes through these few functions; in a single process they do nothing.

    SIGTERM to one      all save the same step, and end with Preempted
    one dies            the others are aborted by JAX within HEARTBEAT_SECONDS, with a line that says so on stderr
    one raises          it says why, and waits LEAVE_SECONDS for the others to end, too; then JAX aborts all
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jax._src import distributed  # the coordinator's client has no public name; Orbax takes it from here, too
from jax.experimental import multihost_utils

from jaxnlp.files import absolute, write_atomically

CONNECT_SECONDS = 120  # to find the coordinator
HEARTBEAT_SECONDS = 30  # after which a silent process counts as dead and the others end
LEAVE_SECONDS = 120  # that may lie between the ends of two processes
MEET_SECONDS = 3600  # for the slowest process to write its part of a checkpoint and read its share back


class ProcessError(RuntimeError):
    """Another process failed, cannot be reached, or runs something else."""


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    connect_timeout: int = CONNECT_SECONDS,
) -> None:
    """Connects the processes, before JAX touches a device; on a machine of its own, nothing happens.

    Args:
        coordinator: HOST:PORT at which process 0 listens and the others find it
        processes: how many there are
        process: which one this is, from 0
        connect_timeout: seconds to wait for the others

    What is not given is found out on Cloud TPU, GKE, Slurm and Open MPI (jax.distributed.initialize).

    Raises:
        ValueError: some of the three are given and the rest is not found out.
        ProcessError: the coordinator does not answer in time. Where others do not come, the program ends.
    """
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [name for name, value in given.items() if value is None]
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"coordinator={coordinator!r}; allowed: HOST:PORT, such as 10.0.0.1:8476")
    if processes is not None and process is not None and not 0 <= process < processes:
        raise ValueError(f"process={process} of {processes}; allowed: 0 … {processes - 1}")
    if jax.distributed.is_initialized():
        return
    if coordinator is not None and process not in (None, 0):
        _reach(coordinator, connect_timeout)
    everyone = f"all {processes} processes" if processes else "all processes"
    where = f"at {coordinator}" if coordinator else "at the coordinator of this cluster"
    with _ending_after(connect_timeout, f"not {everyone} met {where} within {connect_timeout} s"):
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                initialization_timeout=connect_timeout + 60,  # then JAX would abort the program without a word of ours
                heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=LEAVE_SECONDS,
            )
        except ValueError as error:  # no cluster was found
            if missing == list(given):
                return
            raise ValueError(f"{', '.join(missing)}: not given, and no cluster to ask: {error}") from error
        except RuntimeError as error:
            if missing == list(given) and "must be called before" in str(error):
                return  # in a notebook that has used JAX already
            raise ProcessError(f"cannot connect {everyone} {where}: {error}") from error


@contextlib.contextmanager
def _ending_after(seconds: float, message: str) -> Iterator[None]:
    """Ends the program with the message if what is done within takes longer: JAX waits where Python hears nothing."""

    def end():
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _reach(coordinator: str, seconds: float) -> None:
    """Waits until the coordinator's port is open; ProcessError."""
    host, _, port = coordinator.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
                return
        except OSError as error:
            if time.monotonic() > end:
                raise ProcessError(f"the coordinator {coordinator} did not answer in {seconds} s: {error}") from error
            time.sleep(0.2)


def first() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def broadcast(text: str, source: int = 0) -> str:
    """The text of that process, on all."""
    if jax.process_count() == 1:
        return text
    here = jax.process_index() == source
    data = np.frombuffer(text.encode(), np.uint8) if here else np.zeros(0, np.uint8)
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data)), here))
    if size == 0:
        return ""
    data = data if here else np.zeros(size, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(data, here), np.uint8)).decode()


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


def meet(name: str, part: Callable[[], Any], whole: Callable[[list[Any]], None]) -> None:
    """Each process does its part, then process 0 the whole with what the parts gave; what fails anywhere, fails in all.

    Words go through the coordinator and not the devices, so a thread may do this while the main one trains. What a
    part gives travels as JSON. A name serves once.
    """
    if jax.process_count() == 1:
        return whole([part()])
    client, others = distributed.global_state.client, range(1, jax.process_count())

    def say(key: str, function: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = function()
        except Exception as error:
            failure = error
        client.key_value_set(key, json.dumps([result, failure and f"{type(failure).__name__}: {failure}"]))
        if failure is not None:
            raise failure

    def hear(process: int) -> Any:
        key = f"{name}/{process}"
        result, failure = json.loads(client.blocking_key_value_get(key, MEET_SECONDS * 1000))
        if first():
            client.key_value_delete(key)  # the coordinator would keep it for good
        if failure is not None:
            raise ProcessError(f"process {process} failed: {failure}")
        return result

    if first():
        say(f"{name}/0", lambda: whole([part(), *map(hear, others)]))
    else:
        say(f"{name}/{jax.process_index()}", part)
        hear(0)


def share(items: Iterable[Any]) -> list[Any]:
    """Those that are this process's to do, of items that all know in the same order."""
    return list(items)[jax.process_index() :: jax.process_count()]


def first_word(text: str) -> str:
    """On all, the text of the first process that has one; "" if none has."""
    if jax.process_count() == 1:
        return text
    having = np.flatnonzero(multihost_utils.process_allgather(np.int32(text != "")))
    return broadcast(text, int(having[0])) if len(having) else ""


def check_same(what: str, text: str) -> None:
    """ProcessError, in all processes, if one of them has another text than process 0; shows the first difference."""
    pairs = itertools.zip_longest(broadcast(text).splitlines(), text.splitlines(), fillvalue="nothing")
    there, here = next(((a, b) for a, b in pairs if a != b), ("", ""))
    difference = f"{here.strip(' ,')} instead of {there.strip(' ,')}"
    found = f"process {jax.process_index()} has another {what} than process 0: {difference}"
    if found := first_word(found if there != here else ""):
        raise ProcessError(f"{found}; allowed: the same in all processes")


def check_shared(folder: epath.Path) -> None:
    """ProcessError, in all processes, if one of them does not see what process 0 writes in its folder."""
    if jax.process_count() == 1:
        return
    mark = folder / f".{broadcast(uuid.uuid4().hex)}"
    on_first(lambda: write_atomically(mark, ""))
    try:
        problem = "" if mark.exists() else "does not see what process 0 wrote there"
    except Exception as error:  # of the store's clients; the others have to hear of it
        problem = f"cannot look into it: {error}"
    here = f"process {jax.process_index()} on {socket.gethostname()}"
    problem = first_word(problem and f"{absolute(folder)}: {here} {problem}")
    on_first(lambda: mark.unlink(missing_ok=True))
    if problem:
        raise ProcessError(
            f"{problem}; allowed: a folder that all processes share, on a common disk or gs://bucket/path"
        )


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """ProcessError for what JAX raises where a computation of several processes fails, as it does when one is gone."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1 or "RESOURCE_EXHAUSTED" in str(error):
            raise
        raise ProcessError(
            f"process {jax.process_index()}: the computation of {jax.process_count()} processes failed, probably since "
            f"another one ended: see their output; the same command goes on from the last checkpoint, if any: {error}"
        ) from error


def stop_together(step: int) -> bool:
    """Whether a preemption notice reached any process; True in all of them at the same step."""
    return jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step)
