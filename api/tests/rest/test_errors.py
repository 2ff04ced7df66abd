"""Answers to errors: every refusal of the domain has a status and a code, and a fault of ours stays a 500."""

from collections.abc import Iterator

from api.console.pages import receivables
from api.rest import errors
from markets import terms
from payments.payouts.operations import actions
from payments.payouts.restores import decisions as restore_decisions
from payments.settlement.preview import FiguresDisagree
from users import accounts, api_keys, erasure, outgoing, phone_access, staff_notes
from users.refusal import Refusal

# Refusals that only pages and commands can cause. A REST call that could cause one must have a row in the table.
WITHOUT_REST = {
    api_keys.BadKey,
    api_keys.KeyNotFound,
    accounts.AccountNotFound,
    accounts.ChangeRefused,
    accounts.OwnAccount,
    actions.NotToBeHeld,
    actions.NotToBeReleased,
    actions.NothingToAsk,
    erasure.ErasureRefused,
    phone_access.MemberNotFound,
    receivables.NotAPercentage,
    outgoing.NotAnOutgoingAddress,
    restore_decisions.NothingToDecide,
    staff_notes.NoteRefused,
    terms.SecondPersonNeeded,
}


def refusals(kind: type[Exception] = Refusal) -> Iterator[type[Exception]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from refusals(subclass)


def test_each_refusal_has_a_status_and_a_code_or_no_rest_call() -> None:
    known = {kind for kind in refusals() if not kind.__module__.startswith(("soak", "testing"))}
    assert known - set(errors.REFUSALS) == WITHOUT_REST


def test_fault_of_a_computation_is_no_refusal() -> None:
    assert errors.answer(FiguresDisagree("The two computations disagree."), {}) is None
