"""The house keeps its own rules: floors, sizes of files, pinned versions, and what the Makefile refuses."""

import ast
import configparser
import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for room in ("jaxnlp", "experiments", "tests") for path in (ROOT / room).rglob("*.py"))


FAULTS = """
import {imports}, resource
import jax.numpy as jnp

program = jax.jit(lambda x: jnp.outer(x, x) @ jnp.stack([x] * 8, 1))  # 256 MB of temporaries, 65,536 pages
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
seen = [faults()]
for _ in range(6):
    program(jnp.ones(8192)).block_until_ready()
    seen.append(faults())
first, *later = (after - before for before, after in zip(seen, seen[1:]))
print(first, min(later))  # a system short of memory may take pages at any time
"""


def test_imports_go_to_lower_floors_only():
    checker = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([checker, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="no mallopt: another C library than glibc")
@pytest.mark.parametrize("imports", ["jaxnlp.models.gpt, jax", "jax, jaxnlp.run"])
def test_a_step_does_not_fault_its_temporaries_in_again(imports):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS.format(imports=imports)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=clean, check=True)
    first, later = map(int, done.stdout.split())
    assert first > 30_000 > 3_000 > later


def test_layers_know_arrays_alone():
    allowed = {"jax", "flax", "jaxtyping", "numpy", "jaxnlp", *sys.stdlib_module_names}
    for path in (ROOT / "jaxnlp" / "nn").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            assert {name.partition(".")[0] for name in names} <= allowed, path


def test_no_file_tells_two_stories():
    assert [path for path in FILES if len(path.read_text().splitlines()) > 500] == []


@pytest.mark.parametrize("version", ["3.11", "3.12"])
def test_every_dependency_is_pinned(version):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    wanted = setup["options"]["install_requires"].split("\n") + setup["options.extras_require"]["dev"].split("\n")
    lines = (ROOT / f"constraints-{version}.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if "==" in line}
    names = {re.match(r"[\w-]+", line)[0] for line in wanted if line}
    assert {name.lower().replace("_", "-") for name in names} <= {name.lower().replace("_", "-") for name in pinned}


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo Python 3.10.1 && exit\nexit 1\n')
    old.chmod(0o755)
    command = ["make", "install", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "MAKEFLAGS": ""})
    assert done.returncode != 0
    assert "Python 3.10.1 is too old: jaxnlp needs Python 3.11 or later" in done.stderr
    assert not (tmp_path / "venv").exists()
