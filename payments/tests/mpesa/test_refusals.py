"""Classification of refusals by the field that M-Pesa names."""

import pytest

from payments.mpesa import refusals

REFUSED = "400.002.02"


@pytest.mark.parametrize(
    "field", ["PartyB", "partyb", "Party B", "PhoneNumber", "Phone Number", "ReceiverParty", "MSISDN"]
)
def test_payees_field_is_no_fault_of_ours(field: str) -> None:
    assert refusals.our_fault(REFUSED, f"Bad Request - Invalid {field}") is None


@pytest.mark.parametrize(
    ("field", "cause", "setting"),
    [
        ("InitiatorName", "credentials", "MPESA_INITIATOR_NAME"),
        ("Initiator", "credentials", "MPESA_INITIATOR_NAME"),
        ("Initiator Name", "credentials", "MPESA_INITIATOR_NAME"),
        ("SecurityCredential", "credentials", "MPESA_SECURITY_CREDENTIAL_ENCRYPTED"),
        ("Security Credential", "credentials", "MPESA_SECURITY_CREDENTIAL_ENCRYPTED"),
        ("PartyA", "settings", "MPESA_PAYBILL"),
        ("ShortCode", "settings", "MPESA_PAYBILL"),
        ("ResultURL", "settings", "MPESA_CALLBACK_URL"),
        ("QueueTimeOutURL", "settings", "MPESA_CALLBACK_URL"),
        ("CommandID", "settings", "MPESA_COMMAND_ID"),
        ("Remarks", "settings", ""),
        ("Occassion", "settings", ""),
        ("OriginatorConversationID", "settings", ""),
        ("Amount", "settings", ""),
        ("Content type", "settings", ""),
    ],
)
def test_field_of_ours_names_its_cause_and_setting(field: str, cause: str, setting: str) -> None:
    # when
    fault = refusals.our_fault(REFUSED, f"Bad Request - Invalid {field}")

    # then
    assert fault is not None
    assert (fault.cause, fault.setting) == (cause, setting)
    assert fault.field.lower().startswith(field.split()[0].lower())
    assert (setting or "developers") in fault.advice


@pytest.mark.parametrize(
    ("code", "message", "cause", "setting"),
    [
        ("404.001.01", "Resource not found", "settings", "MPESA_BASE_URL"),
        ("404.002.01", "Resource not found", "settings", "MPESA_BASE_URL"),
        ("404.003.01", "Resource not found", "settings", "MPESA_BASE_URL"),
        ("405.001", "Method Not Allowed", "settings", "MPESA_BASE_URL"),
        ("403.002.1001", "You are not authorized to initiate this transaction", "product", ""),
        ("400.003.02", "Bad Request - Kindly use your own ShortCode", "settings", "MPESA_PAYBILL"),
        ("400.002.05", "Invalid Request Payload", "settings", ""),
        ("25", "", "settings", ""),
        ("400.002.02", "Bad Request", "settings", ""),
    ],
)
def test_refusal_without_the_payees_field_is_ours(code: str, message: str, cause: str, setting: str) -> None:
    # when
    fault = refusals.our_fault(code, message)

    # then
    assert fault is not None
    assert (fault.cause, fault.setting) == (cause, setting)
