"""Error answers: their common envelope, and a table of refusals with HTTP statuses and codes."""

import logging
from typing import Any

from django.core.exceptions import PermissionDenied, RequestDataTooBig
from django.db import OperationalError
from django.http import Http404, HttpRequest, JsonResponse
from rest_framework import exceptions
from rest_framework.response import Response
from rest_framework.views import set_rollback

from markets import lifecycle, locks, parimutuel, terms
from payments import dispute_steps, own_affairs
from payments.ledger import debt_decisions
from payments.mpesa import strict_json
from payments.payouts.evidence import callbacks
from payments.payouts.operations import actions, decisions
from payments.settlement import decision, failures, market_sending, resolutions, undo
from payments.settlement.certificates import issuing
from payments.wallet import bets, take_backs
from users import api_keys, auth, figures, hashing, phone, pins, proposals, second_factor, tokens

log = logging.getLogger(__name__)

REFUSALS: dict[type[Exception], tuple[int, str]] = {
    api_keys.KeyRefused: (401, "key_refused"),
    api_keys.KeyMayNot: (403, "forbidden"),
    auth.WrongCredentials: (401, "wrong_credentials"),
    pins.BadPin: (400, "bad_pin"),
    auth.TooManyTries: (429, "too_many_tries"),
    hashing.Busy: (503, "busy"),
    second_factor.WrongCode: (403, "wrong_code"),
    tokens.FreshCodeRequired: (403, "fresh_code_required"),
    phone.NotAPhoneNumber: (400, "not_a_phone_number"),
    parimutuel.UnknownOutcome: (400, "unknown_outcome"),
    parimutuel.BadWeights: (400, "bad_weights"),
    locks.MarketNotFound: (404, "market_not_found"),
    terms.BadTerms: (400, "bad_terms"),
    terms.TermsFixed: (409, "terms_fixed"),
    terms.TermsMoved: (409, "terms_moved"),
    terms.NoticeRunning: (409, "notice_running"),
    market_sending.NothingToSend: (409, "nothing_to_send"),
    market_sending.SendingNotSuspended: (409, "sending_not_suspended"),
    lifecycle.MarketNotSuspended: (409, "betting_not_suspended"),
    take_backs.BetNotFound: (404, "bet_not_found"),
    take_backs.TakeBackClosed: (409, "take_back_closed"),
    decision.UnknownReason: (400, "unknown_reason"),
    decision.BadCloseTime: (400, "bad_close_time"),
    resolutions.MarketAlreadyResolved: (409, "market_already_resolved"),
    resolutions.NothingToWithdraw: (409, "nothing_to_withdraw"),
    resolutions.BeingSettled: (409, "being_settled"),
    resolutions.AlreadyReleased: (409, "already_released"),
    resolutions.TooFewOutcomes: (409, "too_few_outcomes"),
    own_affairs.StakeInMarket: (403, "stake_in_market"),
    proposals.PersonNeeded: (403, "person_needed"),
    proposals.ProposalWaits: (409, "proposal_waits"),
    proposals.PreviewMoved: (409, "preview_moved"),
    proposals.ProposalNotFound: (404, "proposal_not_found"),
    proposals.ProposalDecided: (409, "proposal_decided"),
    proposals.ProposerCannotApprove: (403, "proposer_cannot_approve"),
    proposals.NotYourProposal: (403, "forbidden"),
    figures.UnknownFigure: (404, "unknown_figure"),
    figures.BadFigure: (400, "bad_figure"),
    undo.NotUndoable: (409, "not_undoable"),
    debt_decisions.RecoveryNotFound: (404, "recovery_not_found"),
    debt_decisions.NothingOwed: (409, "nothing_owed"),
    debt_decisions.DebtsMoved: (409, "debts_moved"),
    own_affairs.OwnDebt: (403, "own_debt"),
    locks.MarketNotOpen: (409, "market_not_open"),
    locks.OutcomeNotInMarket: (400, "unknown_outcome"),
    bets.InsufficientFunds: (409, "insufficient_funds"),
    bets.StakeTooSmall: (400, "stake_too_small"),
    bets.ClientRefReused: (409, "idempotency_key_reused"),
    actions.TransactionNotFound: (404, "transaction_not_found"),
    actions.PayoutNotRetryable: (409, "payout_not_retryable"),
    actions.PayoutStopped: (409, "payout_stopped"),
    actions.HeldByPerson: (409, "payout_held"),
    actions.NumberChanged: (409, "number_changed"),
    decisions.NotToBeDecided: (409, "not_to_be_decided"),
    decisions.DecisionNotOpen: (409, "decision_not_open"),
    decisions.SamePerson: (403, "proposer_cannot_confirm"),
    own_affairs.OwnPayout: (403, "own_payout"),
    issuing.NotSettled: (404, "not_settled"),
    issuing.NotIssuedYet: (409, "certificate_not_ready"),
    failures.BooksDisagree: (409, "books_disagree"),
    dispute_steps.DisputeNotFound: (404, "dispute_not_found"),
    dispute_steps.NotDisputable: (409, "not_disputable"),
    dispute_steps.WrongDisputeState: (409, "dispute_moved"),
    own_affairs.OwnDispute: (403, "own_dispute"),
    dispute_steps.NoSuchRemedy: (409, "no_such_remedy"),
    callbacks.UnknownAddress: (404, "not_found"),
    callbacks.UnknownReference: (404, "unknown_reference"),
    callbacks.TooManyBodies: (429, "too_many_callbacks"),
    strict_json.Unreadable: (400, "unreadable_body"),
    RequestDataTooBig: (400, "body_too_large"),
    # The database is restarting or full. A connection that was lost during a commit may have done its work.
    OperationalError: (503, "try_again"),
}
UNAVAILABLE = "The database is not available. Check later what was done before you send the request again."
NO_SUCH_ADDRESS = "There is nothing at this address."
# Codes of the refusals that Django REST framework itself raises, by HTTP status.
FRAMEWORK = {
    400: "invalid",
    401: "not_authenticated",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    406: "not_acceptable",
    415: "not_json",
    429: "too_many_requests",
}


def envelope(code: str, message: str, details: Any = None) -> dict[str, Any]:
    """Return the body of an error answer: a code for programs, a message for people, and details by field."""
    return {"code": code, "message": message, "details": details or {}}


def answer(error: Exception, context: dict[str, Any]) -> Response | None:
    """Return the answer to an error that a view raised, or None for a bug.

    Django answers a bug with 500 and logs it; the caller sees no traceback.
    """
    for kind in type(error).__mro__:
        if kind in REFUSALS:
            code_status, code = REFUSALS[kind]
            set_rollback()
            if code_status == 503:
                log.error("Database not available: %s", error)
                return Response(envelope(code, UNAVAILABLE), status=code_status)
            return Response(envelope(code, str(error), getattr(error, "details", None)), status=code_status)
    if isinstance(error, Http404):
        error = exceptions.NotFound()
    elif isinstance(error, PermissionDenied):
        error = exceptions.PermissionDenied()
    if not isinstance(error, exceptions.APIException):
        return None
    set_rollback()
    headers = {}
    if auth_header := getattr(error, "auth_header", None):
        headers["WWW-Authenticate"] = auth_header
    if isinstance(error, exceptions.ValidationError):
        details = error.detail if isinstance(error.detail, dict) else {"body": error.detail}
        return Response(envelope("invalid", _first(details), details), status=400)
    return Response(
        envelope(FRAMEWORK.get(error.status_code, "error"), str(error.detail)),
        status=error.status_code,
        headers=headers,
    )


def _first(details: dict[str, Any]) -> str:
    """Return the first field error as a sentence that names the field."""
    field, field_errors = next(iter(details.items()))
    if isinstance(field_errors, dict):
        return f"{field}: {_first(field_errors)}"
    return f"{field}: {field_errors[0] if isinstance(field_errors, list) and field_errors else field_errors}"


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Answer a path that matches no URL."""
    return JsonResponse(envelope("not_found", NO_SUCH_ADDRESS), status=404)


def bad_request(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Answer a request that Django refuses to read."""
    return JsonResponse(envelope("invalid", "The request is malformed. Nothing was done."), status=400)


def server_error(request: HttpRequest) -> JsonResponse:
    """Answer a request that failed because of a bug."""
    message = "An error on our side was logged. Check what was done before you send the request again."
    return JsonResponse(envelope("error", message), status=500)
