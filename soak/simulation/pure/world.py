"""Simulated world of one seed around the pure machine, without a database.

The clock is virtual, and M-Pesa is scripted. The seed decides every fault, every order and every crash. A worker may
die before each step of a task. A step is one transaction, so a crash loses all changes that were not committed. After
each step the payouts that may have changed are checked against our book and M-Pesa's book. After some time the faults
stop. Then an operator retries failed payouts, and two people decide held payouts by M-Pesa's statement. A payout that
M-Pesa cannot pay goes to the wallet. In the end every payout must be COMPLETED.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from random import Random

from payments.policy import Policy
from soak.simulation.provider import RATES, UNREGISTERED_SHARE, payout_of
from soak.simulation.pure import losses
from soak.simulation.pure.judge import Judge
from soak.simulation.pure.machine import Machine
from soak.simulation.pure.people import Forger, Operator
from soak.simulation.pure.provider import PureProvider
from soak.simulation.pure.rows import Forbidden, Payout
from soak.simulation.pure.workers import Workers
from soak.simulation.seed_result import SeedResult

COMMITS_LOST = "commits lost"
LOSS_SHARE = 0.3  # Units: share of the seeds in which commits are lost.
START = datetime(2026, 2, 16, 7, 30, tzinfo=UTC)
WRONG_PROVIDERS_SHARE = 0.15
BACKGROUND_LABELS = ("beat", "operator", "forger", "the faults stop")
WORLD_RATES = {
    "message lost": 0.6,
    "message doubled": 0.4,
    "worker killed": 0.15,
    "worker stalls": 0.1,
    "callback lost": 0.15,
    "beat dies": 0.1,
    "operator": 0.3,
    "forger": 0.8,
    "foreign address": 0.3,
    "people read the wrong line": 0.5,
}
POLICY = Policy(
    production=False,
    protect_stake=True,
    destination="mpesa",
    min_amount=10,
    max_amount=250_000,
    day_limit=500_000,
    query_after=timedelta(seconds=20),
    query_gap=timedelta(seconds=60),
    review_after=timedelta(hours=24),
    resend_horizon=timedelta(minutes=30),
    retry_after=timedelta(seconds=15),
    confirm_above=Decimal(50_000),
    settlement_chunk=20_000,
)
PRODUCTION = replace(POLICY, production=True)


class World(Workers):
    """The machine, its workers, the people, M-Pesa, and the judge."""

    def __init__(
        self, seed: int, machine: type[Machine], fixed_rates: Mapping[str, float], *, keep_trace: bool
    ) -> None:
        super().__init__(Random(seed * 2), START, WORLD_RATES, fixed_rates, keep_trace)
        self._busy = 0
        self._final_passes = self._held_passes = 0
        self.begin_workers()
        self.machine = machine(PRODUCTION if self.random.random() < 0.5 else POLICY)
        self.by_ref: dict[str, Payout] = {}
        # The draws of losses have a random source of their own, so that seeds without a loss keep their traces.
        self._losses = Random(f"losses {seed}")
        self._commits_are_lost = self._losses.random() < fixed_rates.get(COMMITS_LOST, LOSS_SHARE)
        self._winners: dict[int, list[int]] = {}
        self._amounts: dict[str, int] = {}
        self.provider = PureProvider(
            Random(seed * 2 + 1),
            self.draw_rates(RATES, fixed_rates),
            clock=lambda: self.now,
            schedule=self.schedule,
            post=self.post,
            mark_for_check=self.mark_for_check,
            answers_wrongly=self.random.random() < WRONG_PROVIDERS_SHARE,
        )
        self.judge = Judge(self.machine, self.provider, self.accuse)
        self.operator, self.forger = Operator(self), Forger(self)
        minutes = self.random.uniform(40, 90) if self.random.random() < 0.1 else self.random.uniform(1, 15)
        self.faults_stop_at = self.start + timedelta(minutes=minutes)

    def begin(self) -> None:
        """Draw members and one or two markets, and schedule the settlements and the acts of people."""
        numbers = range(self.random.randint(4, 8))
        for number in numbers:
            if self.random.random() < UNREGISTERED_SHARE:
                self.provider.unregistered.add(f"2547{number:08d}")
        for market in range(self.random.choice([1, 1, 2])):
            winners = [number for number in numbers if self.random.random() < 0.8]
            self.schedule(20.0 * market, "a market settles", partial(self._settle, market, winners))
        if self._commits_are_lost:
            draw = self._losses
            survives = draw.choice([draw.uniform(0, 5), draw.uniform(0, 90)])
            self.schedule(survives, "the last commit that survives", self._remember)
        self.schedule((self.faults_stop_at - self.start).total_seconds(), "the faults stop", self.stop_faults)
        if self.rates["operator"]:
            self.schedule(10, "operator", self.operator.act)
        if self.rates["forger"]:
            self.schedule(5, "forger", self.forger.act)

    def _settle(self, market: int, winners: list[int]) -> None:
        self._winners[market] = winners
        for number in winners:
            self._amounts[f"m{market}-{number}"] = self.random.choice([15, 99, 285, 1_234, 20_000, 49_999, 70_000])
        self._owe(market)

    def reference(self, market: int, number: int) -> str:
        """Return the reference of a member's payout. It is derived, so it is the same after a loss."""
        return f"m{market}-{number}"

    def _owe(self, market: int) -> None:
        for number in self._winners[market]:
            ref = self.reference(market, number)
            amount = self._amounts[f"m{market}-{number}"]
            payout = self.machine.owe(ref, member=str(number), phone=f"2547{number:08d}", amount=amount, at=self.now)
            self.by_ref[ref] = payout
            self.send_message("send one", partial(self.send_one, payout))

    def _remember(self) -> None:
        window = self._losses.choice([self._losses.uniform(0, 3), self._losses.uniform(0, 60)])
        lose = partial(self._lose, losses.memento(self.machine), self.now)
        self.schedule(window, "the server loses its last commits", lose)

    def _lose(self, restore: Callable[[], None], survived_at: datetime) -> None:
        """Lose the last commits. Settlements that are lost are made again later, often with other amounts."""
        if self.provider.faults_stopped:
            return
        self.stats[COMMITS_LOST] += 1
        restore()
        self.end_all_tasks()
        self.by_ref = {payout.ref: payout for payout in self.machine.payouts}
        self.due = {payout: self.machine.next_due(payout) for payout in self.machine.payouts}
        self.machine.survived_at, self.machine.asked_first = survived_at, set()
        self.machine.seek_after_loss(self.now)
        # The books lost the proofs of the lost time too.
        attempts = [attempt for payout in self.machine.payouts for attempt in payout.attempts]
        self.provider.told &= {attempt.ocid for attempt in attempts if attempt.state == "PAID"}
        for market, winners in self._winners.items():
            if winners and self.reference(market, winners[0]) not in self.by_ref:
                for number in winners:
                    if self._losses.random() < 0.5:
                        ref = f"m{market}-{number}"
                        self._amounts[ref] = self._losses.choice([15, 285, self._amounts[ref], 70_000])
                wait = self._losses.choice([self._losses.uniform(1, 30), self._losses.uniform(30, 2_400)])
                self.schedule(wait, "a market settles again", partial(self._owe, market))

    def stop_faults(self) -> None:
        """End every fault, and start Celery beat again if it has died."""
        self.provider.stop_faults()
        self.restart_beat()

    def schedule(self, seconds: float, label: str, step: Callable[[], None]) -> None:
        self._busy += label not in BACKGROUND_LABELS
        super().schedule(seconds, label, step)

    def next_event(self) -> tuple[str, Callable[[], None]]:
        label, step = super().next_event()
        self._busy -= label not in BACKGROUND_LABELS
        return label, step

    def mark_for_check(self, ocid: str) -> None:
        """Make the judge check the payout of this id after the step."""
        if payout := self.by_ref.get(payout_of(ocid)):
            self.machine.touched.add(payout)

    def do_step(self, label: str, step: Callable[[], None]) -> None:
        """Do one step, and judge the payouts that it may have changed."""
        self.steps += 1
        self.note(label)
        try:
            step()
        except Forbidden as error:
            evidence = f"{label}: {type(error).__name__} {error}"
            self.accuse("No step makes a change that PostgreSQL's guards would refuse", evidence, found_by="database")
            return
        except Exception as error:
            evidence = f"{label}: {type(error).__name__} {error}"
            self.accuse("No step fails with an unexpected exception", evidence, found_by="crash")
            return
        touched = self.machine.touched
        if touched:
            for payout in touched if len(touched) == 1 else sorted(touched, key=lambda payout: payout.ref):
                self.judge.check(payout)
                self.due[payout] = self.machine.next_due(payout)
            touched.clear()
            self.plan_beat()
        elif self.beat_at is None:
            self.plan_beat()

    def is_quiet(self) -> bool:
        machine = self.machine
        sought = any(orphan.state == "SOUGHT" for orphan in machine.orphans.values())
        if self._busy or machine.unapplied or sought or self._has_orphans_to_place():
            return False
        asking = [p for p in machine.payouts if any(a.ask_at is not None for a in p.attempts)]
        # People can decide an open request while M-Pesa is asked about it. A failed one waits for the answers.
        decidable = all(payout.status == "HELD" and payout.open is not None for payout in asking)
        return decidable and not any(payout.status in ("PENDING", "PROCESSING") for payout in machine.payouts)

    def final_pass(self) -> bool:
        held = [payout for payout in self.machine.payouts if payout.status == "HELD"]
        failed = [payout for payout in self.machine.payouts if payout.status == "FAILED"]
        # A decision may have to wait until M-Pesa can no longer pay the request, so those passes are counted apart.
        self._held_passes += bool(held)
        self._final_passes += not held
        if held:
            self.do_step("two people decide", partial(_each, self.operator.decide_at_last, held))
        elif failed and self._final_passes < 6:
            self.do_step("operator retries failed payouts", self.operator.retry_failed)
        elif failed:
            self.do_step("to the wallet", partial(_each, self.operator.redirect_for_good, failed))
        return bool(held or failed) and self._final_passes < 12 and self._held_passes < 30

    def judge_end(self) -> None:
        self.judge.check_end()


def _each(act: Callable[[Payout], None], payouts: list[Payout]) -> None:
    for payout in payouts:
        act(payout)


def run(
    seed: int,
    *,
    world: type[World] = World,
    machine: type[Machine] = Machine,
    fixed_rates: Mapping[str, float] | None = None,
    keep_trace: bool = False,
) -> SeedResult:
    """Run one seed in memory, and return its result. `fixed_rates` sets the probability of some faults.

    Deterministic: the same seed and the same code give the same trace.
    """
    simulated = world(seed, machine, fixed_rates or {}, keep_trace=keep_trace)
    simulated.run()
    simulated.stats.update(payout.status for payout in simulated.machine.payouts)
    return SeedResult(seed, simulated.trace_hash, tuple(simulated.violations), simulated.stats, tuple(simulated.trace))
