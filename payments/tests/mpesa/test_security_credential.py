"""The security credential decrypts to the password, and a wrong file is refused with a reason."""

import base64
import getpass
import io
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import NameOID
from django.core.management import call_command
from django.core.management.base import CommandError

from payments.management.commands.encrypt_credential import Command
from payments.mpesa.security_credential import UnusableKey, encrypt_credential

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "apicrypt.example.com")])
EXPIRED = (
    x509.CertificateBuilder()
    .subject_name(NAME)
    .issuer_name(NAME)
    .public_key(KEY.public_key())
    .serial_number(1)
    .not_valid_before(datetime(2014, 11, 12, tzinfo=UTC))
    .not_valid_after(datetime(2016, 11, 11, tzinfo=UTC))
    .sign(KEY, hashes.SHA256())
)
PEM = EXPIRED.public_bytes(Encoding.PEM)
PUBLIC = KEY.public_key()
FILES = {
    "certificate, PEM": PEM,
    "certificate, DER": EXPIRED.public_bytes(Encoding.DER),
    "certificate after a preamble": b"\xef\xbb\xbfsubject=CN = apicrypt\r\n" + PEM.replace(b"\n", b"\r\n"),
    "public key, PEM": PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
    "public key, DER": PUBLIC.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
    "PKCS#1 key, PEM": PUBLIC.public_bytes(Encoding.PEM, PublicFormat.PKCS1),
}
WRONG_FILES = {
    "web page": (b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
    "empty": (b"", "neither"),
    "text": (b"hello", "neither"),
    "broken PEM": (PEM[:200] + PEM[300:], "neither"),
    "private key": (
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "private key",
    ),
    "elliptic curve": (
        ec.generate_private_key(ec.SECP256R1())
        .public_key()
        .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "not RSA",
    ),
}


def decrypted(credential: str) -> str:
    return KEY.decrypt(base64.b64decode(credential, validate=True), padding.PKCS1v15()).decode()


@pytest.mark.parametrize("key_bytes", FILES.values(), ids=FILES.keys())
def test_credential_decrypts_to_the_password_for_each_file_form(key_bytes: bytes) -> None:
    credential = encrypt_credential(key_bytes, "Pässword#12%")

    assert decrypted(credential) == "Pässword#12%"
    assert len(credential) == 344


def test_credential_differs_each_time() -> None:
    assert encrypt_credential(PEM, "secret") != encrypt_credential(PEM, "secret")


@pytest.mark.parametrize(("key_bytes", "words"), WRONG_FILES.values(), ids=WRONG_FILES.keys())
def test_file_that_is_not_a_certificate_is_refused_with_a_reason(key_bytes: bytes, words: str) -> None:
    with pytest.raises(UnusableKey, match=words):
        encrypt_credential(key_bytes, "secret")


@pytest.mark.parametrize("password", ["", "x" * 246])
def test_password_that_does_not_fit_the_key_is_refused(password: str) -> None:
    with pytest.raises(UnusableKey, match="1 to 245 bytes"):
        encrypt_credential(PEM, password)


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    cert = tmp_path / "certificate.cer"
    cert.write_bytes(PEM)

    def run_command(*arguments: str, cert_file: Path = cert) -> str:
        printed = io.StringIO()
        call_command(Command(stdout=printed), "--cert", str(cert_file), *arguments)
        return printed.getvalue()

    return run_command


def test_command_reads_the_password_from_standard_input(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("two words \r\nmore\n"))

    assert decrypted(run("--stdin").removesuffix("\n")) == "two words "


def test_command_asks_for_the_password_without_echo(run: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(getpass, "getpass", lambda prompt: asked.append(prompt) or "typed")

    assert decrypted(run().removesuffix("\n")) == "typed"
    assert asked == ["Initiator password (not shown): "]


def test_command_without_terminal_refuses_to_echo_the_password(
    run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_terminal(prompt: str) -> str:
        warnings.warn("Can not control echo on the terminal.", getpass.GetPassWarning, stacklevel=2)
        return "echoed"

    monkeypatch.setattr(getpass, "getpass", without_terminal)

    with pytest.raises(CommandError, match="--stdin"):
        run()


def test_command_names_an_unreadable_file(run: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"missing\.cer: No such file"):
        run("--stdin", cert_file=tmp_path / "missing.cer")


def test_command_reports_the_reason_for_a_refusal(
    run: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.cer"
    page.write_bytes(b"<html>")
    monkeypatch.setattr(sys, "stdin", io.StringIO("secret\n"))

    with pytest.raises(CommandError, match="web page"):
        run("--stdin", cert_file=page)
