"""Who may write to a run's folder in the store, which has no file locks: an object that names its holder and its end.

    {"holder": "process 12 on host-3", "token": "9f…", "ends": 1767225600.0}

    taken     if there is none, or if the one there has run out; the store itself refuses the second of two that try
    renewed   by a thread, four times before it would end
    given up  when the training ends; a killed process leaves it behind, and it runs out by itself

Every put names the generation that it replaces, so a lease taken over is never renewed by the one who had lost it.
`ends` is compared between the clocks of two machines: seconds apart are harmless, a minute is not.
"""

import contextlib
import json
import os
import threading
import time
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath

from jaxnlp.files import STORE

SECONDS = 60.0  # after a kill, nobody can train in the folder for that long; an outage that long ends a training


class Lease:
    """A lease on the object at `path`: `take` it, `check` before writing, `give_up`."""

    def __init__(self, path: epath.PathLike, holder: str):
        from google.cloud import storage  # of the extra `gcs`

        bucket, _, name = os.fspath(path).removeprefix(STORE).partition("/")
        self._bucket = storage.Client(project=None).bucket(bucket)
        self._name = name
        self._content = {"holder": holder, "token": uuid.uuid4().hex}
        self._generation = 0  # of the object that this lease wrote last; 0: there is none
        self._ends = 0.0
        self._lost: str | None = None
        self._putting = threading.Lock()
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def take(self) -> str | None:
        """None if it is taken now; otherwise who holds it."""
        self._generation, found = self._read()
        if found.get("ends", 0.0) > time.time():
            return _description(found)
        if not self._put():
            return _description(self._read()[1])
        self._thread.start()
        return None

    def check(self) -> str | None:
        """None while it is held; otherwise how it was lost. Renews one that a sleeping process has let run out."""
        if self._lost is None and time.time() > self._ends:
            self._renew()
        return self._lost

    def give_up(self) -> None:
        self._given_up.set()
        self._thread.join()
        if self._lost is None:
            with contextlib.suppress(Exception):  # it runs out
                self._bucket.blob(self._name).delete(if_generation_match=self._generation, retry=self._retry())

    def _keep(self) -> None:
        while self._lost is None and not self._given_up.wait(SECONDS / 4):
            self._renew()

    def _renew(self) -> None:
        try:
            if not self._put():
                self._lost = f"it was taken over by {_description(self._read()[1])}"
        except Exception as error:  # the store is away: until the lease ends, nobody else takes it
            if time.time() > self._ends:
                self._lost = f"it could not be renewed: {error}"

    def _put(self) -> bool:
        """Writes the object with a new end; False if another has written it since."""
        from google.api_core.exceptions import PreconditionFailed

        with self._putting:
            ends, blob = time.time() + SECONDS, self._bucket.blob(self._name)
            try:
                blob.upload_from_string(
                    json.dumps(self._content | {"ends": ends}),
                    content_type="application/json",
                    if_generation_match=self._generation,
                    retry=self._retry(),
                )
                self._generation = blob.generation
            except PreconditionFailed:
                generation, found = self._read()
                if found.get("token") != self._content["token"]:
                    return False
                self._generation = generation  # it was our own put, sent twice as its answer was lost
            self._ends = ends
            return True

    def _read(self) -> tuple[int, Mapping[str, Any]]:
        """The object's generation and content; 0 and {} if there is none."""
        blob = self._bucket.get_blob(self._name, retry=self._retry())
        if blob is None:
            return 0, {}
        try:
            return blob.generation, json.loads(blob.download_as_bytes(retry=self._retry()))
        except ValueError:  # not ours: as one that has run out
            return blob.generation, {}

    @staticmethod
    def _retry() -> Any:
        from google.cloud.storage.retry import DEFAULT_RETRY

        return DEFAULT_RETRY.with_timeout(SECONDS / 2)


def _description(found: Mapping[str, Any]) -> str:
    if not found:
        return "another process"
    ends = time.strftime("%H:%M:%S", time.localtime(found["ends"]))
    return f"{found['holder']}, until {ends} if it does not renew its lease"
