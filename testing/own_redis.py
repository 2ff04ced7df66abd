"""A Redis of a test's own, which the test may fill, stop or start again, and a TLS entrance to a Redis."""

import datetime
import ipaddress
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from api import embedded
from api.embedded.keeper import Keeper

HOST = "127.0.0.1"


class OwnRedis:
    """A running Redis. `url` is the URL of its database 0."""

    def __init__(self, base_dir: Path) -> None:
        state = embedded.state_dir(base_dir, "fast")
        state.mkdir(mode=0o711, parents=True, exist_ok=True)
        self._server = Keeper(state, "fast").make_server("redis")
        self._server.start()
        self.url = self._server.urls["CELERY_BROKER_URL"]

    def command(self, *words: str) -> None:
        """Run one command."""
        with redis.Redis.from_url(self.url) as client:
            client.execute_command(*words)

    def stop(self) -> None:
        """Stop the server. Its data are lost."""
        self._server.stop()

    def start(self) -> None:
        """Start the server again, empty, at the same port."""
        self._server.start()


@contextmanager
def own_redis() -> Iterator[OwnRedis]:
    """Start a Redis of one's own, and stop it at the end. Use it from one thread, with which it would end."""
    # Not pytest's tmp_path, because root's servers run as another user, who may not enter it.
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o711)
        server = OwnRedis(Path(directory))
        try:
            yield server
        finally:
            server.stop()


def write_certificate(directory: Path) -> tuple[Path, Path]:
    """Write a self-signed certificate for HOST and its key. Return both files."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, HOST)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(HOST))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate_file, key_file = directory / "redis.pem", directory / "redis-key.pem"
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )  # fmt: skip
    return certificate_file, key_file


@contextmanager
def tls_entrance(port: int, certificate: tuple[Path, Path]) -> Iterator[int]:
    """Accept TLS connections and pass their bytes to `port`, because the embedded Redis has no TLS. Yield the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    with socket.create_server((HOST, 0)) as listener:
        threading.Thread(target=_accept, args=(listener, context, port), daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            # Without this the thread's accept would go on after the listener is closed.
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, context: ssl.SSLContext, port: int) -> None:
    while True:
        try:
            plain, _ = listener.accept()
        except OSError:
            return
        threading.Thread(target=_serve, args=(plain, context, port), daemon=True).start()


def _serve(plain: socket.socket, context: ssl.SSLContext, port: int) -> None:
    with suppress(OSError), plain, socket.create_connection((HOST, port)) as server:
        plain.settimeout(10)
        with context.wrap_socket(plain, server_side=True) as client:
            client.settimeout(None)
            back = threading.Thread(target=_pass_on, args=(server, client), daemon=True)
            back.start()
            _pass_on(client, server)
            back.join(10)


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
