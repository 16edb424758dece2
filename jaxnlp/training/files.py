"""Files that are replaced whole: a killed process leaves the old one or the new one."""

import os

from etils import epath


def write_atomically(path: epath.PathLike, data: str | bytes) -> None:
    """Written beside, synced, renamed."""
    path = epath.Path(path)
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        if not is_remote(path):
            os.fsync(file.fileno())
    beside.replace(path)


def is_remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)
