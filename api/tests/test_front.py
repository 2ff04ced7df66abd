"""The front server of compose, as a real nginx: slow senders and floods do not delay callbacks."""

import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from testing.running import OPERATOR, Running, free_port, running, until

ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "deploy" / "nginx.conf.template"
TOKEN = "0123456789abcdef" * 4
CALLBACK = f"/api/payments/b2c-callback/{TOKEN}/"
NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed: sudo apt-get install nginx-light"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("front"), TRUSTED_PROXY_HOPS="1") as started:
        started.start_web()
        yield started


@pytest.fixture(scope="module")
def front(place: Running, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run nginx with the template before a web process for calls and one for callbacks. Yield its URL."""
    directory, port = tmp_path_factory.mktemp("nginx"), free_port()
    names = {"LISTEN": f"127.0.0.1:{port}", "WEB": urlsplit(place.url).netloc,
             "CALLBACKS": urlsplit(place.start_second_web()).netloc}  # fmt: skip
    site = re.sub(r"\$\{(LISTEN|WEB|CALLBACKS)\}", lambda name: names[name[1]], TEMPLATE.read_text(encoding="utf-8"))
    for stream, log in (("/dev/stdout", "access.log"), ("/dev/stderr", "error.log")):
        site = site.replace(stream, str(directory / log))
    (directory / "kasoko.conf").write_text(site, encoding="utf-8")
    paths = "".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/nginx.pid; error_log {directory}/error.log; events {{}}"
        f" http {{ {paths} include {directory}/kasoko.conf; }}",
        encoding="utf-8",
    )
    child = subprocess.Popen([str(NGINX), "-p", str(directory), "-c", "nginx.conf", "-e", f"{directory}/error.log"])
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: answers(url), "nginx", lambda: (directory / "error.log").read_text())
        yield url
    finally:
        child.terminate()
        child.wait(20)


def answers(url: str) -> bool:
    try:
        return requests.get(url + "/healthz", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def post_callback(url: str) -> int:
    """Send a callback to an unknown address. 404 says that a web process has read and answered it."""
    return requests.post(
        url + CALLBACK, data="{}", headers={"Content-Type": "application/json"}, timeout=60
    ).status_code


def test_sender_cannot_choose_the_recorded_address(front: str, place: Running) -> None:
    """The front replaces the header, so the limits and the audit trail have the real address."""
    place.log_in()
    body, headers = {"phone_number": OPERATOR, "pin": "0000"}, {"X-Forwarded-For": "196.201.214.200"}
    assert requests.post(f"{front}/api/users/login/", json=body, headers=headers, timeout=60).status_code == 401
    assert place.sql("SELECT source FROM users_auditentry WHERE action = 'login.refused'") == [("127.0.0.1",)]


def test_slow_senders_occupy_no_web_process(front: str) -> None:
    """The web process has four threads. Twelve senders that send half a request would occupy them all."""
    address = (urlsplit(front).hostname, urlsplit(front).port)
    with ExitStack() as stack:
        for _ in range(12):
            slow = stack.enter_context(socket.create_connection(address, timeout=30))
            slow.sendall(
                f"POST {CALLBACK} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000\r\n"
                "Content-Type: application/json\r\n\r\n{".encode()
            )
        assert post_callback(front) == 404
        assert answers(front)


def test_flood_of_logins_is_refused_and_callbacks_go_on(front: str) -> None:
    statuses: list[int] = []

    def log_in() -> None:
        body = {"phone_number": "0712345678", "pin": "0000"}
        statuses.append(requests.post(f"{front}/api/users/login/", json=body, timeout=60).status_code)

    flood = [threading.Thread(target=log_in) for _ in range(60)]
    for thread in flood:
        thread.start()
    assert [post_callback(front) for _ in range(10)] == [404] * 10
    for thread in flood:
        thread.join(60)
    assert statuses.count(429) >= 20
    assert set(statuses) <= {401, 429}


def test_access_log_shows_neither_tokens_nor_queries(front: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    post_callback(front)
    requests.get(f"{front}/api/markets/?q=0712345678", timeout=60)
    (log,) = tmp_path_factory.getbasetemp().glob("nginx0/access.log")
    text = until(
        lambda: "/api/markets/" in log.read_text(encoding="utf-8") and log.read_text(encoding="utf-8"), "the log"
    )
    assert TOKEN not in text
    assert "0712345678" not in text
    assert "/api/payments/b2c-callback/…/" in text


@pytest.mark.parametrize(
    "path",
    [
        f"/api/payments/b2c-callback/{TOKEN}",
        f"/x/{TOKEN}/y",
        f"/{TOKEN.upper()}",
        "/me/0712345678/",
        "/me/%2B254%20712345678",
    ],
)
def test_access_log_shows_no_token_and_phone_of_an_unknown_path(
    front: str, path: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    requests.get(f"{front}/before/", timeout=60)
    requests.get(front + path, timeout=60)
    requests.get(f"{front}/after/", timeout=60)
    (log,) = tmp_path_factory.getbasetemp().glob("nginx0/access.log")
    text = until(lambda: "/after/" in log.read_text() and log.read_text(encoding="utf-8"), "the log")
    assert TOKEN[:56] not in text.lower()
    assert "712345678" not in text


def test_error_log_shows_no_request(front: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A large body and a flood are errors that nginx writes with the whole request, unless its level is higher."""
    requests.post(front + CALLBACK, data="x" * 70_000, timeout=60)
    statuses = [requests.post(f"{front}/api/users/login/?q=0712345678", timeout=60).status_code for _ in range(40)]
    assert 429 in statuses
    (log,) = tmp_path_factory.getbasetemp().glob("nginx0/error.log")
    assert TOKEN not in log.read_text(encoding="utf-8")
    assert "0712345678" not in log.read_text(encoding="utf-8")


def test_web_process_masks_requests_that_it_cannot_read(place: Running) -> None:
    """gunicorn writes the first line of such a request to its own log."""
    address = (urlsplit(place.url).hostname, urlsplit(place.url).port)
    with socket.create_connection(address, timeout=30) as odd:
        odd.sendall(f"GET {CALLBACK}?phone=0712345678\r\n\r\n".encode())
        assert b" 400 " in odd.recv(1000)
    text = until(lambda: "Invalid" in place.log("web") and place.log("web"), "the log")
    assert TOKEN not in text
    assert "0712345678" not in text


@pytest.mark.parametrize(("method", "status"), [("GET", 403), ("PUT", 403), ("DELETE", 403)])
def test_callback_addresses_take_posts_only(front: str, method: str, status: int) -> None:
    assert requests.request(method, front + CALLBACK, timeout=60).status_code == status


def test_large_body_is_refused_by_the_front(front: str) -> None:
    answer = requests.post(front + CALLBACK, data="x" * 70_000, timeout=60)
    assert answer.status_code == 413
