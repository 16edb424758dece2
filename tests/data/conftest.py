import numpy as np
import pytest

from jaxnlp.data import cache


@pytest.fixture(scope="session")
def make_cache(tmp_path_factory):
    """A cache of the given records; a list of ids stands for a record of them alone."""
    folder = tmp_path_factory.mktemp("cache")

    def make(records: list) -> cache.Cache:
        source = [record if isinstance(record, dict) else {"input_ids": list(record)} for record in records]

        def encode(examples):
            return [{name: np.asarray(value, np.int32) for name, value in e.items()} for e in examples]

        return cache.build(source, encode, key={}, cache_dir=folder, progress=False)

    return make
