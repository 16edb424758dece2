"""A Google Cloud Storage on this machine: the package gcp-storage-emulator, and what it lacks.

Added here: answers from several threads, `ifGenerationMatch` on puts and deletes, and losing the connection on request.
"""

import functools
import http.server
import itertools
import json
import threading
import urllib.parse
from collections.abc import Callable

from gcp_storage_emulator import server
from gcp_storage_emulator.handlers import buckets
from gcp_storage_emulator.storage import Storage


class _ConditionFailed(Exception):
    pass


class _Objects(Storage):
    """Objects in memory that are written and deleted under the generation that the request names, if it names one."""

    condition: str | None = None

    def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
        self._check(bucket_name, file_name)
        super().create_file(bucket_name, file_name, content, file_obj, file_id)

    def delete_file(self, bucket_name, file_name):
        self._check(bucket_name, file_name)
        super().delete_file(bucket_name, file_name)

    def _check(self, bucket: str, name: str) -> None:
        generation = self.objects.get(bucket, {}).get(name, {}).get("generation", "0")
        if self.condition not in (None, generation):
            raise _ConditionFailed


class _Handler(server.RequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, emulator: "Emulator", *args):
        self.emulator = emulator
        super().__init__(emulator.objects, *args)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except OSError:  # the client went away
            self.close_connection = True

    def _answer(self, method: str) -> None:
        emulator = self.emulator
        with emulator.lock:
            if emulator.lost(method, urllib.parse.unquote(self.path)):
                self.close_connection = True
                return
            query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
            emulator.objects.condition = query.get("ifGenerationMatch", [None])[0]
            try:
                server.Router(self).handle(method)
            except _ConditionFailed:
                body = json.dumps({"error": {"code": 412, "message": "conditionNotMet"}}).encode()
                self.send_response(412)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

    do_GET = functools.partialmethod(_answer, "GET")
    do_POST = functools.partialmethod(_answer, "POST")
    do_PUT = functools.partialmethod(_answer, "PUT")
    do_DELETE = functools.partialmethod(_answer, "DELETE")


class Emulator:
    """Serves the bucket `bucket` at `url`; `lost(method, path)` says which requests stay without an answer."""

    def __init__(self):
        self.lock = threading.Lock()
        self.objects = _Objects(use_memory_fs=True)
        self.lost: Callable[[str, str], bool] = lambda method, path: False
        buckets.create_bucket("bucket", self.objects)
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer_all(self) -> None:
        self.lost = lambda method, path: False

    def lose_each(self, n: int) -> None:
        count = itertools.count(1)
        self.lost = lambda method, path: next(count) % n == 0

    def lose_all_after(self, path: str, *, given: str) -> None:
        """The first put whose path holds this one, once the object `given` is there; and all that come later."""
        gone = []

        def lost(method: str, found: str) -> bool:
            if method == "POST" and path in found and given in self.objects.objects["bucket"]:
                gone.append(found)
            return bool(gone)

        self.lost = lost
