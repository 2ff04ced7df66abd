"""The rows of payments, one file a noun; imported from here by everybody."""

from payments.models.certificates import Certificate, CertificateBlock
from payments.models.decisions import FloatReading, Proposal, Recovery
from payments.models.disputes import Dispute, DisputeEvent
from payments.models.payouts import (
    Attempt,
    Breaker,
    Callback,
    Figures,
    Heartbeat,
    InvariantCheck,
    LedgerAccount,
    LedgerDay,
    Settlement,
    StatusQuery,
    Transaction,
    Transfer,
    Verdict,
)

__all__ = [
    "Attempt",
    "Breaker",
    "Callback",
    "Certificate",
    "CertificateBlock",
    "Dispute",
    "DisputeEvent",
    "Figures",
    "FloatReading",
    "Heartbeat",
    "InvariantCheck",
    "LedgerAccount",
    "LedgerDay",
    "Proposal",
    "Recovery",
    "Settlement",
    "StatusQuery",
    "Transaction",
    "Transfer",
    "Verdict",
]
