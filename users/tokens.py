"""Bearer tokens of staff: the last code that each token has shown.

A login with a code proves the token. Later a money act needs a proof of the last `STEP_UP_MINUTES`; a caller renews it
by a new code.
"""

from datetime import datetime, timedelta

from knox.models import AuthToken

from users import audit, second_factor
from users.models import CustomUser, TokenProof
from users.refusal import Refusal


class FreshCodeRequired(Refusal):
    """The act needs a recent code of the authenticator app, and the request has none."""


def remember(token: AuthToken, *, at: datetime) -> None:
    """Note that the token's owner has shown a valid code at this time."""
    TokenProof.objects.update_or_create(token=token, defaults={"at": at})


def prove(token: AuthToken, *, code: str, fresh: timedelta, by: audit.Actor, at: datetime) -> None:
    """Accept a request if its token has shown a code at most `fresh` ago, or if it brings a valid `code` now.

    Locks: as second_factor.check.
    Raises: FreshCodeRequired without a code; second_factor.WrongCode.
    """
    user: CustomUser = token.user
    if code:
        second_factor.check(user=user, code=code, by=by, at=at)
        remember(token, at=at)
        return
    proof = TokenProof.objects.filter(token=token).first()
    if proof is None or not timedelta(0) <= at - proof.at <= fresh:
        raise FreshCodeRequired(
            "This call needs a current code of your authenticator app in the header X-Authenticator-Code. Nothing was"
            " done. If you have no app yet, log in to the console and set one up."
        )
