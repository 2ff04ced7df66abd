"""Fixtures of the gateway's tests: tokens in Redis, a gateway, a mocked Daraja and a TLS certificate."""

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from uuid import uuid4

import pytest
import redis
import responses
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from payments.mpesa.access_tokens import SharedTokens
from payments.mpesa.client import Gateway
from testing.gateways import SEAL, TOKEN_URL, credentials


@pytest.fixture
def redis_client() -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(os.environ["CELERY_BROKER_URL"])
    yield client
    for key in client.scan_iter("daraja:token:test-*"):
        client.delete(key)
    client.close()


@pytest.fixture
def tokens(redis_client: redis.Redis) -> SharedTokens:
    return SharedTokens(redis_client, name=f"test-{uuid4().hex}", seal=SEAL)


@pytest.fixture
def gateway(tokens: SharedTokens) -> Iterator[Gateway]:
    gateway = Gateway(credentials(), tokens=tokens)
    yield gateway
    gateway.close()


@pytest.fixture
def daraja() -> Iterator[responses.RequestsMock]:
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.get(TOKEN_URL, json={"access_token": "first-token", "expires_in": "3599"})
        yield mock


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "server.pem"
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(signed.public_bytes(Encoding.PEM) + private)
    return path
