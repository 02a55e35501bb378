"""An S3 server on loopback, in a process of its own that ends with the block, and the keys it is asked with."""

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from urllib.parse import quote
from urllib.request import urlopen

from pyarrow import fs

_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
KEYS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def s3_server(bucket: str = "bucket"):
    """Yields ``uri(path)``, the URI of a path in ``bucket``. Start Ray inside the block: workers need the keys too."""
    kept = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    command = [sys.executable, "-c", _SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        try:
            address = f"127.0.0.1:{int(server.stdout.readline())}"
            _wait(address)
            system = fs.S3FileSystem(
                endpoint_override=address, scheme="http", region="us-east-1", allow_bucket_creation=True
            )
            system.create_dir(bucket)
            options = f"endpoint_override={quote(address)}&scheme=http&region=us-east-1"
            yield lambda path: f"s3://{bucket}/{path}?{options}"
        finally:
            server.kill()
            for name, value in kept.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def _wait(address: str, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while True:
        try:
            urlopen(f"http://{address}/", timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.05)
