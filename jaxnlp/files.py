"""Files here and in Google Cloud Storage: gs://bucket/path wherever a folder is asked for.

Both kinds are read and written through epath. What differs lies here and, for the lock of a run, in training/lease.py:

    a folder here             exists when made;  a file is replaced by writing beside it, syncing and renaming
    a folder in the store     exists while something lies in it;  one put replaces a file whole;  nothing is appended

A lost connection is the clients' to retry: gcsfs (listings and small files) sends a request six times within half a
minute, TensorStore (the arrays of a checkpoint) 32 times within a quarter of an hour, Google's own client (the lease)
for as long as the lease lasts. What is left then is raised as one StorageError, by `explained`.
"""

import contextlib
import importlib
import importlib.util
import logging
import os
from collections.abc import Iterator

from etils import epath

STORE = "gs://"


class StorageError(OSError):
    """The store cannot be reached, or refuses."""


def is_remote(path: epath.PathLike) -> bool:
    return "://" in os.fspath(path)


def locate(path: epath.PathLike) -> epath.Path:
    """With ~ expanded; ValueError for another store than gs://, StorageError where its client is not installed."""
    if not is_remote(path):
        return epath.Path(path).expanduser()
    if not os.fspath(path).startswith(STORE) or os.fspath(path).removeprefix(STORE)[:1] in ("", "/"):
        raise ValueError(f"{os.fspath(path)}: allowed: a folder of this machine, or gs://bucket/path")
    if importlib.util.find_spec("gcsfs") is None:
        raise StorageError(f"{os.fspath(path)}: Google Cloud Storage needs its client: pip install 'jaxnlp[gcs]'")
    _no_cached_listings()
    return epath.Path(path)


def absolute(path: epath.Path) -> epath.Path:
    return path if is_remote(path) else path.absolute()  # epath would put gs:// below the working directory


def _no_cached_listings() -> None:
    """TensorStore writes beside gcsfs, whose cached listings would not show it."""
    fsspec_config = importlib.import_module("fsspec.config")
    fsspec_config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it prints the traceback of what it raises


def make_folder(path: epath.Path) -> None:
    if not is_remote(path):
        path.mkdir(parents=True, exist_ok=True)


def entries(folder: epath.Path) -> list[epath.Path]:
    """What lies in a folder; nothing, where the store has no such folder."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        if is_remote(folder):
            return []
        raise


def write_atomically(path: epath.PathLike, data: str | bytes) -> None:
    """A killed process leaves the old file or the new one."""
    path = epath.Path(path)
    data = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        path.write_bytes(data)
        return
    beside = path.with_name(path.name + ".tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


@contextlib.contextmanager
def explained(path: epath.PathLike) -> Iterator[None]:
    """Makes one StorageError of what the clients of the store raise when the connection is lost for good."""
    try:
        yield
    except Exception as error:
        if is_remote(path) and _by_client(error):
            found = str(error).strip() or type(error).__name__
            raise StorageError(
                f"{os.fspath(path)}: Google Cloud Storage failed after several attempts, and nothing there was harmed;"
                f" try again later, or, if it is about rights, gcloud auth application-default login: {found}"
            ) from error
        raise


def _by_client(error: Exception) -> bool:
    """gcsfs's own errors, aiohttp's, Google's, and what the system says of a socket."""
    clients = ("aiohttp", "gcsfs", "google", "requests", "urllib3")
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in clients
