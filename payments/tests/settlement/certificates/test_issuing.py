"""Certificates: public, issued once, and verified by anyone from the file alone."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from api.rest import certificates
from markets.models import Bet, Market
from payments import settlement_tasks
from payments.models import Certificate, CertificateBlock, Settlement
from payments.settlement import failures, resolutions
from payments.settlement.certificates import document, explanations, issuing, merkle
from payments.settlement.decision import Evidence
from testing import builders, database
from testing.builders import AT, at_once, bearer, market, member, operator, orm_bet, resolve, settled_market
from testing.certificates import SCRIPT, changes, script
from testing.rest import assert_refused

GO: Callable[[], bool] = lambda: True  # noqa: E731
Save = Callable[[Any], Path]


def guides_market() -> Market:
    return settled_market([(member(), "Yes", 100), (member(), "No", 200)])


def get(client: Client, of: Market, **headers: Any) -> Any:
    answer = client.get(f"/api/markets/{of.pk}/settlement/", **headers)
    assert answer.status_code == 200, answer.content
    return answer.json()


def issue(of: Market) -> Certificate:
    return issuing.current(of.pk, at=AT, keep_going=GO)


def verify(*arguments: object) -> str:
    said = StringIO()
    call_command("verify_settlement", *map(str, arguments), stdout=said)
    return said.getvalue()


@pytest.fixture
def save(tmp_path: Path) -> Save:
    def write(body: Any) -> Path:
        path = tmp_path / "certificate.json"
        path.write_bytes(body if isinstance(body, bytes) else json.dumps(body).encode())
        return path

    return write


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make blocks of four bets and one block a step, so that twenty bets need as many steps as a large market."""
    monkeypatch.setattr(merkle, "BLOCK", 4)
    monkeypatch.setattr(issuing, "BLOCKS_PER_STEP", 1)


# --- the statement ---------------------------------------------------------------------------------------------------


def test_certificate_of_the_guides_market_is_public(db: None, client: Client) -> None:
    # given
    made = guides_market()
    run, bets = Settlement.objects.get(), list(Bet.objects.order_by("pk"))

    # when
    body = get(client, made)

    # then
    document.check(body)
    stated = body["settlement"]
    assert stated == {
        "format": "kasoko-certificate-1",
        "id": str(run.public_id),
        "number": 1,
        "market": {"id": made.pk, "question": "Will it rain tomorrow?"},
        "rule": "WINNER",
        "rule_in_words": "One outcome won. The pool less the fee is shared among the stakes on it, pro rata.",
        "reason": "",
        "fee_pct": "5.00",
        "protect_stake": True,
        "effective_close_at": None,
        "evidence": {"url": "", "note": ""},
        "resolved_at": "2026-02-16T07:30:00.000000Z",
        "settled_at": "2026-02-16T07:30:00.000000Z",
        "bets": 2,
        "staked": "300.00",
        "pool": "300.00",
        "winning_pool": "100.00",
        "fee": "15.00",
        "net": "285.00",
        "refunds": "0.00",
        "equation": "stakes 300.00 = dividends 285.00 + fee 15.00 + refunds 0.00",
        "outcomes": [
            {
                "name": "Yes", "weight": "100", "scratched": False, "bets": 1, "stakes": "100.00", "refunded": "0.00",
                "fund": "285.00",
            },
            {
                "name": "No", "weight": None, "scratched": False, "bets": 1, "stakes": "200.00", "refunded": "0.00",
                "fund": "0.00",
            },
        ],
        "earlier_runs": [],
        "merkle_root": stated["merkle_root"],
    }  # fmt: skip
    assert body["bets"] == [
        {
            "id": str(bets[0].public_id), "number": 1, "outcome": "Yes", "stake": "100.00", "result": "WON",
            "dividend": "285.00", "placed_at": "2026-02-16T07:30:00.000000Z",
        },
        {
            "id": str(bets[1].public_id), "number": 2, "outcome": "No", "stake": "200.00", "result": "LOST",
            "dividend": "0.00", "placed_at": "2026-02-16T07:30:00.000000Z",
        },
    ]  # fmt: skip
    assert body["bets_file"] is None


def test_certificate_names_no_member(db: None, client: Client) -> None:
    # given
    user = member(full_name="Wanjiku Kamau")
    made = settled_market([(user, "Yes", 100), (member(), "No", 50)])

    # then
    for path in ("settlement/", "settlement/bets.jsonl"):
        answer = client.get(f"/api/markets/{made.pk}/{path}")
        said = b"".join(answer.streaming_content) if answer.streaming else answer.content
        for secret in (user.full_name, user.phone_number, user.phone_number[3:], str(user.public_id)):
            assert secret.encode() not in said


@pytest.mark.parametrize(
    ("rule", "outcome", "weights"),
    [
        ("WINNER", "A", None),
        ("WINNER", "D", None),
        ("JOINT", None, {"A": "33.30", "B": "66.70"}),
        ("SPLIT", None, {"A": 50, "C": "12.5", "B": "37.5"}),
        ("VOID", None, None),
    ],
)
def test_certificate_of_every_rule_is_verified_three_ways(
    db: None, client: Client, save: Save, rule: Any, outcome: str | None, weights: Any
) -> None:
    # given
    stakes = [("A", "90.01"), ("B", "10.00"), ("C", "20.00"), ("B", "0.03"), ("A", "7777.77")]
    bets = [(member(), on, amount) for on, amount in stakes]
    made = settled_market(bets, outcome, outcomes=("A", "B", "C", "D"), rule=rule, weights=weights)

    # when
    answer = client.get(f"/api/markets/{made.pk}/settlement/")

    # then
    document.check(answer.json())
    script().verify(answer.json(), ())
    assert verify(save(answer.content), "--books").startswith("It holds: 5 bets, stakes 7897.81 = ")


@pytest.mark.parametrize("kind", ["anonymous", "member", "operator"])
def test_anyone_may_read_a_certificate(db: None, client: Client, kind: str) -> None:
    made = guides_market()
    headers = {} if kind == "anonymous" else bearer(member() if kind == "member" else operator())
    assert get(client, made, headers=headers)["settlement"]["pool"] == "300.00"
    assert client.get(f"/api/markets/{made.pk}/settlement/bets.jsonl", headers=headers).status_code == 200


def test_market_without_a_settlement_has_no_certificate(db: None, client: Client) -> None:
    # given
    made = market()
    orm_bet(made, member())
    paths = ("settlement/", "settlement/bets.jsonl")

    # then: an open market, a resolved market, and a market that does not exist
    for path in paths:
        answer = client.get(f"/api/markets/{made.pk}/{path}")
        assert_refused(answer, 404, "not_settled")
        assert answer.json()["details"] == {"runs": []}
    resolve(made)
    for path in paths:
        answer = client.get(f"/api/markets/{made.pk}/{path}")
        assert_refused(answer, 404, "not_settled")
        assert [run["state"] for run in answer.json()["details"]["runs"]] == ["PENDING"]
        assert_refused(client.get(f"/api/markets/{made.pk + 1}/{path}"), 404, "market_not_found")
        assert_refused(client.get(f"/api/markets/{2**63}/{path}"), 404, "not_found")
        assert_refused(client.post(f"/api/markets/{made.pk}/{path}"), 405, "method_not_allowed")
    assert not Certificate.objects.exists()


def test_certificate_lists_earlier_settlements_and_certifies_the_standing_one(db: None, client: Client) -> None:
    # given: a resolution that was withdrawn, and a settlement that was certified and undone
    made, staff = market(), operator()
    orm_bet(made, member())
    orm_bet(made, member(), "No")
    resolve(made, "No")
    resolutions.withdraw(market_id=made.pk, reason="Typed in a hurry.", by=builders.actor(staff), at=AT)
    resolve(made, "No")
    builders.settle(made)
    undone = issue(made)
    builders.undo(made, by=staff)
    answer = client.get(f"/api/markets/{made.pk}/settlement/")
    assert_refused(answer, 404, "not_settled")
    runs = answer.json()["details"]["runs"]
    resolve(made, "Yes")
    builders.settle(made)

    # when
    body = get(client, made)

    # then
    document.check(body)
    script().verify(body, ())
    assert body["settlement"]["number"] == 3
    assert body["settlement"]["earlier_runs"] == runs
    assert [(run["number"], run["state"], run["rule"], run["reason"]) for run in runs] == [
        (1, "WITHDRAWN", "WINNER", "Typed in a hurry."),
        (2, "UNDONE", "WINNER", "The wrong outcome."),
    ]
    # The certificate of the undone settlement is kept unchanged, but no longer shown.
    undone.refresh_from_db()
    assert undone.hash != body["settlement_hash"]
    assert Certificate.objects.count() == 2


def test_certificate_shows_late_and_scratched_bets_as_refunded(db: None, client: Client, save: Save) -> None:
    # given
    made, staff = market(("A", "B", "C")), operator()
    for on, amount, minute in (("A", "90.01", 0), ("B", 10, 1), ("C", 20, 2), ("A", 5, 4), ("C", 7, 5)):
        orm_bet(made, member(), on, amount, at=AT + timedelta(minutes=minute))
    by = builders.actor(staff)
    resolutions.scratch(market_id=made.pk, outcome="B", reason="cancelled", by=by, at=AT, policy=builders.policy())
    builders.settle(made)
    assert issuing.to_issue(limit=10) == []  # Giving stakes back settles no market.
    assert_refused(client.get(f"/api/markets/{made.pk}/settlement/"), 404, "not_settled")
    resolve(
        made,
        "A",
        at=AT + timedelta(hours=1),
        effective_close_at=AT + timedelta(minutes=4),
        evidence=Evidence(url="https://example.com/report", note="Minute 4."),
    )
    builders.settle(made)

    # when
    answer = client.get(f"/api/markets/{made.pk}/settlement/")

    # then
    body = answer.json()
    document.check(body)
    script().verify(body, ())
    assert verify(save(answer.content), "--books")
    stated = body["settlement"]
    assert stated["effective_close_at"] == "2026-02-16T07:34:00.000000Z"
    assert stated["evidence"] == {"url": "https://example.com/report", "note": "Minute 4."}
    assert [bet["result"] for bet in body["bets"]] == ["WON", "REFUNDED", "LOST", "WON", "REFUNDED"]
    assert (stated["staked"], stated["pool"], stated["refunds"]) == ("132.01", "115.01", "17.00")
    assert [(one["name"], one["scratched"], one["refunded"]) for one in stated["outcomes"]] == [
        ("A", False, "0.00"), ("B", True, "10.00"), ("C", False, "7.00"),
    ]  # fmt: skip
    assert [(run["rule"], run["scratched"], run["state"]) for run in stated["earlier_runs"]] == [
        ("SCRATCH", "B", "SETTLED")
    ]


# --- verifying -------------------------------------------------------------------------------------------------------


def test_stand_alone_script_verifies_a_body_and_finds_each_change(db: None, client: Client, save: Save) -> None:
    # given
    made = settled_market([(member(), "Yes", "100.01"), (member(), "No", 200), (member(), "Yes", "33.33")])
    saved = client.get(f"/api/markets/{made.pk}/settlement/").content

    def run(body: Any) -> "subprocess.CompletedProcess[str]":
        # With -I and -S the script can import neither the project nor installed packages.
        command = [sys.executable, "-I", "-S", str(SCRIPT), str(save(body))]
        return subprocess.run(command, capture_output=True, text=True, cwd="/")

    # then
    good = run(saved)
    assert (good.returncode, good.stdout, good.stderr) == (0, "It holds.\n", "")
    tried = 0
    for what, changed in changes(json.loads(saved)):
        if "removed" not in what and (what.startswith("bets.1.") or "fee" in what or "fund" in what or "hash" in what):
            bad = run(changed)
            assert (bad.returncode, bad.stdout, bad.stderr.count("\n")) == (1, "", 1), (what, bad)
            tried += 1
    assert tried >= 20


def test_command_names_the_first_difference(db: None, client: Client, save: Save) -> None:
    # given
    body = get(client, guides_market())
    body["bets"][0]["dividend"] = "285.01"

    # then
    with pytest.raises(CommandError) as refusal:
        verify(save(body))
    assert str(refusal.value) == "bet 1: dividend: the certificate says 285.01, it must be 285.00"
    assert refusal.value.returncode == 1
    for unreadable in (b"", b"{", b"[]", b"\xff"):
        with pytest.raises(CommandError):
            verify(save(unreadable))
    with pytest.raises(CommandError, match="No such file"):
        verify("/nowhere/certificate.json")


@pytest.mark.broken_books
def test_command_compares_with_the_books(db: None, client: Client, save: Save) -> None:
    # given: a correct certificate, and a bet that was changed afterwards with the guards disabled
    made = guides_market()
    saved = save(client.get(f"/api/markets/{made.pk}/settlement/").content)
    assert verify(saved, "--books")
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE markets_bet DISABLE TRIGGER USER")
        cursor.execute("UPDATE markets_bet SET payout = payout + 0.01 WHERE payout > 0")
        cursor.execute("ALTER TABLE markets_bet ENABLE TRIGGER USER")

    # then
    assert verify(saved)
    with pytest.raises(CommandError, match=r'bet 1: the books have {"dividend":"285\.01"'):
        verify(saved, "--books")


def test_certificate_of_other_books_differs(db: None, client: Client, save: Save) -> None:
    body = get(client, guides_market())
    body["settlement"]["id"] = "00000000-0000-0000-0000-000000000000"
    body["settlement_hash"] = document.settlement_hash(document.canonical(body["settlement"]))
    assert verify(save(body))
    with pytest.raises(CommandError, match="the books have no certificate of settlement 0000"):
        verify(save(body), "--books")
    # given: the same settlement, with another question
    body = get(client, Market.objects.get())
    body["settlement"]["market"]["question"] = "Will it snow?"
    body["settlement_hash"] = document.settlement_hash(document.canonical(body["settlement"]))
    assert verify(save(body))
    with pytest.raises(CommandError, match="settlement_hash: the books have"):
        verify(save(body), "--books")


@pytest.mark.broken_books
def test_bets_that_break_the_rule_are_not_certified(db: None, client: Client) -> None:
    # given
    made = guides_market()
    with database.as_owner(), connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("ALTER TABLE markets_bet DISABLE TRIGGER USER")
        cursor.execute("UPDATE markets_bet SET payout = payout + 0.01 WHERE payout > 0")
        cursor.execute("ALTER TABLE markets_bet ENABLE TRIGGER USER")

    # then
    with pytest.raises(failures.BooksDisagree):
        issue(made)
    assert_refused(client.get(f"/api/markets/{made.pk}/settlement/"), 409, "books_disagree")
    settlement_tasks.issue_certificates()  # The sweep continues with the other settlements.
    assert not Certificate.objects.exists()
    assert not CertificateBlock.objects.exists()


# --- issuing ---------------------------------------------------------------------------------------------------------


def many_bets(count: int) -> Market:
    users = [member(), member(), member()]
    return settled_market([(users[n % 3], "Yes" if n % 2 else "No", f"{n + 1}.37") for n in range(count)])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 21])
def test_large_market_is_certified_in_steps_that_survive_a_kill(
    db: None, small_blocks: None, client: Client, count: int
) -> None:
    # given
    made = many_bets(count)
    run = Settlement.objects.get()

    # when: each call stops after one step
    calls = 1
    while not issuing.issue(settlement_id=run.pk, at=AT, keep_going=lambda: False):
        assert CertificateBlock.objects.count() == calls
        calls += 1

    # then
    assert calls == count // 4 + 1
    body = get(client, made)
    document.check(body)
    leaves = [document.leaf_of(document.canonical(bet)) for bet in body["bets"]]
    assert body["settlement"]["merkle_root"] == merkle.root(leaves).hex()
    assert CertificateBlock.objects.count() == -(-count // 4)


def test_certificate_is_issued_once(db: None) -> None:
    made = guides_market()
    first = issue(made)
    assert issuing.issue(settlement_id=first.settlement_id, at=AT, keep_going=GO)
    assert issue(made) == first
    assert Certificate.objects.count() == 1


def test_market_without_bets_has_a_certificate(db: None, client: Client) -> None:
    made = settled_market([], None, rule="VOID")
    body = get(client, made)
    document.check(body)
    assert (body["bets"], body["settlement"]["equation"]) == (
        [],
        "stakes 0.00 = dividends 0.00 + fee 0.00 + refunds 0.00",
    )


def test_sweep_issues_certificates_of_settled_markets(db: None) -> None:
    # given
    settled, open_ = guides_market(), market()
    orm_bet(open_, member())

    # when
    settlement_tasks.issue_certificates()

    # then
    assert [one.settlement.market_id for one in Certificate.objects.all()] == [settled.pk]
    assert issuing.to_issue(limit=10) == []


def test_call_during_the_issue_gives_certificate_not_ready(
    db: None, small_blocks: None, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given: a large market, and a call that must stop after one step
    monkeypatch.setattr(certificates, "MAKE_FOR_SECONDS", -1.0)
    made = many_bets(9)

    # then
    for _ in range(2):
        assert_refused(client.get(f"/api/markets/{made.pk}/settlement/"), 409, "certificate_not_ready")
    assert client.get(f"/api/markets/{made.pk}/settlement/").status_code == 200


def test_bets_of_a_large_market_are_in_a_separate_file(
    db: None, client: Client, save: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given
    monkeypatch.setattr(document, "MAX_INLINE_BETS", 6)
    monkeypatch.setattr(issuing, "PAGE", 3)
    made = many_bets(7)

    # when
    saved = save(client.get(f"/api/markets/{made.pk}/settlement/").content)
    stream = client.get(f"/api/markets/{made.pk}/settlement/bets.jsonl")
    bets = tmp_path / "bets.jsonl"
    bets.write_bytes(b"".join(stream.streaming_content))

    # then
    body = json.loads(saved.read_bytes())
    assert (body["bets"], body["bets_file"], body["settlement"]["bets"]) == (None, "bets.jsonl", 7)
    assert stream["Content-Type"] == "application/x-ndjson"
    assert verify(saved, "--bets", bets, "--books")
    command = [sys.executable, "-I", str(SCRIPT), str(saved), str(bets)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "It holds.\n"
    with pytest.raises(CommandError, match=r"bets.jsonl, which was not given"):
        verify(saved)
    with bets.open("a") as more:
        more.write("{}\n")
    with pytest.raises(CommandError):
        verify(saved, "--bets", bets)


def test_bets_up_to_the_limit_are_in_the_body(db: None, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "MAX_INLINE_BETS", 7)
    assert len(get(client, many_bets(7))["bets"]) == 7


def test_bets_file_is_read_a_page_at_a_time(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # given
    monkeypatch.setattr(issuing, "PAGE", 2)
    made = many_bets(5)

    # when
    with CaptureQueriesContext(connection) as queries:
        lines = issuing.lines(made.pk)
        next(lines)
        assert len(queries) == 1
        assert len(list(lines)) == 4

    # then: three pages, and one read that finds no more bets
    assert len(queries) == 4


def test_explanation_reads_one_block(db: None, small_blocks: None) -> None:
    # given
    made = many_bets(21)
    issue(made)
    bet = Bet.objects.order_by("pk")[13]

    # when
    with CaptureQueriesContext(connection) as queries:
        explained = explanations.explain(bet, at=AT)

    # then
    assert explained.proof is not None
    assert explained.proof.index == 13
    read = [query["sql"] for query in queries if '"markets_bet"."placed_at"' in query["sql"]]
    assert len([sql for sql in read if "LIMIT 4" in sql]) == 1


def test_one_of_many_concurrent_first_calls_issues(transactional_db: None) -> None:
    made = guides_market()
    answers = at_once(*[lambda: issue(made).hash] * 8)
    assert len(set(answers)) == 1
    assert Certificate.objects.count() == 1


@pytest.mark.parametrize("model", [Certificate, CertificateBlock])
@pytest.mark.usefixtures("as_owner")
def test_certificate_rows_cannot_be_changed(db: None, model: Any) -> None:
    issue(guides_market())
    for change in (lambda: model.objects.update(root="0"), lambda: model.objects.all().delete()):
        with pytest.raises(IntegrityError, match="A certificate is not changed"), transaction.atomic():
            change()


def test_settlement_older_than_certificates_gets_one(db: None, client: Client, at: datetime) -> None:
    # given: only the rows that settlements have always written
    made = guides_market()
    assert not CertificateBlock.objects.exists()

    # then
    document.check(get(client, made))
