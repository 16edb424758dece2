"""Trainings of cluster.py's experiment: here, and in several processes with virtual devices of their own."""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import jaxnlp
from jaxnlp import cli

TIMING = ("split", "seconds", "tokens_per_second")
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


@pytest.fixture(scope="session")
def train_here(token_cache):
    """train_here(folder, parallel, *options) trains on this process's 8 devices."""

    def train(folder, parallel, *options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", str(token_cache))
            assert cli.main(["train", str(PROGRAM), "--workdir", str(folder), "--parallel", parallel, *options]) == 0
        return folder

    return train


@pytest.fixture(scope="session")
def assert_same_run():
    """assert_same_run(found, expected): the same metrics and the same parameters in the end."""

    def check(found, expected, tolerance=1e-6):
        lines = [
            [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (found, expected)
        ]
        assert [(line["step"], line["split"]) for line in lines[0]] == [(x["step"], x["split"]) for x in lines[1]]
        for a, b in zip(*lines):
            a, b = ({name: value for name, value in line.items() if name not in TIMING} for line in (a, b))
            assert a == pytest.approx(b, rel=tolerance)
        for ema in (False, True):
            params, others = (flatten_dict(jaxnlp.load(run, ema=ema).params, sep="/") for run in (found, expected))
            for path, x in params.items():
                # The keys' bias has gradient zero by mathematics, and Adam makes steps of its noise.
                np.testing.assert_allclose(x, others[path], atol=1e-3 if path.endswith("qkv/bias") else 1e-5)

    return check
