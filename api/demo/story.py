"""The demo's story: members bet, an operator resolves, M-Pesa pays, one payout fails and is retried.

Members, markets and the opening float are created in Python, because no REST call creates them. All other steps are
HTTP calls, as any client would make them, and each step prints its call as a curl command.
"""

import time
from contextlib import suppress
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from api.demo import progress, proof, transparency, two_people
from api.demo.cast import BETS, CALLBACK_LOST, NAMES, VOID_BETS, Cast
from api.demo.client import Client
from api.demo.screen import Screen, as_shell_lines, money
from api.demo.supervisor import Stack, StackError
from markets.models import NAIROBI, Market
from payments.ledger import journal, trial_balance
from payments.models import Attempt, Transaction, Transfer
from payments.mpesa import result_codes
from users import figures

CATEGORY = "Demo"
FLOAT = Decimal("10000000.00")
PASTE_WIDTH = 78


class Story:
    """One run of the story, with new members and new markets. `book` is the file of the simulator's book."""

    def __init__(self, *, screen: Screen, running: Stack, web: str, simulator: str, state: Path, book: Path) -> None:
        self.screen, self.running, self.web, self.state = screen, running, web, state
        self.client = Client(web, running, screen.command)
        self.provider = Client(simulator, running, screen.command)
        # The markets of all runs that were paid through this book.
        self.markets_of_book = book.with_suffix(".markets")
        self.cast = Cast(self.client, screen, state / "demo")

    # --- the two endings ---------------------------------------------------------------------------------------------

    def tell(self) -> int:
        """Tell the whole story and prove it. Returns the exit status."""
        began = time.monotonic()
        market = self._settle_a_market()
        self._show_the_lost_callback(market)
        self._retry_failed_payouts(market)
        void = self._void_a_market()
        differences = self._prove(market, void, self._resolve_by_two_people())
        self.screen.step("Anyone can check the result")
        member = (NAMES[0], self.cast.tokens[NAMES[0]])
        differences += transparency.show(self.client, self.screen, market.pk, member, self.state / "demo")
        self._print_addresses()
        self.screen.plain("\nTo keep everything running with this login, until Ctrl-C:  make run")
        if differences:
            self.screen.conclude(f"NOT PROVEN: {differences[0]}", "bold red")
            return 1
        seconds = time.monotonic() - began
        self.screen.conclude(f"The books close and the provider's book agrees ({seconds:.0f} s).", "bold green")
        return 0

    def stay(self) -> int:
        """Keep the stack running until Ctrl-C, with a settled market, a failed payout and an open market."""
        if Market.objects.filter(category=CATEGORY, status=Market.Status.OPEN).exists():
            self.cast.log_in_operator()
        else:
            self._settle_a_market()
            self.screen.step("An open market")
            self._bet(self._new_market("Will the long rains come before April?"), VOID_BETS)
        self._print_addresses()
        self._print_resolve_commands()
        self.screen.plain("Everything runs until Ctrl-C. Ctrl-C stops only what was started here.")
        while True:
            self.running.tend()
            time.sleep(0.2)

    # --- the chapters ------------------------------------------------------------------------------------------------

    def _settle_a_market(self) -> Market:
        self.screen.step("Members, a market and bets")
        self._book_the_float()
        # An interrupted run may have left its threshold.
        two_people.set_threshold(figures.NEVER)
        self.cast.log_in_operator()
        self.cast.make_members()
        market = self._new_market("Will Gor Mahia win the derby?")
        self._bet(market, BETS)
        self.screen.step("The operator previews the outcome Yes and resolves the market; winners are paid")
        preview = self._preview(market, "Yes")
        body = {"market_id": market.pk, "outcome": "Yes", "preview_hash": preview["preview_hash"]}
        self.client.call("POST", "/api/markets/admin/resolve/", body, who=self.cast.operator_token)
        by_mpesa = self._payouts(market).filter(destination=Transaction.Destination.MPESA)
        status = self._follow(market, by_mpesa, "payments completed")
        resolved, settled = _nairobi_time(status["resolved_at"]), _nairobi_time(status["settled_at"])
        failed = list(self._failed(market))
        self.screen.say(f"Resolved {resolved}, settled {settled}, {len(failed)} failed.")
        for payout in failed:
            meaning = result_codes.meaning(payout.attempts.latest("number").result_code)
            self.screen.say(
                f"FAILED: payout {payout.pk} to {payout.user.full_name}, {money(payout.amount)}. M-Pesa says"
                f' "{payout.reason}" {meaning.words} {meaning.advice}',
                "red",
            )
        return market

    def _preview(self, market: Market, outcome: str) -> dict[str, Any]:
        path = f"/api/markets/admin/settlement-preview/{market.pk}/?outcome={outcome}"
        (preview,) = self.client.call("GET", path, who=self.cast.operator_token)["previews"]
        payouts, utility = preview["payouts"], preview["float"]
        self.screen.say(
            f"If {outcome} wins, {preview['winners']} winners get {money(payouts['total'])} of a pool of"
            f" {money(preview['pool'])}; the fee is {money(preview['platform_fee'])}. The {payouts['payments']} M-Pesa"
            f" payments need a float of {money(utility['needed'])}, of which {money(preview['charges'])} is charges."
            f" Hash {preview['preview_hash'][:16]}…"
        )
        return dict(preview)

    def _show_the_lost_callback(self, market: Market) -> None:
        attempts = Attempt.objects.filter(transaction__settlement__market=market, state=Attempt.State.PAID)
        for attempt in attempts.filter(phone_number=self.cast.phone(CALLBACK_LOST)).exclude(callbacks__kind="result"):
            self.screen.say(
                f"LOST CALLBACK: no result came for {CALLBACK_LOST}'s {money(attempt.amount)}. A status query to"
                f" M-Pesa shows that it was paid, receipt {attempt.receipt}. Nothing was sent twice."
            )

    def _retry_failed_payouts(self, market: Market) -> None:
        failed = list(self._failed(market))
        if not failed:
            return
        self.screen.step("The failed payout is retried")
        for payout in failed:
            body = {"transaction_id": payout.pk}
            self.client.call("POST", "/api/payments/admin/retry-payout/", body, who=self.cast.operator_token)
        retried = Transaction.objects.filter(pk__in=[payout.pk for payout in failed])
        self._follow(market, retried, "payments completed")
        for payout in retried.select_related("user"):
            ids = ", ".join(str(attempt) for attempt in payout.attempts.order_by("number"))
            self.screen.say(f"{payout.user.full_name}: {payout.status}, receipt {payout.receipt}; requests {ids}")

    def _void_a_market(self) -> Market:
        self.screen.step("Another market is voided, and its stakes are returned")
        market = self._new_market("Will Saturday's friendly be played?")
        names = tuple(name for name, _, _ in VOID_BETS)
        before = self.cast.wallets(names)
        self._bet(market, VOID_BETS)
        body = {"market_id": market.pk, "reason": "cancelled"}
        self.client.call("POST", "/api/markets/admin/void/", body, who=self.cast.operator_token)
        self._follow(market, self._payouts(market), "stakes returned")
        for name, after in self.cast.wallets(names).items():
            self.screen.say(f"{name}'s wallet: {money(before[name])} before the bet, {money(after)} now.")
        return market

    def _resolve_by_two_people(self) -> Market:
        """Resolve a market by the rules of production for staff. Afterwards one person is enough again."""
        self.screen.step("Two people resolve a large market, each with the code of an authenticator app")
        self.screen.say(
            "From here staff follow the rules of production: a role each, a code at login and with decisions, and two"
            f" people for a pool above {money(two_people.THRESHOLD)}. Only the members' wallets are still play money."
        )
        operator, approver = self.cast.colleagues()
        market = self._new_market("Will the matatu strike end this week?")
        self._bet(market, two_people.BETS)
        two_people.set_threshold(two_people.THRESHOLD)
        try:
            two_people.resolve(self.client, self.screen, market.pk, operator, approver)
        finally:
            two_people.set_threshold(figures.NEVER)
        self._follow(market, self._payouts(market), "payments completed")
        return market

    # --- the proof ---------------------------------------------------------------------------------------------------

    def _prove(self, *markets: Market) -> list[str]:
        """Print the proof from three sides, and return the differences. The winners are those of the first market."""
        self.screen.step("The proof")
        settlements = [proof.settlement_of(decided.pk) for decided in markets]
        self._print_winners(settlements[0])
        divisions = [proof.division(settlement) for settlement in settlements]
        self.screen.table(
            ("Market", "Pool", "= Payouts", "+ Fee", "+ Refunds"),
            [
                (
                    str(division.market_id),
                    *map(money, (division.pool, division.payouts, division.fee, division.refunds)),
                )
                for division in divisions
            ],
        )
        self._print_trial_balance()
        comparison = self._compare_with_provider()
        self.screen.table(("M-Pesa", "Our book", "Provider's book"), comparison.rows)
        differences = [difference for division in divisions for difference in division.differences]
        differences += [difference for settled in settlements for difference in proof.pool_differences(settled)]
        return differences + proof.ledger_differences() + list(comparison.differences)

    def _print_winners(self, settlement: Any) -> None:
        net, winning_pool = money(settlement.net or journal.ZERO), money(settlement.winning_pool or journal.ZERO)
        self.screen.say(
            f"Dividend = stake × {net} (the pool less the fee) ÷ {winning_pool} (the stakes on Yes). It is rounded down"
            " to the cent. The cents left over go to the largest remainders."
        )
        self.screen.plain()
        self.screen.table(
            ("Winner", "Stake", "Exact", "Dividend", "To phone", "To wallet"),
            [
                (
                    winner.name,
                    money(winner.stake),
                    money(winner.exact, places=4),
                    *map(money, (winner.dividend, winner.to_phone, winner.to_wallet)),
                )
                for winner in proof.winners(settlement)
            ],
        )

    def _print_trial_balance(self) -> None:
        lines = trial_balance.trial_balance()
        debits, credits_ = (
            sum((getattr(line, side) for line in lines), journal.ZERO) for side in ("debits", "credits")
        )
        self.screen.table(
            ("Trial balance", "Debits", "Credits", "Balance"),
            [(line.kind, *map(money, (line.debits, line.credits, line.balance))) for line in lines],
            ("all", *map(money, (debits, credits_, debits - credits_))),
        )

    def _compare_with_provider(self) -> proof.Comparison:
        """Compare the books until they agree, at most 20 s, as a killed run's payouts may be under way."""
        market_ids = [int(line) for line in self.markets_of_book.read_text().split()]
        comparisons = [proof.compare(self.provider.call("GET", "/sandbox/book"), market_ids)]

        def agree() -> bool:
            if comparisons[-1].differences:
                book = self.provider.call("GET", "/sandbox/book", shown=False)
                comparisons.append(proof.compare(book, market_ids))
            return not comparisons[-1].differences

        # After a timeout the caller reports the differences, which say more than the timeout.
        with suppress(StackError):
            self.running.until(agree, what="the books to agree", seconds=20)
        return comparisons[-1]

    # --- where to go from here ---------------------------------------------------------------------------------------

    def _print_addresses(self) -> None:
        self.screen.step("Where to look next")
        # Not in a panel, because a reader would copy its border too.
        for line in (
            f"Console   {self.web}/admin/",
            f"API       {self.web}/api/markets/",
            f"Login     {self.cast.operator_phone}, PIN {self.cast.operator_pin}",
            f"Logs      {self.state / 'logs'}",
            "Books     .venv/bin/python manage.py reconcile",
            "Read      README.md · docs/architecture.md · docs/runbook.md",
        ):
            self.screen.plain(line)

    def _print_resolve_commands(self) -> None:
        """Print commands that log in, find an open market, resolve it, and show its settlement."""
        self.screen.step("Resolve the open market: paste this into another terminal")
        for line in resolve_commands(self.web, str(self.cast.login_file)):
            self.screen.plain(line)
        self.screen.plain()

    # --- parts -------------------------------------------------------------------------------------------------------

    def _book_the_float(self) -> None:
        """Book the opening balance of the simulator's Utility account, once."""
        key = "opening:mpesa_utility:1"
        if not Transfer.objects.filter(key=key).exists():
            with transaction.atomic():
                journal.post([journal.Entry(key, journal.MPESA_UTILITY, journal.OPENING, FLOAT)], at=timezone.now())

    def _new_market(self, question: str) -> Market:
        end = timezone.now() + timedelta(days=1)
        market = Market.objects.create(question=question, category=CATEGORY, end_date=end)
        with self.markets_of_book.open("a") as markets:
            markets.write(f"{market.pk}\n")
        self.screen.say(f"Market {market.pk}: {question} Yes or No, fee {market.platform_fee_pct} %.")
        return market

    def _bet(self, market: Market, bets: tuple[tuple[str, str, str], ...]) -> None:
        for number, (name, outcome, stake) in enumerate(bets):
            self.client.call(
                "POST",
                f"/api/markets/{market.pk}/bets/",
                {"outcome": outcome, "amount": stake},
                who=self.cast.member_token(name),
                key=f"demo-{self.cast.run}-{market.pk}-{number}",
                shown=number == 0,
            )
        pool = self.client.call("GET", f"/api/markets/{market.pk}/")
        stakes = ", ".join(
            f"{outcome['name']} {money(outcome['staked'])} in {_bets(outcome['bets'])}" for outcome in pool["outcomes"]
        )
        self.screen.say(f"{_bets(len(bets))}. Pool {money(pool['pool'])}: {stakes}.")

    def _follow(self, market: Market, payouts: QuerySet[Transaction, Transaction], noun: str) -> dict[str, Any]:
        return progress.follow(
            self.client, self.screen, market.pk, who=self.cast.operator_token, payouts=payouts, noun=noun
        )

    def _payouts(self, market: Market) -> QuerySet[Transaction, Transaction]:
        return Transaction.objects.filter(settlement__market=market).order_by("pk")

    def _failed(self, market: Market) -> QuerySet[Transaction, Transaction]:
        return self._payouts(market).filter(status=Transaction.Status.FAILED).select_related("user")


def resolve_commands(web: str, login_file: str) -> list[str]:
    """Return the lines of a shell session that resolves an open market. They need curl 7.81 and python3 only."""
    authorisation = '-H "Authorization: Bearer $TOKEN"'
    json_header = "-H 'Content-Type: application/json'"
    read = "| python3 -c 'import json, sys; print(json.load(sys.stdin)"
    commands = (
        ["TOKEN=$(curl -s", json_header, f"-d @{login_file}", f"{web}/api/users/login/", f"""{read}["token"])')"""],
        ["MARKET=$(curl -s", f"'{web}/api/markets/?status=OPEN'", f"""{read}["markets"][0]["id"])')"""],
        [
            "curl",
            authorisation,
            json_header,
            '-d "{\\"market_id\\": $MARKET, \\"outcome\\": \\"Yes\\"}"',
            f"{web}/api/markets/admin/resolve/",
        ],
        ["curl", authorisation, f"{web}/api/markets/admin/settlement-status/$MARKET/"],
    )
    return [line for command in commands for line in as_shell_lines(command, PASTE_WIDTH).splitlines()]


def _bets(count: int) -> str:
    return "1 bet" if count == 1 else f"{count} bets"


def _nairobi_time(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(NAIROBI):%H:%M:%S} EAT"
