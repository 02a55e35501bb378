"""An S3 server on this machine behind a door that can be shut: then nobody reaches it any more."""

from __future__ import annotations

import logging
import os
import socket
import threading
from contextlib import suppress
from unittest.mock import patch

from moto.server import ThreadedMotoServer
from pyarrow import fs

BUCKET = "checkpoints"
KEYS = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
"""For the environment of every process that is to reach it."""


class Door:
    """Passes connections on to a port of this machine. Shut, it refuses new ones and has broken off all others."""

    def __init__(self, target: int) -> None:
        self.target, self.port = target, 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self.open()

    def open(self) -> None:
        """Let through from now on, at the same port as before."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._listen, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        """Refuse from now on."""
        with suppress(OSError):  # without this, a thread that waits to accept would still get one connection
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            left, self._open = self._open, set()
        for end in left:
            _close(end)

    def _listen(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
            except OSError:
                return
            with self._lock:
                self._open |= {client, server}
                late = listener.fileno() < 0
            if late:  # the door was shut meanwhile
                _close(client)
                _close(server)
                return
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        with self._lock:
            self._open -= {source, sink}
        for end in (source, sink):
            _close(end)


def _close(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


class LoopbackS3:
    """The server with one bucket, and the door; used as a context, inside which this process has the keys."""

    def __enter__(self) -> LoopbackS3:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        self._server.start()
        self._port = self._server.get_host_and_port()[1]
        self.door = Door(self._port)
        self._environment = patch.dict(os.environ, KEYS)
        self._environment.start()
        endpoint = f"127.0.0.1:{self._port}"
        fs.S3FileSystem(endpoint_override=endpoint, scheme="http", allow_bucket_creation=True).create_dir(BUCKET)
        return self

    def __exit__(self, *_: object) -> None:
        self._environment.stop()
        self.door.shut()
        self._server.stop()

    def uri(self, *, direct: bool = False) -> str:
        """Of the bucket; ``direct``: past the door."""
        port = self._port if direct else self.door.port
        return f"s3://{BUCKET}?endpoint_override=127.0.0.1%3A{port}&scheme=http&region=us-east-1"
