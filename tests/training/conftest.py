"""Several processes with virtual devices of their own."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import pytest

PROGRAM = pathlib.Path(__file__).parent / "cluster.py"
ROOT = PROGRAM.parents[2]


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def cluster(token_cache):
    """cluster(devices, [runs of process 0, runs of process 1, …]): of each process the exit code, the lines that it
    printed, and its stderr; see cluster.py. None is left behind, whatever happens."""

    def start(devices, runs, seconds=150):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0",
            "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or str(token_cache / "jax"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
            "XDG_CACHE_HOME": str(token_cache),
        }
        several = ["--coordinator", f"127.0.0.1:{port}", "--processes", str(len(runs))] if len(runs) > 1 else []
        started = []
        try:
            for i, own in enumerate(runs):
                process = ["--process", str(i)] if several else []
                own = [run | {"arguments": [*run["arguments"], *several, *process]} for run in own]
                command = [sys.executable, PROGRAM, json.dumps(own)]
                pipe = subprocess.PIPE
                started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
            end = time.monotonic() + seconds
            ends = [process.communicate(timeout=max(end - time.monotonic(), 1)) for process in started]
        finally:
            for process in started:
                process.kill()
                process.wait()
        return [
            (process.returncode, [json.loads(line) for line in out.splitlines() if line.startswith("{")], err)
            for process, (out, err) in zip(started, ends)
        ]

    return start
