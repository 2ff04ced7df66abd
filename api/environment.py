"""Typed readers of environment variables.

Each reader returns the value of a variable, or the default if the variable is not set or blank. If the value is wrong,
the reader raises ImproperlyConfigured with a sentence that names the variable and the rule.
"""

import ipaddress
import os
import unicodedata
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from urllib.parse import SplitResult, parse_qsl, unquote, urlencode, urlsplit

from django.core.exceptions import ImproperlyConfigured, ValidationError
from django.core.validators import validate_email

from users import outgoing


def text(name: str, default: str = "") -> str:
    """Return the text of a variable without the blanks around it."""
    return os.environ.get(name, "").strip() or default


def strong_key(name: str, key: str) -> str:
    """Return a key that cannot be guessed: at least 40 characters, at least 10 of them different."""
    if len(key) < 40:
        raise ImproperlyConfigured(f"{name} must have at least 40 characters in production.")
    if len(set(key)) < 10:
        raise ImproperlyConfigured(f"{name} must be random in production: it has fewer than 10 different characters.")
    return key


def flag(name: str, default: bool) -> bool:
    """Return True or False for True, False, 1, 0, yes, no, on, off, in any case."""
    value = text(name, str(default)).lower()
    if value not in {"true", "false", "1", "0", "yes", "no", "on", "off"}:
        raise ImproperlyConfigured(f"{name} must be True or False, not {value!r}.")
    return value in {"true", "1", "yes", "on"}


def whole(name: str, default: int, *, low: int, high: int) -> int:
    """Return a whole number from `low` to `high`, written in ASCII digits."""
    value = text(name, str(default))
    if not (value.isascii() and value.isdigit() and low <= int(value) <= high):
        raise ImproperlyConfigured(f"{name} must be a whole number from {low} to {high}, not {value!r}.")
    return int(value)


def decimal(name: str, default: str, *, low: str, high: str, places: int = 2) -> Decimal:
    """Return a finite number from `low` to `high` with at most `places` decimals."""
    value = text(name, default)
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise ImproperlyConfigured(f"{name} must be a number from {low} to {high}, not {value!r}.") from None
    if not number.is_finite() or not Decimal(low) <= number <= Decimal(high):
        raise ImproperlyConfigured(f"{name} must be a number from {low} to {high}, not {value!r}.")
    if number != round(number, places):
        raise ImproperlyConfigured(f"{name} may have at most {places} decimal places, not {value!r}.")
    return number


def one_of(name: str, default: str, choices: tuple[str, ...]) -> str:
    """Return one of the choices, written exactly as in `choices`."""
    value = text(name, default)
    if value not in choices:
        raise ImproperlyConfigured(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def words(name: str, default: str = "") -> list[str]:
    """Return the parts of a list that is separated by commas."""
    return [word.strip() for word in text(name, default).split(",") if word.strip()]


def networks(name: str, default: str) -> list[str]:
    """Return a list of IP addresses or networks, such as `196.201.214.200` or `196.201.214.0/24`."""
    addresses = words(name, default)
    for address in addresses:
        try:
            ipaddress.ip_network(address)
        except ValueError:
            raise ImproperlyConfigured(f"{name} has {address!r}, which is not an IP address.") from None
    return addresses


def refuse_wide(name: str, addresses: list[str]) -> None:
    """Refuse networks so wide that most of the internet is in them, because everybody could then claim an address."""
    for address in addresses:
        network = ipaddress.ip_network(address)
        if network.prefixlen < (8 if network.version == 4 else 16) and not network.is_private:
            raise ImproperlyConfigured(f"{name} has {address!r}. Name the addresses of the hosts, not of the internet.")


def url_parts(name: str, url: str) -> SplitResult:
    """Return the parts of a URL whose host and port can be read. The sentence of a refusal does not show the URL."""
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ImproperlyConfigured(f"{name} must have a host, and a port from 0 to 65535 if it has a port.") from None
    return parts


def host_of(parts: SplitResult) -> str:
    """Return a URL's host as a resolver reads it: lower case, compatible dots and letters, without a last dot."""
    host = unicodedata.normalize("NFKC", unquote(parts.hostname or "")).replace("\u3002", ".").lower()
    # A resolver leaves out characters that have no width, such as a soft hyphen (UTS 46).
    return "".join(letter for letter in host if letter.isprintable() and letter != "\u034f").rstrip(".")


def minutes_by_pool_size(name: str, default: str) -> tuple[tuple[Decimal, int], ...]:
    """Return pairs of a pool in shillings and the minutes for pools from that size, the smallest first.

    Examples of the text: `30`, or `0,100000:30,1000000:120`.
    """
    minutes_by_pool: dict[Decimal, int] = {}
    for part in words(name, default):
        smallest, colon, minutes = part.rpartition(":")
        try:
            pool = Decimal(smallest) if colon else Decimal(0)
        except InvalidOperation:
            pool = Decimal(-1)
        if not (pool.is_finite() and pool >= 0 and minutes.isascii() and minutes.isdigit() and int(minutes) <= 10_080):
            raise ImproperlyConfigured(
                f"{name} must be minutes up to 10080, or minutes by smallest pool such as 0,100000:30, not {part!r}."
            )
        if pool in minutes_by_pool:
            raise ImproperlyConfigured(f"{name} gives the minutes for pools from {pool} twice.")
        minutes_by_pool[pool] = int(minutes)
    return tuple(sorted(minutes_by_pool.items()))


def stages(name: str, default: str) -> tuple[int, ...]:
    """Return the sizes of stages, each at least 1: `1,10`, or () for `off`."""
    try:
        sizes = tuple(int(size) for size in words(name, default) if size != "off")
    except ValueError:
        raise ImproperlyConfigured(f"{name} must be whole numbers separated by commas, such as 1,10, or off.") from None
    if any(size < 1 for size in sizes):
        raise ImproperlyConfigured(f"{name} must have stages of at least one payout each, or be off.")
    return sizes


def addresses(name: str) -> list[str]:
    """Return a list of e-mail addresses."""
    listed = words(name)
    for address in listed:
        try:
            validate_email(address)
        except ValidationError:
            raise ImproperlyConfigured(f"{name} has {address!r}, which is not an e-mail address.") from None
    return listed


def public_url(name: str) -> str:
    """Return a public https address, or an empty string. The sentence of a refusal does not show the address."""
    url = text(name)
    try:
        return outgoing.check(url) if url else ""
    except outgoing.NotAnOutgoingAddress as refusal:
        raise ImproperlyConfigured(f"{name} cannot be used: {refusal}") from None


@dataclass(frozen=True)
class MailServer:
    """The server that sends our e-mail. `is_tls`: TLS from the start. `starts_tls`: STARTTLS."""

    host: str = ""
    port: int = 25
    user: str = ""
    password: str = ""
    is_tls: bool = False
    starts_tls: bool = False


def mail_server(name: str, *, production: bool) -> MailServer:
    """Return the server of a URL such as `smtp+tls://user:password@mail.example.com:587`, or one without a host.

    The schemes: `smtps` is TLS from the start, `smtp+tls` is STARTTLS, and `smtp` is plain, which production refuses.
    """
    url = text(name)
    if not url:
        return MailServer()
    parts = url_parts(name, url)
    if parts.scheme not in MAIL_PORTS or not parts.hostname:
        raise ImproperlyConfigured(f"{name} must be smtps://, smtp+tls:// or smtp://, then user:password@host:port.")
    if production and parts.scheme == "smtp":
        raise ImproperlyConfigured(f"{name} must be smtps:// or smtp+tls:// in production.")
    return MailServer(
        host=parts.hostname,
        port=parts.port or MAIL_PORTS[parts.scheme],
        user=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        is_tls=parts.scheme == "smtps",
        starts_tls=parts.scheme == "smtp+tls",
    )


MAIL_PORTS = {"smtps": 465, "smtp+tls": 587, "smtp": 25}
REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
TLS_CHECKS = {"required": "required", "optional": "optional", "none": "none"}
TLS_CHECKS |= {f"cert_{word}": word for word in ("required", "optional", "none")}


def redis_url(name: str, *, production: bool) -> str:
    """Return a URL of Redis, or any other URL unchanged. A `rediss://` URL gets a spelling that all clients know.

    In production a Redis that is reached over the network needs a password.
    Without `ssl_cert_reqs`, Celery's results refuse to start, and its broker does not verify the server. redis-py does
    not know `CERT_REQUIRED`. All of them know `required`, which is our default.
    """
    url = text(name)
    if not url.startswith(("redis://", "rediss://")):
        return url
    parts = url_parts(name, url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if production and not (parts.password or options.get("password")):
        raise ImproperlyConfigured(f"{name} must have a password in production, as in redis://:PASSWORD@host:6379/0.")
    if parts.scheme == "redis":
        return url
    check = TLS_CHECKS.get(options.get("ssl_cert_reqs", "required").lower())
    if check is None:
        raise ImproperlyConfigured(
            f"{name} must have ssl_cert_reqs=required, optional or none, not {options['ssl_cert_reqs']!r}."
        )
    if production and check == "none":
        raise ImproperlyConfigured(f"{name} must not have ssl_cert_reqs=none in production. Use ssl_ca_certs=FILE.")
    return parts._replace(query=urlencode(options | {"ssl_cert_reqs": check})).geturl()


def postgres_url(name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return Django's connection settings for a `postgres://user:password@host:port/name` URL, and its query options.

    The option `?host=/socket/dir` names a Unix socket. It becomes the host.
    """
    url = text(name)
    parts = url_parts(name, url)
    if parts.scheme not in {"postgres", "postgresql"}:
        raise ImproperlyConfigured(f"{name} must begin with postgres:// (KASOKO runs on PostgreSQL), not {url[:8]!r}….")
    options = dict(pair.split("=", 1) for pair in parts.query.split("&") if "=" in pair)
    connection = {
        "NAME": unquote(parts.path.lstrip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(options.pop("host", parts.hostname or "")),
        "PORT": str(parts.port or ""),
    }
    return connection, {option: unquote(value) for option, value in options.items()}
