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
    stored, live = np.load(generator.with_suffix(".npz")), np.load(tmp_path / f"{generator.stem}.npz")
    assert sorted(stored) == sorted(live)
    for name in stored:
        if np.issubdtype(stored[name].dtype, np.floating):
            atol = 1e-5 * np.abs(stored[name], where=np.isfinite(stored[name]), out=np.zeros_like(stored[name])).max()
            np.testing.assert_allclose(live[name], stored[name], rtol=0, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(live[name], stored[name], err_msg=name)
