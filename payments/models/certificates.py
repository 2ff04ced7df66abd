"""Issued certificates of settlements. Triggers refuse any later change."""

from typing import ClassVar

from django.db import models


class CertificateBlock(models.Model):
    """The Merkle root over an aligned block of 1,024 bets of a settlement; the last block may be shorter."""

    settlement = models.ForeignKey("payments.Settlement", on_delete=models.PROTECT, db_index=False)
    number = models.PositiveIntegerField(help_text="From 0.")
    last_bet_id = models.BigIntegerField()
    root = models.CharField(max_length=64)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["settlement", "number"], name="block_number_once_a_settlement"),
        ]

    def __str__(self) -> str:
        return f"Block {self.number} of settlement {self.settlement_id}"


class Certificate(models.Model):
    """The public statement of a settlement, in canonical JSON. It is stored as text, because `hash` is of this text."""

    settlement = models.OneToOneField("payments.Settlement", on_delete=models.PROTECT, related_name="certificate")
    issued_at = models.DateTimeField()
    statement = models.TextField()
    bet_count = models.PositiveBigIntegerField()
    root = models.CharField(max_length=64, help_text="Root of the Merkle tree over all bets.")
    hash = models.CharField(max_length=64)

    def __str__(self) -> str:
        return f"Certificate of settlement {self.settlement_id}"
