"""Models of payments, with one file for each subject. Import the models from here."""

from payments.models.bulk_retries import BulkRetry
from payments.models.callbacks import Callback
from payments.models.certificates import Certificate, CertificateBlock
from payments.models.database import DatabaseProfile
from payments.models.day_totals import DayTotal
from payments.models.decisions import Verdict
from payments.models.disputes import Dispute, DisputeEvent
from payments.models.float_readings import FloatReading
from payments.models.ledger import LedgerAccount, LedgerDay, Recovery, Transfer
from payments.models.monitoring import Figures, Heartbeat, InvariantCheck
from payments.models.orphans import Orphan
from payments.models.payouts import Attempt, Breaker, StatusQuery, Transaction
from payments.models.restores import AskFirst, DatabaseHeartbeat, Restore, RestoreDecision
from payments.models.settlements import Settlement

__all__ = [
    "AskFirst",
    "Attempt",
    "Breaker",
    "BulkRetry",
    "Callback",
    "Certificate",
    "CertificateBlock",
    "DatabaseHeartbeat",
    "DatabaseProfile",
    "DayTotal",
    "Dispute",
    "DisputeEvent",
    "Figures",
    "FloatReading",
    "Heartbeat",
    "InvariantCheck",
    "LedgerAccount",
    "LedgerDay",
    "Orphan",
    "Recovery",
    "Restore",
    "RestoreDecision",
    "Settlement",
    "StatusQuery",
    "Transaction",
    "Transfer",
    "Verdict",
]
