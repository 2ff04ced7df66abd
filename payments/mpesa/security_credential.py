"""Security credential: the initiator's password, encrypted for M-Pesa's certificate. Pure."""

import base64

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key


class UnusableKey(ValueError):
    """A file that is not an RSA certificate or public key, or a password that does not fit the key."""


def encrypt_credential(key_bytes: bytes, password: str) -> str:
    """Encrypt the initiator's password for Daraja: RSA PKCS#1 v1.5 of the UTF-8 bytes, then base64.

    `key_bytes` is an X.509 certificate or a public key, in PEM or DER. The dates of a certificate are ignored:
    Safaricom's published certificates expired years ago and are still in use.
    The padding is random, so each call returns another text.
    Raises: UnusableKey.
    Source: Daraja portal, Transaction Status page, question 6.
    """
    key = _public_key(key_bytes)
    plain = password.encode("utf-8")
    longest = key.key_size // 8 - 11
    if not 0 < len(plain) <= longest:
        raise UnusableKey(f"The password must have 1 to {longest} bytes.")
    return base64.b64encode(key.encrypt(plain, padding.PKCS1v15())).decode("ascii")


def _public_key(key_bytes: bytes) -> rsa.RSAPublicKey:
    stripped = key_bytes.removeprefix(b"\xef\xbb\xbf").strip()
    if stripped.startswith(b"<"):
        raise UnusableKey("This file is a web page, not a certificate. The download failed; download it again.")
    if b"PRIVATE KEY-----" in stripped:
        raise UnusableKey("This file holds a private key. Use M-Pesa's certificate or public key.")
    key: object
    try:
        if b"-----BEGIN CERTIFICATE-----" in stripped:
            key = x509.load_pem_x509_certificate(stripped).public_key()
        elif b"-----BEGIN" in stripped:
            key = load_pem_public_key(stripped)
        else:
            key = _der_key(key_bytes)
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableKey("This file is neither an X.509 certificate nor a public key, in PEM or DER.") from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise UnusableKey("This key is not RSA. M-Pesa's key is an RSA key.")
    return key


def _der_key(key_bytes: bytes) -> object:
    try:
        return x509.load_der_x509_certificate(key_bytes).public_key()
    except ValueError:
        return load_der_public_key(key_bytes)
