"""The story that `make demo` tells: members bet, an operator resolves, M-Pesa pays, one payout fails and is retried.

Members and markets are made through the models, as there is no registration yet; everything else goes over HTTP as any
client would do it, and each step shows its call as a line for curl.
"""

import os
import secrets
import time
from contextlib import nullcontext
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import transaction
from django.utils import timezone
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from api.demo import proof, transparency
from api.demo.client import Client
from api.demo.supervisor import Stack, StackError
from markets.models import NAIROBI, Market
from payments.ledger import journal, trial_balance
from payments.models import Attempt, Transaction, Transfer
from payments.mpesa import result_codes
from users.models import CustomUser

CATEGORY = "Demo"
OPERATOR_NAME = "Demo Operator"
MEMBER_PIN = "1234"
WALLET = Decimal("5000.00")
FLOAT = Decimal("10000000.00")
PAID_WITHIN_SECONDS = 150.0
REFUSED, LOST, TWICE, SMALL = "Baraka", "Chebet", "Achieng", "Zawadi"

# (name, outcome, stake): Achieng bets twice and is paid once; Zawadi's dividend is too small for M-Pesa.
BETS = (
    ("Achieng", "Yes", "250.50"), ("Baraka", "Yes", "1000.00"), ("Chebet", "Yes", "340.75"), ("Dalmas", "No", "820.00"),
    ("Esther", "Yes", "99.99"), ("Fatuma", "No", "415.25"), ("Gitonga", "Yes", "512.10"), ("Halima", "No", "1250.00"),
    ("Imani", "Yes", "75.35"), ("Jelimo", "No", "300.00"), ("Kamau", "Yes", "628.00"), ("Lokwang", "No", "145.45"),
    ("Makena", "Yes", "181.20"), ("Njeri", "No", "90.00"), ("Otieno", "Yes", "433.33"), ("Pendo", "No", "267.80"),
    ("Rehema", "Yes", "50.05"), ("Salim", "No", "505.05"), ("Tabitha", "Yes", "214.15"), ("Umazi", "No", "33.33"),
    ("Wafula", "Yes", "166.67"), ("Yusuf", "No", "700.00"), ("Zawadi", "Yes", "4.40"), ("Zuhura", "No", "58.60"),
    ("Achieng", "Yes", "49.60"),
)  # fmt: skip
VOID_BETS = (("Dalmas", "Yes", "120.00"), ("Fatuma", "No", "80.50"), ("Njeri", "No", "45.25"))
NAMES = tuple(dict.fromkeys(name for name, _, _ in BETS))


class Story:
    """One telling: a new run number, new members, new markets. `book` is the simulator's file."""

    def __init__(self, *, console: Console, running: Stack, web: str, simulator: str, state: Path, book: Path) -> None:
        self.console, self.running, self.web, self.state = console, running, web, state
        self.client = Client(web, running, self._dim)
        self.provider = Client(simulator, running, self._dim)
        # The markets that were paid through this book, over all runs.
        self.markets_of_book = book.with_suffix(".markets")
        self.run = _unused_run()
        self.members: dict[str, CustomUser] = {}
        self.tokens: dict[str, str] = {}
        self.operator = ("OPERATOR", "")
        self.operator_phone = self.operator_pin = ""

    def faults(self) -> list[str]:
        """What the simulator is told to do to two of the phones."""
        return [f"{self._phone(REFUSED)}=fail:2040x1", f"{self._phone(LOST)}=callback_lost"]

    # --- the two endings ---------------------------------------------------------------------------------------------

    def tell(self) -> int:
        """Tell the whole story and prove it. Returns the exit status."""
        began = time.monotonic()
        market = self._settle_a_market()
        self._show_the_lost_callback(market)
        self._retry_what_failed(market)
        void = self._void_a_market()
        differences = self._prove(market, void)
        self._step("What everyone can check")
        member = (NAMES[0], self.tokens[NAMES[0]])
        differences += transparency.show(self.client, self.console, market.pk, member, self.state / "demo")
        self._where_next("`make run` keeps all of it up, with this login, until Ctrl-C.")
        if differences:
            self.console.print(f"\nNOT PROVEN: {differences[0]}", style="bold red", markup=False)
            return 1
        seconds = time.monotonic() - began
        self.console.print(f"\nThe books close and the provider's book agrees ({seconds:.0f} s).", style="bold green")
        return 0

    def stay(self) -> int:
        """Leave the stack up, with a settled market, a failed payout and an open market in it, until Ctrl-C."""
        if Market.objects.filter(category=CATEGORY, status=Market.Status.OPEN).exists():
            self._operator_logs_in()
        else:
            self._settle_a_market()
            self._step("An open market")
            self._bet(self._new_market("Will the long rains come before April?"), VOID_BETS)
        self._where_next("Everything runs until Ctrl-C, which stops what was started here and nothing else.")
        while True:
            self.running.tend()
            time.sleep(0.2)

    # --- the chapters ------------------------------------------------------------------------------------------------

    def _settle_a_market(self) -> Market:
        self._step("Members, a market, stakes")
        self._book_the_float()
        self._operator_logs_in()
        self._make_members()
        market = self._new_market("Will Gor Mahia win the derby?")
        self._bet(market, BETS)
        self._step("The operator sees what Yes would pay, resolves it, and the winners are paid")
        seen = self._preview(market, "Yes")
        body = {"market_id": market.pk, "outcome": "Yes", "preview_hash": seen["preview_hash"]}
        self.client.call("POST", "/api/markets/admin/resolve/", body, who=self.operator)
        status = self._follow(market.pk)
        resolved, settled = _eat(status["resolved_at"]), _eat(status["settled_at"])
        self.console.print(f"  Resolved {resolved}, settled {settled}, {len(self._failed(market))} failed.")
        for payout in self._failed(market):
            meaning = result_codes.meaning(payout.reason.partition(" ")[0])
            self.console.print(
                f"  FAILED: payout {payout.pk} to {payout.user.full_name}, {_money(payout.amount)}. M-Pesa says"
                f' "{payout.reason}" {meaning.words} {meaning.advice}',
                style="red",
                markup=False,
            )
        return market

    def _preview(self, market: Market, outcome: str) -> dict[str, Any]:
        path = f"/api/markets/admin/settlement-preview/{market.pk}/?outcome={outcome}"
        (seen,) = self.client.call("GET", path, who=self.operator)["previews"]
        paid = seen["payouts"]
        self.console.print(
            f"  If {outcome} wins: {seen['winners']} winners get KES {paid['total']} of a pool of {seen['pool']}, the"
            f" fee is {seen['platform_fee']}; {paid['payments']} payments over M-Pesa take a float of"
            f" {seen['float']['needed']}, {seen['charges']} of it charges. Hash {seen['preview_hash'][:16]}…"
        )
        return seen

    def _show_the_lost_callback(self, market: Market) -> None:
        attempts = Attempt.objects.filter(transaction__settlement__market=market, state=Attempt.State.PAID)
        for attempt in attempts.filter(phone_number=self._phone(LOST)).exclude(callbacks__kind="result"):
            self.console.print(
                f"  LOST CALLBACK: no result came for {LOST}'s {_money(attempt.amount)}; we asked M-Pesa, and it was"
                f" paid, receipt {attempt.receipt}. Nothing was sent twice."
            )

    def _retry_what_failed(self, market: Market) -> None:
        failed = self._failed(market)
        if not failed:
            return
        self._step("The failed payout is retried")
        for payout in failed:
            body = {"transaction_id": payout.pk}
            self.client.call("POST", "/api/payments/admin/retry-payout/", body, who=self.operator)
        self._follow(market.pk)
        for payout in Transaction.objects.filter(pk__in=[payout.pk for payout in failed]).select_related("user"):
            ids = ", ".join(str(attempt) for attempt in payout.attempts.order_by("number"))
            self.console.print(f"  {payout.user.full_name}: {payout.status}, receipt {payout.receipt}; requests {ids}")

    def _void_a_market(self) -> Market:
        self._step("Another market is voided, and its stakes go back")
        market = self._new_market("Will Saturday's friendly be played?")
        before = self._wallets()
        self._bet(market, VOID_BETS)
        body = {"market_id": market.pk, "reason": "cancelled"}
        self.client.call("POST", "/api/markets/admin/void/", body, who=self.operator)
        self._follow(market.pk)
        for name, after in self._wallets().items():
            self.console.print(f"  {name}'s wallet: {_money(before[name])} before the bet, {_money(after)} now.")
        return market

    def _prove(self, market: Market, void: Market) -> list[str]:
        self._step("The proof")
        settlements = [proof.settlement_of(one.pk) for one in (market, void)]
        first = settlements[0]
        net, winning_pool = first.net or journal.ZERO, first.winning_pool or journal.ZERO
        table = self._table("Winner", "stake × net ÷ winning pool", "exactly", "Dividend", "To phone", "Wallet")
        narrow = self.console.width < 78
        for winner in proof.winners(first):
            equation = f"{winner.stake:.2f} × {net:.2f} ÷ {winning_pool:.2f}"
            exactly = f"{winner.exact:.4f}"
            amounts = [f"{amount:,.2f}" for amount in (winner.dividend, winner.to_phone, winner.to_wallet)]
            if narrow:
                paid = f"{amounts[0]}: {amounts[1]} to the phone, {amounts[2]} to the wallet"
                self.console.print(f"  {winner.name}: {equation} = {exactly}, so {paid}")
            else:
                table.add_row(winner.name, equation, exactly, *amounts)
        if not narrow:
            self.console.print(table)
        self.console.print("  Dividends are floored to the cent; left-over cents go to the largest remainders.\n")

        table = self._table("Market", "Pool", "= Payouts", "+ Fee", "+ Refunds")
        differences = []
        for settlement in settlements:
            sums = dict.fromkeys(("PAYOUT", "REFUND"), journal.ZERO)
            for kind, amount in Transaction.objects.filter(settlement=settlement).values_list("type", "amount"):
                sums[kind] += amount
            pool, fee = settlement.pool or journal.ZERO, settlement.fee or journal.ZERO
            if pool != sums["PAYOUT"] + fee + sums["REFUND"]:
                differences.append(
                    f"market {settlement.market_id}: {pool} ≠ {sums['PAYOUT']} + {fee} + {sums['REFUND']}"
                )
            columns = (pool, sums["PAYOUT"], fee, sums["REFUND"])
            table.add_row(str(settlement.market_id), *(f"{amount:,.2f}" for amount in columns))
            differences += proof.pool_differences(settlement)
        self.console.print(table)

        table = self._table("Trial balance", "Debits", "Credits", "Balance")
        lines = trial_balance.trial_balance()
        for line in lines:
            table.add_row(line.kind, *(f"{amount:,.2f}" for amount in (line.debits, line.credits, line.balance)))
        table.add_section()
        debits, credits = (sum((getattr(line, side) for line in lines), journal.ZERO) for side in ("debits", "credits"))
        table.add_row("all", f"{debits:,.2f}", f"{credits:,.2f}", f"{debits - credits:,.2f}", style="bold")
        self.console.print(table)

        comparison = self._compare_with_provider()
        table = self._table("M-Pesa", "Our book", "Provider's book")
        for row in comparison.rows:
            table.add_row(*row)
        self.console.print(table)
        return differences + proof.ledger_differences() + list(comparison.differences)

    def _compare_with_provider(self) -> proof.Comparison:
        """The comparison once it agrees, or as it stands when payouts of a killed earlier run took too long."""
        market_ids = [int(line) for line in self.markets_of_book.read_text().split()]
        books = [proof.compare(self.provider.call("GET", "/sandbox/book"), market_ids)]

        def agree() -> bool:
            if books[-1].differences:
                book = self.provider.call("GET", "/sandbox/book", shown=False)
                books.append(proof.compare(book, market_ids))
            return not books[-1].differences

        try:
            self.running.until(agree, what="the books to agree", seconds=20)
        except StackError:
            pass  # The differences say it better.
        return books[-1]

    def _where_next(self, last: str) -> None:
        market = Market.objects.filter(category=CATEGORY, status="SETTLED").order_by("pk").last()
        status = f"/api/markets/admin/settlement-status/{market.pk}/" if market else "/api/markets/"
        lines = (
            f"Console   {self.web}/admin/",
            f"Login     {self.operator_phone}, PIN {self.operator_pin}",
            f"API       export OPERATOR={self.operator[1]}",
            f'          curl -H "Authorization: Bearer $OPERATOR" {self.web}{status}',
            f"Logs      {self.state / 'logs'}",
            "Books     .venv/bin/python manage.py reconcile",
            "Read      README.md · docs/architecture.md · docs/runbook.md",
            "",
            last,
        )
        self.console.print("\nWhere to look next", style="bold")
        # Not in a panel, whose border would get into what is copied from here.
        for line in lines:
            self.console.print(line, markup=False, soft_wrap=True)

    # --- its parts ---------------------------------------------------------------------------------------------------

    def _book_the_float(self) -> None:
        """Book what the simulator's Utility account begins with, once."""
        key = "opening:mpesa_utility:1"
        if not Transfer.objects.filter(key=key).exists():
            with transaction.atomic():
                journal.post([journal.Entry(key, journal.MPESA_UTILITY, journal.OPENING, FLOAT)], at=timezone.now())

    def _operator_logs_in(self) -> None:
        self.operator_pin = _kept_pin(self.state / "demo" / "operator-pin")
        operator = CustomUser.objects.filter(full_name=OPERATOR_NAME, is_superuser=True).first()
        if operator is None:
            phone = self._phone_of(99)
            os.environ["DJANGO_SUPERUSER_PASSWORD"] = self.operator_pin
            call_command("createsuperuser", interactive=False, verbosity=0, phone_number=phone, full_name=OPERATOR_NAME)
            del os.environ["DJANGO_SUPERUSER_PASSWORD"]
            operator = CustomUser.objects.get(phone_number=phone)
        elif not operator.check_password(self.operator_pin) or operator.locked_until or not operator.is_active:
            operator.set_password(self.operator_pin)
            operator.locked_until, operator.failed_logins, operator.is_active = None, 0, True
            operator.save()
        self.operator_phone = operator.phone_number
        self.operator = ("OPERATOR", self._log_in(operator.phone_number, self.operator_pin, shown=True))

    def _make_members(self) -> None:
        for name in NAMES:
            member = CustomUser.objects.create_user(phone_number=self._phone(name), full_name=name, pin=MEMBER_PIN)
            member.balance = WALLET
            member.save()
            self.members[name] = member
            self.tokens[name] = self._log_in(member.phone_number, MEMBER_PIN, shown=name == NAMES[0])
        self.console.print(
            f"  {len(NAMES)} members with {_money(WALLET)} each. $OPERATOR and $MEMBER below are tokens of such logins."
        )

    def _log_in(self, phone: str, pin: str, *, shown: bool) -> str:
        body = {"phone_number": phone, "pin": pin}
        return str(self.client.call("POST", "/api/users/login/", body, shown=shown)["token"])

    def _new_market(self, question: str) -> Market:
        end = timezone.now() + timedelta(days=1)
        market = Market.objects.create(question=question, category=CATEGORY, end_date=end)
        with self.markets_of_book.open("a") as markets:
            markets.write(f"{market.pk}\n")
        self.console.print(f"  Market {market.pk}: {question} Yes or No, fee {market.platform_fee_pct} %.")
        return market

    def _bet(self, market: Market, bets: tuple[tuple[str, str, str], ...]) -> None:
        for number, (name, outcome, stake) in enumerate(bets):
            self.client.call(
                "POST",
                f"/api/markets/{market.pk}/bets/",
                {"outcome": outcome, "amount": stake},
                who=("MEMBER", self.tokens[name]),
                key=f"demo-{self.run}-{market.pk}-{number}",
                shown=number == 0,
            )
        pool = self.client.call("GET", f"/api/markets/{market.pk}/")
        staked = ", ".join(f"{one['name']} {one['staked']} in {one['bets']} bets" for one in pool["outcomes"])
        self.console.print(f"  {len(bets)} bets. Pool {_money(Decimal(pool['pool']))}: {staked}.", markup=False)

    def _wallets(self) -> dict[str, Decimal]:
        names = [name for name, _, _ in VOID_BETS]
        found = {}
        for name in names:
            who = ("MEMBER", self.tokens[name])
            found[name] = Decimal(self.client.call("GET", "/api/users/me/", who=who, shown=name == names[0])["balance"])
        return found

    def _follow(self, market_id: int) -> Any:
        """Follow a settlement by its status until nothing is under way, with a bar or, off a terminal, in lines."""
        path = f"/api/markets/admin/settlement-status/{market_id}/"
        statuses = [self.client.call("GET", path, who=self.operator)]
        terminal = self.console.is_terminal
        columns = (BarColumn(bar_width=min(24, max(6, self.console.width - 56))), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, auto_refresh=False) if terminal else nullcontext() as bar:
            task = bar.add_task("", total=1) if bar else None
            shown = ""

            def done() -> bool:
                nonlocal shown
                status = self.client.call("GET", path, who=self.operator, shown=False)
                statuses.append(status)
                counts = status["payout_count"]
                words = (
                    f"{counts['completed']} of {sum(counts.values())} completed,"
                    f" {counts['pending'] + counts['processing']} pending, {counts['in_doubt']} in doubt,"
                    f" {counts['failed']} failed"
                )
                if not counts["completed"] and status["status"] == "RESOLVED":
                    words = "the pool is being divided"
                if bar is not None and task is not None:
                    total = sum(counts.values()) or 1
                    bar.update(task, total=total, completed=counts["completed"], description=words, refresh=True)
                elif words != shown:
                    amounts = (Decimal(status[name]) for name in ("completed_payouts", "total_payouts"))
                    self.console.print(f"  {words} ({' of '.join(map(_money, amounts))})", soft_wrap=True)
                shown = words
                under_way = counts["pending"] + counts["processing"] + counts["in_doubt"]
                return status["status"] in {"SETTLED", "VOID"} and not under_way

            # Where nothing moves, the worker's log says why.
            worker = next(program for program in self.running.programs if program.name == "worker")
            self.running.until(done, what=f"the payouts of market {market_id}", seconds=PAID_WITHIN_SECONDS, of=worker)
        return statuses[-1]

    def _failed(self, market: Market) -> list[Transaction]:
        failed = Transaction.objects.filter(settlement__market=market, status="FAILED")
        return list(failed.select_related("user").order_by("pk"))

    def _phone(self, name: str) -> str:
        return self._phone_of(NAMES.index(name))

    def _phone_of(self, number: int) -> str:
        return f"{_prefix(self.run)}{number:02d}"

    def _step(self, words: str) -> None:
        self.console.print(f"\n{words}", style="bold")

    def _dim(self, line: str) -> None:
        self.console.print(f"  $ {line}", style="dim", markup=False, soft_wrap=True)

    def _table(self, *headings: str) -> Table:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for place, heading in enumerate(headings):
            # Amounts stay whole where there is room; names are what folds.
            whole = place > 0 and self.console.width >= 60
            table.add_column(heading, justify="right" if place else "left", overflow="fold", no_wrap=whole)
        return table


def _prefix(run: int) -> str:
    return f"25471{run:05d}"


def _unused_run() -> int:
    """A run whose phone numbers nobody has."""
    while True:
        run = secrets.randbelow(100_000)
        if not CustomUser.objects.filter(phone_number__startswith=_prefix(run)).exists():
            return run


def _kept_pin(path: Path) -> str:
    """The operator's PIN, drawn once, so that what an earlier run printed still opens the door."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{secrets.randbelow(10**6):06d}")
    except FileExistsError:
        pass
    return path.read_text()


def _money(amount: Decimal) -> str:
    return f"KES {amount:,.2f}"


def _eat(moment: str) -> str:
    return f"{datetime.fromisoformat(moment).astimezone(NAIROBI):%H:%M:%S} EAT"
