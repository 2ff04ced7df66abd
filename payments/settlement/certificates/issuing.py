"""Certificates: what a settlement states to everyone, issued once and read ever after.

`issue` hashes the bets of a settled market a few blocks at a time, from the rows that settlement wrote, and ends with
the statement and its hash; a million bets take several steps, and later reads touch one block. It needs nothing that
settlement would have to leave behind, so it works for markets that were settled before there were certificates.
docs/certificate.md is the format.
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
from markets.models import Bet, Market
from payments.models import Certificate, CertificateBlock, Settlement
from payments.settlement import settling, status
from payments.settlement.certificates import document as certificates_document
from payments.settlement.certificates import merkle
from users.refusal import Refusal

BLOCKS_A_STEP = 16
PAGE = 5_000


class NotSettled(Refusal):
    """No settlement of the market stands; `runs` are those that were withdrawn, undone or not carried out yet."""

    def __init__(self, market_id: int, runs: list[dict[str, Any]]) -> None:
        super().__init__(f"Market {market_id} is not settled: there is no certificate.")
        self.details = {"runs": runs}


class NotIssuedYet(Refusal):
    """The certificate of a large market is being made; it takes some seconds after the settlement."""


@dataclass(frozen=True)
class Proof:
    """That a bet is in the tree of its settlement. `index` counts from 0; `path` is of hex hashes, lowest first."""

    leaf: str
    index: int
    tree_size: int
    path: tuple[str, ...]
    merkle_root: str
    settlement_hash: str


# --- issuing ---------------------------------------------------------------------------------------------------------


def to_issue(limit: int) -> list[int]:
    """Ids of the settlements that stand and have no certificate yet, oldest first."""
    waiting = Settlement.objects.filter(state=Settlement.State.SETTLED, certificate__isnull=True)
    waiting = waiting.exclude(rule=Settlement.Rule.SCRATCH)
    return list(waiting.order_by("pk").values_list("pk", flat=True)[:limit])


def issue(*, settlement_id: int, at: datetime, keep_going: Callable[[], bool]) -> bool:
    """Issue a settlement's certificate as far as `keep_going` allows, and say whether nothing is left to do.

    Idempotent: what is issued, or not settled (any more), is left as it is. Safe to kill at any line.
    Locks: none but its own, so that one worker makes it at a time.
    Raises: settlement.BooksDisagree, where the bets were not divided by the rule; nothing is issued then.
    """
    while not _step(settlement_id, at):
        if not keep_going():
            return False
    return True


def _step(settlement_id: int, at: datetime) -> bool:
    with transaction.atomic(durable=True):
        # Not the row's lock: the sending waits for that one.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [locks.certificate_lock(settlement_id)])
        run = Settlement.objects.filter(pk=settlement_id, state=Settlement.State.SETTLED).first()
        if run is None or Certificate.objects.filter(settlement=run).exists():
            return True
        last = CertificateBlock.objects.filter(settlement=run).order_by("number").last()
        begun, after = (0, 0) if last is None else (last.number + 1, last.last_bet_id)
        limit = BLOCKS_A_STEP * merkle.BLOCK
        bets = list(_lines(run.market_id, after=after, number=begun * merkle.BLOCK + 1, limit=limit))
        CertificateBlock.objects.bulk_create(
            CertificateBlock(
                settlement=run,
                number=number,
                last_bet_id=block[-1][0],
                root=merkle.root([certificates_document.leaf_of(line) for _, line in block]).hex(),
            )
            for number, block in enumerate(_blocks(bets), start=begun)
        )
        if len(bets) == limit:
            return False
        roots = CertificateBlock.objects.filter(settlement=run).order_by("number").values_list("root", flat=True)
        try:
            stated = _statement(run, root=merkle.root([bytes.fromhex(root) for root in roots]).hex())
        except settling.BooksDisagree:
            if Settlement.objects.filter(pk=run.pk, state=Settlement.State.SETTLED).exists():
                raise
            return True  # It was undone while we looked.
        text = certificates_document.canonical(stated)
        Certificate.objects.create(
            settlement=run,
            issued_at=at,
            statement=text,
            bet_count=stated["bets"],
            root=stated["merkle_root"],
            hash=certificates_document.settlement_hash(text),
        )
        return True


def _blocks(bets: list[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    return [bets[first : first + merkle.BLOCK] for first in range(0, len(bets), merkle.BLOCK)]


def _statement(run: Settlement, *, root: str) -> dict[str, Any]:
    """What the certificate states, from the bets as they stand; sums that the rule does not give are refused."""
    market = Market.objects.get(pk=run.market_id)
    outcomes = list(market.outcomes.order_by("pk"))
    late = Q(placed_at__gt=run.effective_close_at) if run.effective_close_at else Q(pk__in=[])
    bets = Bet.objects.filter(market=market).annotate(late=Case(When(late, then=True), default=False))
    summed = bets.values("outcome", "result", "late").order_by()
    rows: list[dict[str, Any]] = [
        dict(row) for row in summed.annotate(bets=Count("pk"), staked=Sum("amount"), paid=Sum("payout"))
    ]
    running = [row for row in rows if not row["late"]]
    weights = {outcome: Decimal(weight) for outcome, weight in run.weights.items()}
    divided = parimutuel.funds(
        rule=cast(parimutuel.Rule, run.rule),
        stakes_by_outcome={
            one.name: 0 if one.scratched_at else _cents(running, "staked", one.name) for one in outcomes
        },
        weights=weights,
        fee_pct=run.fee_pct,
        protect_stake=run.protect_stake,
    )
    written = {one.name: _cents(rows, "paid", one.name, ("WON",)) for one in outcomes}
    due = {one.name: divided.by_outcome.get(one.name, 0) for one in outcomes}
    fee = int((run.fee or 0) * 100)
    if (written, fee) != (due, divided.fee) or any(row["result"] == Bet.Result.PENDING for row in rows):
        raise settling.BooksDisagree(f"{run}: dividends {written} and fee {fee}, the rule says {due}, {divided.fee}.")
    figures = {
        "staked": certificates_document.money(_cents(rows, "staked")),
        "net": certificates_document.money(_cents(rows, "paid", results=("WON",))),
        "fee": certificates_document.money(fee),
        "refunds": certificates_document.money(_cents(rows, "staked", results=("REFUNDED",))),
    }
    return {
        "format": certificates_document.FORMAT,
        "id": str(run.public_id),
        "number": run.number,
        "market": {"id": market.pk, "question": market.question},
        "rule": run.rule,
        "rule_in_words": certificates_document.RULES[run.rule],
        "reason": run.reason,
        "fee_pct": f"{run.fee_pct:.2f}",
        "protect_stake": run.protect_stake,
        "effective_close_at": certificates_document.moment(run.effective_close_at) if run.effective_close_at else None,
        "evidence": {"url": run.evidence_url, "note": run.evidence_note},
        "resolved_at": certificates_document.moment(run.resolved_at),
        "settled_at": certificates_document.moment(cast(datetime, run.settled_at)),
        "bets": sum(row["bets"] for row in rows),
        "pool": certificates_document.money(divided.pool),
        "winning_pool": certificates_document.money(divided.winning_pool),
        **figures,
        "equation": certificates_document.equation(**figures),
        "outcomes": [
            {
                "name": one.name,
                "weight": f"{weights[one.name]:f}" if one.name in weights else None,
                "scratched": one.scratched_at is not None,
                "bets": sum(row["bets"] for row in rows if row["outcome"] == one.name),
                "stakes": certificates_document.money(_cents(rows, "staked", one.name)),
                "refunded": certificates_document.money(_cents(rows, "staked", one.name, ("REFUNDED",))),
                "fund": certificates_document.money(written[one.name]),
            }
            for one in outcomes
        ],
        "earlier_runs": settlements_of(market.pk, before=run.number),
        "merkle_root": root,
    }


def _cents(
    rows: Iterable[dict[str, Any]], what: str, outcome: str | None = None, results: Iterable[str] = Bet.Result.values
) -> int:
    found = (row[what] for row in rows if outcome in (None, row["outcome"]) and row["result"] in results)
    return int(sum(found, Decimal(0)) * 100)


# --- reading ---------------------------------------------------------------------------------------------------------


def settlements_of(market_id: int, *, before: int | None = None) -> list[dict[str, Any]]:
    """A market's runs (those with a number below `before`), as they are stated to everyone, oldest first."""
    runs = Settlement.objects.filter(market=market_id).order_by("number")
    return [
        {
            "number": run.number,
            "state": run.state,
            "rule": run.rule,
            "scratched": run.scratched or None,
            "reason": run.undone_reason or run.reason,
            "resolved_at": certificates_document.moment(run.resolved_at),
        }
        for run in (runs if before is None else runs.filter(number__lt=before))
    ]


def current(market_id: int, *, at: datetime, keep_going: Callable[[], bool]) -> Certificate:
    """The certificate of the settlement that stands; made now, where the sweep has not come to it yet.

    Raises: stakes.MarketNotFound; NotSettled; NotIssuedYet; settlement.BooksDisagree.
    """
    run = status.deciding_settlement(market_id, settled_only=True)
    if run is None:
        if not Market.objects.filter(pk=market_id).exists():
            raise locks.MarketNotFound(f"There is no market {market_id}.")
        raise NotSettled(market_id, settlements_of(market_id))
    found = Certificate.objects.filter(settlement=run).first()
    if found is None:
        issue(settlement_id=run.pk, at=at, keep_going=keep_going)
        found = Certificate.objects.filter(settlement=run).first()
    if found is None:
        raise NotIssuedYet(f"The certificate of market {market_id} is being made: ask again in a few seconds.")
    found.settlement = run
    return found


def document(issued: Certificate) -> str:
    """The certificate as JSON: what is stated, its hash, and the bets or the name of the file that has them."""
    inline = issued.bet_count <= certificates_document.INLINE
    bets = f"[{','.join(lines(issued.settlement.market_id))}]" if inline else "null"
    file = "null" if inline else '"bets.jsonl"'
    return f'{{"settlement":{issued.statement},"settlement_hash":"{issued.hash}","bets":{bets},"bets_file":{file}}}'


def lines(market_id: int) -> Iterator[str]:
    """The canonical line of each bet in order, a page at a time by id: bounded memory, and no cursor stays open."""
    after, number = 0, 1
    while page := list(_lines(market_id, after=after, number=number, limit=PAGE)):
        yield from (line for _, line in page)
        after, number = page[-1][0], number + len(page)


def proof(bet: Bet) -> Proof | None:
    """That the bet is in the tree of its market's certificate, from its block alone; None before one is issued."""
    run = status.deciding_settlement(bet.market_id, settled_only=True)
    issued = Certificate.objects.filter(settlement=run).first() if run is not None else None
    if run is None or issued is None:
        return None
    blocks = list(CertificateBlock.objects.filter(settlement=run).order_by("number").values_list("last_bet_id", "root"))
    place = bisect_left([last for last, _ in blocks], bet.pk)
    before = blocks[place - 1][0] if place else 0
    number = place * merkle.BLOCK + 1
    block = list(_lines(run.market_id, after=before, number=number, limit=merkle.BLOCK))
    index = [pk for pk, _ in block].index(bet.pk)
    path = merkle.path([certificates_document.leaf_of(line) for _, line in block], index)
    path += merkle.path([bytes.fromhex(root) for _, root in blocks], place)
    return Proof(
        leaf=block[index][1],
        index=place * merkle.BLOCK + index,
        tree_size=issued.bet_count,
        path=tuple(one.hex() for one in path),
        merkle_root=issued.root,
        settlement_hash=issued.hash,
    )


def compare_with_books(body: Any, bets: Iterable[str] | None) -> None:
    """Lay a certificate beside the books: it must be the one that was issued, and each line as the bet stands.

    `body` and `bets` are as certificate.check takes them, and hold by it.
    Raises: certificate.Differs.
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
    for number, (ours, theirs) in enumerate(zip_longest(lines(issued.settlement.market_id), given), start=1):
        if ours != theirs:
            raise certificates_document.Differs(f"bet {number}: the books have {ours}")


def _lines(market_id: int, *, after: int, number: int, limit: int) -> Iterator[tuple[int, str]]:
    """The next bets by id with their lines, the first of which has this number."""
    bets = Bet.objects.filter(market=market_id, pk__gt=after).order_by("pk")
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
