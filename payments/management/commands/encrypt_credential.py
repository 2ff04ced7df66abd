"""`python manage.py encrypt_credential --cert FILE`: print the value of MPESA_SECURITY_CREDENTIAL_ENCRYPTED."""

import getpass
import sys
import warnings
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from payments.mpesa.security_credential import UnusableKey, encrypt_credential


class Command(BaseCommand):
    help = "Encrypt the M-Pesa initiator's password with Safaricom's certificate and print it in base64."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--cert", required=True, type=Path, help="certificate or public key, PEM or DER")
        parser.add_argument("--stdin", action="store_true", help="read the password from one line of standard input")

    def handle(self, *args: Any, cert: Path, stdin: bool, **options: Any) -> None:
        try:
            key_bytes = cert.read_bytes()
        except OSError as error:
            raise CommandError(f"Cannot read {cert}: {error.strerror}.") from None
        try:
            self.stdout.write(encrypt_credential(key_bytes, _password(from_stdin=stdin)))
        except UnusableKey as error:
            raise CommandError(str(error)) from None


def _password(*, from_stdin: bool) -> str:
    if from_stdin:
        return sys.stdin.readline().rstrip("\r\n")
    with warnings.catch_warnings():
        # Without a terminal, getpass would show the password as it is typed.
        warnings.simplefilter("error", getpass.GetPassWarning)
        try:
            return getpass.getpass("Initiator password (not shown): ")
        except (getpass.GetPassWarning, EOFError):
            raise CommandError("There is no terminal on which to type the password. Use --stdin.") from None
