"""Calls for members: login, logout, change of the PIN, own account, notices."""

from knox.views import LogoutView
from rest_framework import status
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from api.rest.fields import Body, StrictText, actor, caller, checked
from payments import wiring
from users import auth, notifications
from users.backends import login_rules
from users.source_address import source_address

PAGE = 100
DEVICE_HEADER = "X-Device"


class LoginBody(Body):
    """Body of a login."""

    phone_number = StrictText(max_length=20)
    pin = StrictText(max_length=128, trim_whitespace=False)
    code = StrictText(max_length=30, required=False, allow_blank=True, default="")


class Login(APIView):
    """`POST /api/users/login/` {phone_number, pin[, code]} → {token, expires_at}. Staff send the code of their app.

    The answer's header X-Device has a token. A device that sends it with its next login is known, so wrong PINs of
    untrusted callers do not lock it out.
    """

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def post(self, request: Request) -> Response:
        credentials = auth.Credentials(
            **checked(LoginBody(data=request.data)),
            source=source_address(request) or "unknown",
            device=request.headers.get(DEVICE_HEADER, ""),
        )
        return _login_answer(auth.log_in(credentials=credentials, rules=login_rules(), at=wiring.now()))


def _login_answer(login: auth.Login) -> Response:
    body = {"token": login.token, "expires_at": login.expires_at}
    return Response(body, headers={DEVICE_HEADER: login.device})


class Logout(LogoutView):
    """`POST /api/users/logout/`: delete the token of this request."""

    def get_post_response(self, request: Request) -> Response:
        return Response(None, status=status.HTTP_204_NO_CONTENT)


class LogoutEverywhere(APIView):
    """`POST /api/users/logout-everywhere/`: end all sessions, tokens and known devices of the caller."""

    def post(self, request: Request) -> Response:
        auth.end_sessions(user=caller(request), source=actor(request).source, at=wiring.now())
        return Response(None, status=status.HTTP_204_NO_CONTENT)


class PinBody(Body):
    """Body of a change of the PIN."""

    pin = StrictText(max_length=128, trim_whitespace=False)
    new_pin = StrictText(max_length=128, trim_whitespace=False)


class Pin(APIView):
    """`POST /api/users/me/pin/` {pin, new_pin} → {token, expires_at}. All earlier tokens and sessions end."""

    def post(self, request: Request) -> Response:
        entered = auth.change_pin(
            **checked(PinBody(data=request.data)),
            user=caller(request),
            rules=login_rules(),
            source=actor(request).source,
            at=wiring.now(),
        )
        return _login_answer(auth.token_for(entered, rules=login_rules(), at=wiring.now()))


class Me(APIView):
    """`GET /api/users/me/`: the caller's name, number and wallet balance."""

    def get(self, request: Request) -> Response:
        user = caller(request)
        return Response(
            {
                "id": user.public_id,
                "phone_number": user.phone_number,
                "full_name": user.full_name,
                "balance": str(user.balance),
                "is_staff": user.is_staff,
            }
        )


class Notices(APIView):
    """`GET /api/users/me/notices/`: the caller's newest notices."""

    def get(self, request: Request) -> Response:
        notices = notifications.notices(caller(request).pk)[:PAGE]
        return Response(
            {
                "notices": [
                    {
                        "id": notice.pk,
                        "kind": notice.kind,
                        "subject": notice.subject,
                        "text": notice.text,
                        "created_at": notice.created_at,
                        "sent_at": notice.sent_at,
                    }
                    for notice in notices
                ]
            }
        )
