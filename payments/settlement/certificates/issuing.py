"""Certificates: issue and reading of the public statement of a settlement.

`issue` hashes the bets of a settled market, a few blocks at a time. A million bets take several steps. At the end it
writes the statement and its hash. A later proof of one bet reads only one block. `issue` reads only rows that a
settlement writes, so it also works for markets that were settled before certificates existed. docs/certificate.md
describes the format.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from itertools import zip_longest
from typing import Any, cast

from django.db import connection, transaction
from django.db.models import Case, Count, Q, Sum, When

from markets import locks, parimutuel
from markets.models import Bet, Market, Outcome
from payments.models import Certificate, CertificateBlock, Settlement
from payments.settlement import failures, status
from payments.settlement.certificates import document as certificates_document
from payments.settlement.certificates import merkle
from users.refusal import Refusal

BLOCKS_PER_STEP = 16
PAGE = 5_000


class NotSettled(Refusal):
    """The market has no complete settlement. The details list all its settlements with their states."""

    def __init__(self, market_id: int, settlements: list[dict[str, Any]]) -> None:
        super().__init__(f"Market {market_id} is not settled: there is no certificate.")
        self.details = {"runs": settlements}


class NotIssuedYet(Refusal):
    """The certificate of a large market is being made, some seconds after the settlement."""


@dataclass(frozen=True)
class Proof:
    """Proof that a bet is in the tree of its settlement. `index` counts from 0. `path` has hex hashes, lowest first."""

    leaf: str
    index: int
    tree_size: int
    path: tuple[str, ...]
    merkle_root: str
    settlement_hash: str


# --- issuing ---------------------------------------------------------------------------------------------------------


def to_issue(limit: int) -> list[int]:
    """Return the ids of complete settlements without a certificate, oldest first."""
    waiting = Settlement.objects.filter(state=Settlement.State.SETTLED, certificate__isnull=True)
    waiting = waiting.exclude(rule=Settlement.Rule.SCRATCH)
    return list(waiting.order_by("pk").values_list("pk", flat=True)[:limit])


def issue(*, settlement_id: int, at: datetime, keep_going: Callable[[], bool]) -> bool:
    """Issue a settlement's certificate as far as `keep_going` allows, and return True if it is complete.

    Idempotent: skips a settlement that has a certificate or is not SETTLED. Safe to kill at any line.
    Locks: an advisory lock of the certificate, so that only one worker issues it.
    Raises: failures.BooksDisagree, if the bets were not divided by the rule. Then nothing is issued.
    """
    while not _step(settlement_id, at):
        if not keep_going():
            return False
    return True


def _step(settlement_id: int, at: datetime) -> bool:
    """Hash the next blocks of bets. After the last block, write the certificate. Return True if nothing is left."""
    with transaction.atomic(durable=True):
        # An advisory lock, because a lock on the settlement's row would delay the sending of its payouts.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [locks.certificate_lock(settlement_id)])
        settlement = Settlement.objects.filter(pk=settlement_id, state=Settlement.State.SETTLED).first()
        if settlement is None or Certificate.objects.filter(settlement=settlement).exists():
            return True
        last = CertificateBlock.objects.filter(settlement=settlement).order_by("number").last()
        begun, after = (0, 0) if last is None else (last.number + 1, last.last_bet_id)
        limit = BLOCKS_PER_STEP * merkle.BLOCK
        bets = list(_numbered_lines(settlement.market_id, after=after, number=begun * merkle.BLOCK + 1, limit=limit))
        CertificateBlock.objects.bulk_create(
            CertificateBlock(
                settlement=settlement,
                number=number,
                last_bet_id=block[-1][0],
                root=merkle.root([certificates_document.leaf_of(line) for _, line in block]).hex(),
            )
            for number, block in enumerate(_blocks(bets), start=begun)
        )
        if len(bets) == limit:
            return False
        roots = CertificateBlock.objects.filter(settlement=settlement).order_by("number").values_list("root", flat=True)
        try:
            stated = _statement(settlement, root=merkle.root([bytes.fromhex(root) for root in roots]).hex())
        except failures.BooksDisagree:
            if Settlement.objects.filter(pk=settlement.pk, state=Settlement.State.SETTLED).exists():
                raise
            return True  # An undo began during this step.
        text = certificates_document.canonical(stated)
        Certificate.objects.create(
            settlement=settlement,
            issued_at=at,
            statement=text,
            bet_count=stated["bets"],
            root=stated["merkle_root"],
            hash=certificates_document.settlement_hash(text),
        )
        return True


def _blocks(bets: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    return [bets[first : first + merkle.BLOCK] for first in range(0, len(bets), merkle.BLOCK)]


@dataclass(frozen=True)
class _Sums:
    """Sums of a market's bets by outcome, result and lateness, in shillings, as rows of one query."""

    rows: list[dict[str, Any]]

    def cents(self, column: str, outcome: str | None = None, results: Iterable[str] = Bet.Result.values) -> int:
        """Sum up `staked` or `paid`, of one outcome or all, of the given results."""
        amounts = (row[column] for row in self.rows if outcome in (None, row["outcome"]) and row["result"] in results)
        return int(sum(amounts, Decimal(0)) * 100)

    def bets(self, outcome: str | None = None) -> int:
        return sum(row["bets"] for row in self.rows if outcome in (None, row["outcome"]))


def _summed(settlement: Settlement) -> _Sums:
    """Sum up the bets of a settlement's market."""
    closed_at = settlement.effective_close_at
    late = Q(placed_at__gt=closed_at) if closed_at else Q(pk__in=[])
    bets = Bet.objects.filter(market=settlement.market_id, taken_back_at=None)
    bets = bets.annotate(late=Case(When(late, then=True), default=False))
    groups = bets.values("outcome", "result", "late").order_by()
    return _Sums([dict(row) for row in groups.annotate(bets=Count("pk"), staked=Sum("amount"), paid=Sum("payout"))])


def _divided(settlement: Settlement, outcomes: Iterable[Outcome], sums: _Sums) -> parimutuel.Funds:
    """Divide the pool again by the rule, and compare with the dividends and the fee that were written.

    Raises: failures.BooksDisagree.
    """
    in_time = _Sums([row for row in sums.rows if not row["late"]])
    funds = parimutuel.funds(
        rule=cast(parimutuel.Rule, settlement.rule),
        stakes_by_outcome={
            outcome.name: 0 if outcome.scratched_at else in_time.cents("staked", outcome.name) for outcome in outcomes
        },
        weights={outcome: Decimal(weight) for outcome, weight in settlement.weights.items()},
        fee_pct=settlement.fee_pct,
        protect_stake=settlement.protect_stake,
    )
    written = {outcome.name: sums.cents("paid", outcome.name, ("WON",)) for outcome in outcomes}
    due = {outcome.name: funds.by_outcome.get(outcome.name, 0) for outcome in outcomes}
    fee = int((settlement.fee or 0) * 100)
    if (written, fee) != (due, funds.fee) or any(row["result"] == Bet.Result.PENDING for row in sums.rows):
        raise failures.BooksDisagree(
            f"{settlement}: dividends {written} and fee {fee}, the rule says {due}, {funds.fee}."
        )
    return funds


def _statement(settlement: Settlement, *, root: str) -> dict[str, Any]:
    """Return the statement of a certificate, computed from the bets.

    Raises: failures.BooksDisagree, if the sums differ from the rule's.
    """
    market = Market.objects.get(pk=settlement.market_id)
    outcomes = list(market.outcomes.order_by("pk"))
    sums = _summed(settlement)
    funds = _divided(settlement, outcomes, sums)
    figures = {
        "staked": certificates_document.money(sums.cents("staked")),
        "net": certificates_document.money(sums.cents("paid", results=("WON",))),
        "fee": certificates_document.money(funds.fee),
        "refunds": certificates_document.money(sums.cents("staked", results=("REFUNDED",))),
    }
    closed_at = settlement.effective_close_at
    return {
        "format": certificates_document.FORMAT,
        "id": str(settlement.public_id),
        "number": settlement.number,
        "market": {"id": market.pk, "question": market.question},
        "rule": settlement.rule,
        "rule_in_words": certificates_document.RULES[settlement.rule],
        "reason": settlement.reason,
        "fee_pct": f"{settlement.fee_pct:.2f}",
        "protect_stake": settlement.protect_stake,
        "effective_close_at": certificates_document.moment(closed_at) if closed_at else None,
        "evidence": {"url": settlement.evidence_url, "note": settlement.evidence_note},
        "resolved_at": certificates_document.moment(settlement.resolved_at),
        "settled_at": certificates_document.moment(cast(datetime, settlement.settled_at)),
        "bets": sums.bets(),
        "pool": certificates_document.money(funds.pool),
        "winning_pool": certificates_document.money(funds.winning_pool),
        **figures,
        "equation": certificates_document.equation(**figures),
        "outcomes": [_outcome_statement(outcome, settlement, sums) for outcome in outcomes],
        "earlier_runs": settlements_of(market.pk, before=settlement.number),
        "merkle_root": root,
    }


def _outcome_statement(outcome: Outcome, settlement: Settlement, sums: _Sums) -> dict[str, Any]:
    name, weight = outcome.name, settlement.weights.get(outcome.name)
    return {
        "name": name,
        "weight": None if weight is None else f"{Decimal(weight):f}",
        "scratched": outcome.scratched_at is not None,
        "bets": sums.bets(name),
        "stakes": certificates_document.money(sums.cents("staked", name)),
        "refunded": certificates_document.money(sums.cents("staked", name, ("REFUNDED",))),
        "fund": certificates_document.money(sums.cents("paid", name, ("WON",))),
    }


# --- reading ---------------------------------------------------------------------------------------------------------


def settlements_of(market_id: int, *, before: int | None = None) -> list[dict[str, Any]]:
    """Return the public fields of a market's settlements (with a number below `before`), oldest first."""
    settlements = Settlement.objects.filter(market=market_id).order_by("number")
    return [
        {
            "number": settlement.number,
            "state": settlement.state,
            "rule": settlement.rule,
            "scratched": settlement.scratched or None,
            "reason": settlement.undone_reason or settlement.reason,
            "resolved_at": certificates_document.moment(settlement.resolved_at),
        }
        for settlement in (settlements if before is None else settlements.filter(number__lt=before))
    ]


def current(market_id: int, *, at: datetime, keep_going: Callable[[], bool]) -> Certificate:
    """Return the certificate of the settlement that decides a market, and issue it if there is none yet.

    Raises: locks.MarketNotFound; NotSettled; NotIssuedYet; failures.BooksDisagree.
    """
    settlement = status.deciding_settlement(market_id, settled_only=True)
    if settlement is None:
        if not Market.objects.filter(pk=market_id).exists():
            raise locks.MarketNotFound(f"There is no market {market_id}.")
        raise NotSettled(market_id, settlements_of(market_id))
    certificate = Certificate.objects.filter(settlement=settlement).first()
    if certificate is None:
        issue(settlement_id=settlement.pk, at=at, keep_going=keep_going)
        certificate = Certificate.objects.filter(settlement=settlement).first()
    if certificate is None:
        raise NotIssuedYet(f"The certificate of market {market_id} is being made. Ask again in a few seconds.")
    certificate.settlement = settlement
    return certificate


def document(issued: Certificate) -> str:
    """Write the certificate as JSON: the statement, its hash, and the bets or the name of their file."""
    inline = issued.bet_count <= certificates_document.MAX_INLINE_BETS
    bets = f"[{','.join(lines(issued.settlement.market_id))}]" if inline else "null"
    file = "null" if inline else '"bets.jsonl"'
    return f'{{"settlement":{issued.statement},"settlement_hash":"{issued.hash}","bets":{bets},"bets_file":{file}}}'


def lines(market_id: int) -> Iterator[str]:
    """Yield the canonical line of each bet in order. Bets are read in pages: bounded memory, no open cursor."""
    after, number = 0, 1
    while page := list(_numbered_lines(market_id, after=after, number=number, limit=PAGE)):
        yield from (line for _, line in page)
        after, number = page[-1][0], number + len(page)


def proof(bet: Bet) -> Proof | None:
    """Return the proof that a bet is in the tree of its market's certificate. None if there is no certificate yet.

    A stake that was taken back is in no settlement, so it has no proof. It reads one block of bets.
    """
    if bet.taken_back_at is not None:
        return None
    settlement = status.deciding_settlement(bet.market_id, settled_only=True)
    issued = Certificate.objects.filter(settlement=settlement).first() if settlement is not None else None
    if settlement is None or issued is None:
        return None
    blocks = list(
        CertificateBlock.objects.filter(settlement=settlement).order_by("number").values_list("last_bet_id", "root")
    )
    place = bisect_left([last for last, _ in blocks], bet.pk)
    before = blocks[place - 1][0] if place else 0
    number = place * merkle.BLOCK + 1
    block = list(_numbered_lines(settlement.market_id, after=before, number=number, limit=merkle.BLOCK))
    index = [pk for pk, _ in block].index(bet.pk)
    path = merkle.path([certificates_document.leaf_of(line) for _, line in block], index)
    path += merkle.path([bytes.fromhex(root) for _, root in blocks], place)
    return Proof(
        leaf=block[index][1],
        index=place * merkle.BLOCK + index,
        tree_size=issued.bet_count,
        path=tuple(sibling.hex() for sibling in path),
        merkle_root=issued.root,
        settlement_hash=issued.hash,
    )


def compare_with_books(body: Any, bets: Iterable[str] | None) -> None:
    """Compare a certificate with the books: it must be the issued certificate, and each line must match its bet.

    `body` and `bets` have passed document.check.
    Raises: document.Differs.
    """
    stated = body["settlement"]
    issued = Certificate.objects.select_related("settlement").filter(settlement__public_id=stated["id"]).first()
    if issued is None:
        raise certificates_document.Differs(f"the books have no certificate of settlement {stated['id']}")
    if issued.settlement.state != Settlement.State.SETTLED:
        raise certificates_document.Differs(f"settlement {stated['id']} is {issued.settlement.state} in the books")
    if issued.hash != body["settlement_hash"]:
        raise certificates_document.Differs(f"settlement_hash: the books have {issued.hash}")
    inline = body["bets"] is not None
    given = map(certificates_document.canonical, body["bets"]) if inline else (bet.rstrip("\n") for bet in bets or ())
    for number, (ours, stated_line) in enumerate(zip_longest(lines(issued.settlement.market_id), given), start=1):
        if ours != stated_line:
            raise certificates_document.Differs(f"bet {number}: the books have {ours}")


def _numbered_lines(market_id: int, *, after: int, number: int, limit: int) -> Iterator[tuple[int, str]]:
    """Yield the next bets by id, each with its line. `number` is the number of the first line."""
    bets = Bet.objects.filter(market=market_id, pk__gt=after, taken_back_at=None).order_by("pk")
    columns = ("pk", "public_id", "outcome", "amount", "result", "payout", "placed_at")
    for place, (pk, public_id, outcome, stake, result, dividend, placed_at) in enumerate(
        bets.values_list(*columns)[:limit], start=number
    ):
        yield (
            pk,
            certificates_document.bet_line(
                bet_id=str(public_id),
                number=place,
                outcome=outcome,
                stake=stake,
                result=result,
                dividend=dividend,
                placed_at=placed_at,
            ),
        )
