"""The stored arrays are what the live oracle gives: each generator in tests/golden runs again (make parity)."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

GENERATORS = sorted((Path(__file__).parent / "golden").glob("*.py"))


@pytest.mark.parity
@pytest.mark.parametrize("generator", GENERATORS, ids=lambda path: path.stem)
def test_stored_arrays_are_the_oracles(generator, tmp_path):
    if generator.stem == "compiler":
        pytest.importorskip("libtpu")
    for path in GENERATORS:  # some import others
        shutil.copy(path, tmp_path)
    subprocess.run([sys.executable, tmp_path / generator.name], check=True, cwd=tmp_path)
    stored, live = map(read, (generator.with_suffix(".npz"), tmp_path / f"{generator.stem}.npz"))
    assert sorted(stored) == sorted(live)
    largest: dict[str, float] = {}  # of the arrays that are told together, such as all gradients of a model
    for name, x in stored.items():
        if np.issubdtype(x.dtype, np.floating):
            group = name.rpartition("/")[0]
            largest[group] = max(largest.get(group, 0.0), size(x))
    for name, x in stored.items():
        if np.issubdtype(x.dtype, np.floating):
            # Gradients that are 0 by mathematics, as of the keys' bias, are rounding of sums of the others' size.
            atol = max(1e-5 * size(x), 1e-6 * largest[name.rpartition("/")[0]] if "/gradient" in f"/{name}" else 0.0)
            np.testing.assert_allclose(live[name], x, rtol=0, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(live[name], x, err_msg=name)


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def size(x: np.ndarray) -> float:
    return float(np.abs(x, where=np.isfinite(x), out=np.zeros_like(x)).max(initial=0.0))
