"""What transformers makes of an export, in a process of its own."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import jaxnlp
from jaxnlp.nn.blocks import stack_layers

LIVE = """
import sys, json, numpy as np, torch, transformers
name, path, to, texts = sys.argv[1:]
model, report = getattr(transformers, name).from_pretrained(
    path, output_loading_info=True, attn_implementation="eager"
)
assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
tokens = transformers.AutoTokenizer.from_pretrained(path)(*json.loads(texts))
given = {key[3:]: torch.tensor(x) for key, x in np.load(to).items()}
with torch.no_grad():
    found = {key: x for key, x in model.eval().double()(**given).items() if torch.is_tensor(x)}
np.savez(to, ids=tokens["input_ids"], kinds=tokens.get("token_type_ids", []), **found)
"""


@pytest.fixture
def read_back(tmp_path):
    """read_back(name, run, inputs, texts): the run with other weights, of scanned layers, and of its export by that
    class of transformers the outputs for the inputs, with the texts' ids and kinds."""

    def export(name, run, inputs, *texts):
        params = stack_layers(jax.tree.map(lambda x: x * 1.1, run.params))
        model = dataclasses.replace(run.config, scan=True).build(run.task.heads)
        run, file = dataclasses.replace(run, model=model, params=params), tmp_path / "io.npz"
        jaxnlp.export(run, tmp_path / "out")
        np.savez(file, **{f"in_{key}": x for key, x in inputs.items()})
        subprocess.run([sys.executable, "-c", LIVE, name, tmp_path / "out", file, json.dumps(texts)], check=True)
        return run, dict(np.load(file))

    return export
