"""Redaction of texts for logs."""

from payments.mpesa import redaction


def test_redaction_hides_phones_tokens_and_credentials() -> None:
    text = redaction.redact(
        'Invalid Access Token - cJcPoBhGsVdt2kFqJ1m1q2 for 254712345678, "SecurityCredential": "short", s3cret\nx',
        "s3cret",
    )

    assert text == (
        'Invalid Access Token - [redacted] for 2547****678, "SecurityCredential": "[redacted]", [redacted] x'
    )
    assert redaction.redact("A" * 344) == "[redacted]"
    assert redaction.redact("receipt SKN4Q1ABCD of 285.00") == "receipt SKN4Q1ABCD of 285.00"
