"""Refusals of payment requests: whose field M-Pesa refuses, and the setting to check. Pure.

Only the payee's field blames the payee. All other fields are ours, so a refusal without a field is ours too.
"""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

Cause: TypeAlias = Literal["credentials", "settings", "product"]


@dataclass(frozen=True)
class OurFault:
    """A refusal for a fault of ours, which concerns every payout.

    `setting` is the environment variable to check. It is empty if no setting makes the field.
    """

    cause: Cause
    field: str
    setting: str

    @property
    def may_concern_one_payout(self) -> bool:
        """True if the field is made for each payout, so that M-Pesa may refuse one payout and accept all others."""
        return self.cause == "settings" and not self.setting

    @property
    def advice(self) -> str:
        """The next step, in a sentence for the operator."""
        if self.cause == "product":
            return "Ask Safaricom if B2C v3 is enabled for our app, and if our server's address is allowed."
        if self.setting:
            return f"Check the setting {self.setting}, then restart the workers."
        return "No setting makes this field. Report it to the developers."


# Field names of the B2C request that name the payee, in small letters without blanks.
_PAYEE = frozenset({"partyb", "phonenumber", "phone", "msisdn", "receiverparty", "receiver", "creditparty"})
# The cause and the setting of each field of ours.
_OURS: dict[str, tuple[Cause, str]] = {
    "initiator": ("credentials", "MPESA_INITIATOR_NAME"),
    "initiatorname": ("credentials", "MPESA_INITIATOR_NAME"),
    "securitycredential": ("credentials", "MPESA_SECURITY_CREDENTIAL_ENCRYPTED"),
    "partya": ("settings", "MPESA_PAYBILL"),
    "shortcode": ("settings", "MPESA_PAYBILL"),
    "resulturl": ("settings", "MPESA_CALLBACK_URL"),
    "queuetimeouturl": ("settings", "MPESA_CALLBACK_URL"),
    "callbackurl": ("settings", "MPESA_CALLBACK_URL"),
    "commandid": ("settings", "MPESA_COMMAND_ID"),
}
_NAMED = re.compile(r"(?i)\binvalid\s+([A-Za-z]+(?:\s+[A-Za-z]+)?)")
_OWN_SHORTCODE = re.compile(r"(?i)your own short\s*code")


def our_fault(code: str, message: str) -> OurFault | None:
    """Return our fault in a refusal by its code and message, or None if M-Pesa refuses the payee's field."""
    if code.startswith("403."):
        return OurFault("product", "", "")
    if code.startswith(("404.", "405.")):
        return OurFault("settings", "the address of M-Pesa's B2C service", "MPESA_BASE_URL")
    field = "short code" if _OWN_SHORTCODE.search(message) else _named_field(message)
    name = field.replace(" ", "").lower()
    if name in _PAYEE:
        return None
    cause, setting = _OURS.get(name, ("settings", ""))
    return OurFault(cause, field, setting)


def _named_field(message: str) -> str:
    """Return the field that a message calls invalid, or an empty text. The name may be written as two words."""
    named = _NAMED.search(message)
    if named is None:
        return ""
    words = named[1].split()
    both = "".join(words).lower()
    return " ".join(words) if both in _PAYEE or both in _OURS else words[0]
