"""Web process of the simulated world, which stores callbacks."""

from functools import partial

from payments.models import Callback
from payments.payouts.evidence import callbacks
from soak.simulation.workers import Workers

KINDS = {
    "b2c-callback": Callback.Kind.RESULT,
    "b2c-timeout": Callback.Kind.TIMEOUT,
    "status-result": Callback.Kind.STATUS,
}


class Web(Workers):
    """The callback addresses, to which M-Pesa and the forger POST."""

    def post(self, url: str, body: bytes) -> bool:
        """Receive a genuine message of M-Pesa. Returns True if we believe that it is M-Pesa's.

        Our list of M-Pesa's source addresses may be out of date, so the message may be untrusted.
        """
        trusted = not self.strikes("foreign address")
        self.receive(url, body, trusted=trusted)
        return trusted or not self.policy.production

    def receive(self, url: str, body: bytes, *, trusted: bool) -> None:
        """Store a message that came to one of our addresses, and start a task that applies it.

        Raises: callbacks.UnknownAddress.
        """
        self.state_changed = True
        kind, token = url.rstrip("/").split("/")[-2:]
        with self.dying_perhaps():
            callbacks.store(
                kind=KINDS[kind],
                token=token,
                body=body,
                source_ip="196.201.214.200",
                trusted=trusted,
                at=self.now,
                addresses=self.addresses,
            )
        # A new callback has the highest id, so it is last in the list. A repeated message is not stored, and a callback
        # without an attempt is not in the list. In both cases the last one is an older callback, and applying an older
        # callback is harmless.
        if waiting := callbacks.to_apply(after=0, limit=200):
            self.send_message("apply", partial(self.apply, waiting[-1:]))
