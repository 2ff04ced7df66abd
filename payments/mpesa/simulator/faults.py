"""Table of M-Pesa's faults that the simulator can produce, and parser of the texts that request them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Stage = Literal["payment", "status", "deposit"]

# Result codes for a payment that did not happen. Source: Daraja portal, B2C page, result codes.
PAYMENT_FAILURES: Mapping[str, str] = {
    "1": "The balance is insufficient for the transaction.",
    "2": "Declined due to limit rule: less than the minimum transaction amount.",
    "3": "Declined due to limit rule: greater than the maximum transaction amount.",
    "4": "Declined due to limit rule: would exceed the daily transfer limit.",
    "8": "Declined due to limit rule: would exceed the maximum balance.",
    "11": "The DebitParty is in an invalid state.",
    "21": "The initiator is not allowed to initiate this request.",
    "2001": "The initiator information is invalid.",
    "2006": "Declined due to account rule: the account status does not allow this transaction.",
    "2028": "The request is not permitted according to product assignment.",
    "2040": "Credit Party customer type (Unregistered or Registered Customer) can't be supported by the service.",
    "8006": "The security credential is locked.",
    "SFC_IC0003": "The operator does not exist.",
}
# Source: Daraja portal, M-Pesa Express page, result codes.
DEPOSIT_FAILURES: Mapping[str, str] = {
    "1": "The balance is insufficient for the transaction.",
    "2": "Declined due to limit rule: less than the minimum transaction amount.",
    "3": "Declined due to limit rule: greater than the maximum transaction amount.",
    "4": "Declined due to limit rule: would exceed the daily transfer limit.",
    "8": "Declined due to limit rule: would exceed the maximum balance.",
    "17": "Rule limited: the same amount to the same customer within two minutes.",
    "1019": "Transaction has expired.",
    "1025": "An error occurred while sending a push request.",
    "1032": "Request cancelled by user.",
    "1037": "DS timeout user cannot be reached.",
    "2001": "The initiator information is invalid.",
    "2028": "The request is not permitted according to product assignment.",
    "8006": "The security credential is locked.",
    "SFC_IC0003": "The operator does not exist.",
}
RANDOM_FAILURES = ("1", "4", "8", "2001", "2040", "SFC_IC0003")
TOKEN_ERROR_CODES = ("404.001.03", "401.002.01", "400.003.01", "404.001.04")


@dataclass(frozen=True, slots=True)
class Fault:
    """One row of the table: the effect on the wire, the effect on the money, and the source of the fact.

    `choices` are the variants, one group per aspect. A specification may name one variant of each group. For a group
    without a named variant the seed picks one, but never a variant in `named_only`.
    `seconds` is the default duration of a fault that takes time.
    A random fault affects only the first N requests (or status queries) with one originator conversation id; `first`
    is N. A later request then succeeds. None means no limit.
    """

    name: str
    wire: str
    money: str
    source: str
    stages: frozenset[Stage] = frozenset({"payment"})
    choices: tuple[tuple[str, ...], ...] = ()
    named_only: frozenset[str] = frozenset()
    seconds: float | None = None
    first: int | None = None


_BOTH: frozenset[Stage] = frozenset({"payment", "deposit"})
_STATUS: frozenset[Stage] = frozenset({"status"})
_RESULT_SAMPLES = "Daraja portal, sample results"

TABLE: tuple[Fault, ...] = (
    Fault(
        "ack_lost",
        "the connection closes without a response; the result follows",
        "moves as usual",
        "121-platform, sending of B2C requests; ordinary TCP",
        stages=_BOTH,
    ),
    Fault(
        "slow",
        "the acknowledgement takes N seconds, and usually arrives after the result",
        "moves as usual",
        "Public integrations report acknowledgements slower than their read timeout",
        stages=_BOTH,
        seconds=6.0,
    ),
    Fault(
        "error_500",
        "HTTP 500 with 500.003.1001, or HTTP 503 with an HTML page",
        "executed: moves and a result follows; dropped: never moves",
        "Daraja portal, error table; safaricom/mpesa-php-sdk issue 58 for the bare 503",
        choices=(("json", "html"), ("executed", "dropped")),
        first=1,
    ),
    Fault(
        "spike_arrest",
        "HTTP 500 with 500.003.02",
        "never moves; the same id is accepted later",
        "Daraja portal, M-Pesa Express and Account Balance pages",
        first=1,
    ),
    Fault(
        "quota",
        "HTTP 500 with 500.003.03",
        "never moves; the same id is accepted later",
        "Daraja portal, error table",
        first=1,
    ),
    Fault(
        "token_expired",
        "the token ends early: one of the four error codes for a bad token",
        "never moves; the same id is accepted with a new token",
        "Daraja portal: Authorization, Reversal, Account Balance and Transaction Status pages",
        choices=(TOKEN_ERROR_CODES,),
        first=1,
    ),
    Fault(
        "callback_lost",
        "no result is posted",
        "moves as usual",
        "Daraja portal, Account Balance page: no automatic redelivery",
        stages=_BOTH,
    ),
    Fault(
        "callback_doubled",
        "the same result is posted twice, at the same time",
        "moves once",
        "Public integrations report repeated callbacks",
        stages=_BOTH,
    ),
    Fault(
        "callback_early",
        "the result is posted before the acknowledgement",
        "moves as usual",
        "121-platform pull request 5793",
    ),
    Fault(
        "callback_late",
        "the result is posted N seconds later",
        "moves at the ordinary time",
        "Issues of safaricom/mpesa-php-sdk: minutes to hours",
        stages=_BOTH,
        seconds=30.0,
    ),
    Fault(
        "out_of_order",
        "the result waits for the answer to a status query, at most N seconds",
        "moves at the ordinary time",
        "Public integrations: status answer before the payment result",
        seconds=60.0,
    ),
    Fault(
        "queue_timeout",
        "a post to QueueTimeOutURL: the flat request, or a Result envelope with code 1",
        "result: the money moves, and a result is posted; silence: the money moves, and no result is posted; expired:"
        " the money never moves, no result is posted, and a status query says Expired; dropped: the money never moves,"
        " no result is posted, and a status query does not find the payment",
        "Safaricom/Huawei broker B2C specification (notifyQueueTimeout); 121-platform mock; SDK fixtures; for Expired"
        " the Daraja portal, Transaction Status page",
        choices=(("flat", "envelope"), ("result", "silence", "expired", "dropped")),
        # Never drawn at random: only M-Pesa's statement shows that such a payment was not made, so each one would wait
        # for a person.
        named_only=frozenset({"dropped"}),
    ),
    Fault(
        "duplicate_id",
        "a repeated id is acknowledged, then a result with code 15 carries the id of the original",
        "the original stands, the repetition moves nothing",
        "Daraja portal, Account Balance page, code 15; broker B2C specification",
    ),
    Fault(
        "fail",
        "a result with this definite failure code; a status query then says Failed",
        "never moves",
        "Daraja portal, B2C and M-Pesa Express pages, result codes",
        stages=_BOTH,
        choices=(tuple({**PAYMENT_FAILURES, **DEPOSIT_FAILURES}),),
    ),
    Fault(
        "system_17",
        "a result with code 17; a status query reports the true result",
        "executed: moves; dropped: never moves",
        "Daraja portal, B2C page, code 17: internal failure, a catch-all",
        choices=(("executed", "dropped"),),
    ),
    Fault(
        "string_codes",
        'ResultCode and ResultType are strings ("0")',
        "moves as usual",
        _RESULT_SAMPLES,
    ),
    Fault(
        "dict_parameter",
        "ResultParameter is one object, the receipt, instead of a list",
        "moves as usual",
        "Daraja portal, B2C Account Top Up page, sample result",
    ),
    Fault(
        "missing_values",
        "some parameters have a Key and no Value, the receiver among them",
        "moves as usual",
        _RESULT_SAMPLES,
    ),
    Fault(
        "masked_receiver",
        "the receiver's number and name are masked (0722***149)",
        "moves as usual",
        "Reports of masked numbers from March 2026; unconfirmed for B2C",
    ),
    Fault(
        "odd_body",
        "the result comes in chunks, after a byte order mark, in Windows-1252, with a raw control character, or with"
        " parameters of other types and items without a key",
        "moves as usual",
        "Public integrations and production captures of 2024 to 2026",
        choices=(("chunked", "bom", "windows_1252", "control", "parameters"),),
    ),
    Fault(
        "status_lost",
        "a status query is acknowledged and never answered",
        "untouched",
        "Daraja portal, Account Balance page: no automatic redelivery",
        stages=_STATUS,
        first=1,
    ),
    Fault(
        "status_not_found",
        "a status query is answered with the not-found code although the payment is known",
        "untouched",
        "Broker B2C specification, code 49; the request may still sit in the broker's cache",
        stages=_STATUS,
        first=2,
    ),
)
FAULTS: Mapping[str, Fault] = {fault.name: fault for fault in TABLE}

_SPEC = re.compile(r"(?P<name>[a-z0-9_]+?)(?::(?P<argument>[A-Za-z0-9_.+]+?))?(?:x(?P<count>[1-9][0-9]{0,8}))?")
_PHONE = re.compile(r"254[17][0-9]{8}")


@dataclass(frozen=True, slots=True)
class Spec:
    """A requested fault: `name` or `name:argument`. The suffix `xN` limits the fault to its first N uses."""

    text: str
    fault: Fault
    options: tuple[str, ...]
    seconds: float | None
    count: int | None


def parse(text: str) -> Spec:
    """Read a specification such as `callback_lost`, `fail:2040x1`, `slow:2` or `error_500:html+dropped`.

    Raises: ValueError for an unknown fault, an unknown variant or a wrong time. Its message can be shown to the user.
    """
    match = _SPEC.fullmatch(text)
    if match is None or match["name"] not in FAULTS:
        raise ValueError(f"{text!r} is not a fault; the faults are {', '.join(FAULTS)}")
    fault, argument = FAULTS[match["name"]], match["argument"]
    count = int(match["count"]) if match["count"] else None
    if argument is None:
        return Spec(text, fault, (), fault.seconds, count)
    if fault.seconds is not None:
        try:
            return Spec(text, fault, (), float(argument), count)
        except ValueError as error:
            raise ValueError(f"{text!r}: {fault.name} takes a number of seconds") from error
    options = tuple(argument.split("+"))
    for option in options:
        if not any(option in group for group in fault.choices):
            raise ValueError(f"{text!r}: {fault.name} has no variant {option!r}")
    return Spec(text, fault, options, None, count)


def parse_names(text: str) -> tuple[str, ...]:
    """Read `all`, or fault names separated by commas. Raises: ValueError for an unknown name."""
    names = tuple(FAULTS) if text == "all" else tuple(name for name in text.split(",") if name)
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"{name!r} is not a fault; the faults are {', '.join(FAULTS)}")
    return names


def parse_phone(text: str) -> tuple[str, str]:
    """Read `2547XXXXXXXX=SPEC`. Raises: ValueError for a wrong number or a wrong specification."""
    phone, _, spec = text.partition("=")
    if not _PHONE.fullmatch(phone):
        raise ValueError(f"{phone!r} is not a number of twelve digits such as 254712345678")
    parse(spec)
    return phone, spec


@dataclass(frozen=True, slots=True)
class ActiveFaults:
    """The faults of one request. `variants` maps a fault's name to its variants, `seconds` to its duration.

    If a requested fault has a limit `xN`, each request that has the fault uses it once. `used_faults` holds the
    specifications of these faults. The book keeps them, so that a restart continues the count.
    """

    variants: Mapping[str, tuple[str, ...]]
    seconds: Mapping[str, float]
    used_faults: tuple[str, ...]

    def __contains__(self, name: str) -> bool:
        return name in self.variants

    def has(self, name: str, option: str) -> bool:
        """Return True if the fault is active in this variant."""
        return option in self.variants.get(name, ())

    def texts(self) -> list[str]:
        """Return the specifications from which `active_faults_from` rebuilds these faults."""
        arguments = {name: "+".join(options) for name, options in self.variants.items()}
        arguments |= {name: str(seconds) for name, seconds in self.seconds.items()}
        return [f"{name}:{argument}" if argument else name for name, argument in arguments.items()]


NO_FAULTS = ActiveFaults({}, {}, ())


def active_faults_from(texts: Iterable[str]) -> ActiveFaults:
    """Rebuild active faults from the specifications of `ActiveFaults.texts`."""
    specs = [parse(text) for text in texts]
    if not specs:
        return NO_FAULTS
    return ActiveFaults(
        {spec.fault.name: spec.options for spec in specs},
        {spec.fault.name: spec.seconds for spec in specs if spec.seconds is not None},
        (),
    )
