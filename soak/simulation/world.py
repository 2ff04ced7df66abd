"""Simulated world of one seed, around the real services on PostgreSQL.

The clock is virtual, and M-Pesa is scripted. The whole run is one database transaction, which is rolled back at the
end. Each transaction of a service is a savepoint of it, so a crash loses all changes that were not committed. The seed
decides every fault, every order and every crash. After each step every invariant of the money is checked, in SQL and
against M-Pesa's book. After some time the faults stop, and everything must become final. A seed always gives the same
trace. The database draws ids and references at random, so the trace calls the payouts p1, p2, ….
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from decimal import Decimal
from functools import partial
from random import Random

from django.db import IntegrityError, InternalError

from markets.models import Bet, Market
from payments import failpoints
from payments.mpesa.callback_urls import Addresses
from soak.simulation import snapshot
from soak.simulation.daraja import DarajaProvider
from soak.simulation.judge import FINAL, Judge
from soak.simulation.people import Forger, Operator
from soak.simulation.provider import RATES, UNREGISTERED_SHARE
from soak.simulation.scratch import rolled_back
from soak.simulation.seed_result import SeedResult
from soak.simulation.web import Web
from soak.simulation.workers import ProcessDied
from testing import builders
from users.models import CustomUser

WRONG_PROVIDERS_SHARE = 0.15
LONG_TROUBLE = "long trouble"
LONG_TROUBLE_SHARE = 0.1  # Units: share of the seeds whose faults last longer than M-Pesa remembers an id.
WORLD_RATES = {
    "message lost": 0.6,
    "message doubled": 0.4,
    "worker killed": 0.1,
    "worker dies at a failpoint": 0.15,
    "worker stalls": 0.1,
    "beat dies": 0.1,
    "operator": 0.3,
    "forger": 0.8,
    "foreign address": 0.3,
}
Plant = Callable[["World"], AbstractContextManager[None]]


class World(Web):
    """Members, markets, the processes, the people, M-Pesa, and the judge."""

    def __init__(self, seed: int, *, fixed_rates: Mapping[str, float], keep_trace: bool) -> None:
        super().__init__(Random(f"world {seed}"), builders.AT, WORLD_RATES, fixed_rates, keep_trace)
        self._names: dict[str, str] = {}
        self._final_passes = 0
        self.begin_workers()
        self.policy = builders.policy(
            production=self.random.random() < 0.5,
            settlement_chunk=self.random.choice([2, 3, 20_000]),
            breaker_window=self.random.choice([5, 20]),
            max_amount=self.random.choice([100_000, 250_000]),
            canary=self.random.choice([(), (1,), (1, 3)]),
        )
        self.addresses = Addresses(callback_url="https://kasoko.app/api/payments/b2c-callback/", key="k" * 40)
        self.provider = DarajaProvider(
            Random(f"provider {seed}"),
            self.draw_rates(RATES, fixed_rates),
            clock=lambda: self.now,
            schedule=self.schedule,
            post=self.post,
            answers_wrongly=self.random.random() < WRONG_PROVIDERS_SHARE,
        )
        long_trouble = self.random.random() < fixed_rates.get(LONG_TROUBLE, LONG_TROUBLE_SHARE)
        self.faults_stop_at = self.start + timedelta(minutes=self.random.uniform(40, 90) if long_trouble else 1)
        if not long_trouble:
            self.faults_stop_at += timedelta(minutes=self.random.uniform(0, 14))
        self.snapshot = snapshot.EMPTY
        self.judge = Judge(self.provider, self.accuse)
        self.operator, self.forger = Operator(self), Forger(self)

    def begin(self) -> None:
        """Make members and one or two markets, and schedule the resolution of each market."""
        numbers = range(self.random.randint(4, 8))
        members = CustomUser.objects.bulk_create(
            CustomUser(phone_number=f"2547{number:08d}", full_name="Member", password="!") for number in numbers
        )
        for member in members:
            if self.random.random() < UNREGISTERED_SHARE:
                self.provider.unregistered.add(member.phone_number)
        for number in range(self.random.choice([1, 1, 2])):
            market = self._market(members)
            self.schedule(20.0 * number, "operator resolves a market", partial(self._resolve, market))
        self.schedule((self.faults_stop_at - self.start).total_seconds(), "the faults stop", self.stop_faults)
        if self.rates["operator"]:
            self.schedule(10, "operator", self.operator.act)
        if self.rates["forger"]:
            self.schedule(5, "forger", self.forger.act)

    def _market(self, members: list[CustomUser]) -> Market:
        market = Market.objects.create(
            question="Will it rain tomorrow?", end_date=builders.FAR, platform_fee_pct=Decimal("5.00")
        )
        bets = []
        for member in members:
            stake = self.random.choice([15, 40, 99, 250, 1234, 20_000, 70_000])
            outcome = "Yes" if self.random.random() < 0.8 else "No"
            bets.append(Bet(market=market, user=member, outcome=outcome, amount=Decimal(stake), placed_at=self.start))
        Bet.objects.bulk_create(bets)
        return market

    def _resolve(self, market: Market) -> None:
        self.state_changed = True
        builders.resolve(market, "Yes", at=self.now, policy=self.policy)
        self.send_message("settle", partial(self.settle, market.pk))

    def stop_faults(self) -> None:
        """End every fault, start Celery beat again if it has died, and let stopped releases go on."""
        self.provider.stop_faults()
        self.restart_beat()
        for minutes in (0, 10, 30, *range(90, 48 * 60, 120)):
            self.schedule(60 * minutes, "operator lets releases go on", self.operator.let_releases_go)

    def do_step(self, label: str, step: Callable[[], None]) -> None:
        """Do one step, and judge the state after it."""
        self.steps += 1
        self.note(label)
        try:
            step()
        except ProcessDied as death:
            self.note(f"    died at {death}")
        except (IntegrityError, InternalError) as error:  # A constraint or a trigger refused a statement.
            evidence = f"{label}: {type(error).__name__} {error}".strip()
            self.accuse(
                "A service never tries a statement that PostgreSQL's guards refuse", evidence, found_by="database"
            )
            return
        except Exception as error:
            evidence = f"{label}: {type(error).__name__} {error}".strip()
            self.accuse("No service fails with an unexpected exception", evidence, found_by="crash")
            return
        if self.state_changed:
            before, self.state_changed = self.snapshot, False
            self.snapshot = snapshot.take(self._names)
            if self.snapshot != before:
                self.progress_made()
        self.judge.check(self.snapshot)
        self.plan_beat()

    def named(self, text: str) -> str:
        for ref, name in self._names.items():
            text = text.replace(ref, name)
        return text

    def is_quiet(self) -> bool:
        seen = self.snapshot
        return (
            not (seen.has_unsettled_market or seen.has_unapplied_callback)
            and bool(seen.payouts)
            and all(payout.status in FINAL for payout in seen.payouts)
            and not self._awaited()
            and not any(label.startswith(("worker", "posts", "leaves")) for label in self.waiting())
        )

    def _awaited(self) -> set[str]:
        """Return the payouts whose next answer can still change them.

        M-Pesa never answers about a request that it does not know, so a person must decide that payout.
        """
        held = {payout.ref for payout in self.snapshot.payouts if payout.status == "HELD"}
        asking = [attempt for attempt in self.snapshot.attempts if attempt.asking]
        requests = self.provider.requests
        paid = {a.ref for a in asking if a.ocid in requests and requests[a.ocid].state == "paid"}
        return {attempt.ref for attempt in asking if attempt.ref not in held} | paid

    def final_pass(self) -> bool:
        """Let the operator retry failed payouts, at most twice.

        A payout must not stay failed if a retry can complete it.
        """
        self._final_passes += 1
        if self._final_passes > 2 or not any(payout.status == "FAILED" for payout in self.snapshot.payouts):
            return False
        self.do_step("operator retries failed payouts", self.operator.retry_failed)
        return True

    def judge_end(self) -> None:
        self.judge.check_end(self.snapshot, forged_paid=self.forger.forged_paid, stats=self.stats)


def run(
    seed: int,
    *,
    plant: Plant | None = None,
    fixed_rates: Mapping[str, float] | None = None,
    keep_trace: bool = False,
    world: type[World] = World,
) -> SeedResult:
    """Run one seed in a transaction that is rolled back, and return its result.

    `plant` is a context manager that plants a bug: it switches off one guard. `fixed_rates` sets the probability of
    some faults. Needs a connection to a migrated, empty database.
    Idempotent: the same seed and the same code give the same trace.
    """
    snapshot.prepare()
    simulated = world(seed, fixed_rates=fixed_rates or {}, keep_trace=keep_trace)
    logging.disable(logging.CRITICAL)
    try:
        with rolled_back(), plant(simulated) if plant else nullcontext():
            simulated.run()
    finally:
        failpoints.arm(None)
        logging.disable(logging.NOTSET)
    simulated.stats.update(payout.status for payout in simulated.snapshot.payouts)
    return SeedResult(seed, simulated.trace_hash, tuple(simulated.violations), simulated.stats, tuple(simulated.trace))
