"""What is given to a model from outside, checked before it is traced: under jit nobody can look at values."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxnlp.models import transformer

IDS = {  # and the fields of the model that say how many there are
    "input_ids": "vocab_size",
    "decoder_input_ids": "output_vocab_size",
    "position_ids": "n_positions",
    "token_type_ids": "n_segments",
}
PLACES = ("mc_token_ids", "masked_positions")
LIKE_IDS = ("attention_mask", "token_type_ids", "segment_ids")  # of the shape of input_ids


def checked(model: nn.Module, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
    """The inputs as arrays, masks of one row in the shape of all.

    ValueError for what the model does not take, for an id or a position outside its table or row, and for a mask of
    another shape or one that the model would misread; `outputs` are those that are asked for beside the usual.
    """
    signature = inspect.signature(type(model).__call__).parameters
    takes = [name for name in signature if name not in ("self", "deterministic", "logits")]
    if strange := [name for name in inputs if name not in takes]:
        raise ValueError(f"{strange[0]} came to a {type(model).__name__}; allowed: {', '.join(takes)}")
    if inputs.get("input_ids") is None:
        raise ValueError(f"input_ids did not come, beside {', '.join(inputs) or 'nothing'}; allowed: with them")
    inputs = {name: np.asarray(x) if isinstance(x, list | tuple) else x for name, x in inputs.items()}
    shape = inputs["input_ids"].shape
    for name in LIKE_IDS:
        if (x := inputs.get(name)) is not None and x.shape not in (shape, (1, *shape[1:])):
            raise ValueError(f"{name} has shape {x.shape}; allowed: {shape}, as input_ids, or one row for all")
        inputs |= {} if x is None else {name: jnp.broadcast_to(x, shape)}
    if (places := inputs.get("position_ids")) is not None:
        if places.shape not in (shape, (1, *shape[1:]), (1, shape[-1]), shape[-1:]):
            raise ValueError(
                f"position_ids has shape {places.shape}; allowed: {shape}, as input_ids, or one row for all"
            )
        inputs["position_ids"] = jnp.broadcast_to(places, shape)
    for name, size in IDS.items():
        if inputs.get(name) is None:
            continue
        ids, rows = np.asarray(inputs[name]), getattr(model.config, size)
        if size == "n_segments" and rows < 2:  # the model does not read them
            continue
        if ids.size and not 0 <= ids.min() <= ids.max() < rows:
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise ValueError(f"{name} holds {bad}; allowed: 0 … {rows - 1} (model.{size}={rows})")
    for name in PLACES:
        if inputs.get(name) is None:
            continue
        places, T = np.asarray(inputs[name]), shape[-1]
        if places.size and not 0 <= places.min() <= places.max() < T:
            raise ValueError(f"{name} holds {places.tolist()}; allowed: 0 … {T - 1}, a place in its row")
    _check_source(model, inputs, outputs)
    return inputs


def _check_source(model: nn.Module, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
    """ValueError of a mask that the model would misread, and of a target that belongs to no source."""
    sources, targets = (inputs.get(name) for name in ("input_ids", "decoder_input_ids"))
    if hasattr(model, "encode") and not sources.size:
        raise ValueError(f"input_ids has shape {sources.shape}; allowed: one source and more, of one token and more")
    if targets is not None and len(targets) % max(len(sources), 1):
        raise ValueError(f"decoder_input_ids has {len(targets)} rows; allowed: {len(sources)}, or a multiple of it")
    if inputs.get("attention_mask") is None:
        return
    mask = np.asarray(inputs["attention_mask"])
    if other := np.setdiff1d(mask, (0, 1)).tolist():
        raise ValueError(f"attention_mask holds {other[0]}; allowed: 0 and 1")
    if hasattr(model, "encode") and not (real := mask.any(-1)).all():
        raise ValueError(f"attention_mask has no 1 in row {real.argmin()}; allowed: one and more of each source")
    if not isinstance(model, transformer.Transformer | transformer.Encoder):
        return
    begins = np.diff(mask.astype(int), axis=-1, prepend=0) == 1
    if (holes := begins.sum(-1) > 1).any():
        raise ValueError(f"attention_mask has 0 between 1s in row {holes.argmax()}; allowed: 1s side by side")
    if outputs and (left := mask[:, 0] == 0).any():  # its blocks read the tokens moved to the left
        raise ValueError(f"outputs of row {left.argmax()}, which begins with padding; allowed: padding at the end")
