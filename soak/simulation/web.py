"""Web process of the simulated world: it stores the callbacks that come in."""

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
    """The addresses that M-Pesa, and a forger, POST to."""

    def post(self, url: str, body: bytes) -> None:
        """Receive a genuine message of M-Pesa; our list of M-Pesa's source addresses may be out of date."""
        self.receive(url, body, trusted=not self.strikes("foreign address"))

    def receive(self, url: str, body: bytes, *, trusted: bool) -> None:
        """Store a message that came to one of our addresses, and send a message to apply it.

        Raises: callbacks.UnknownAddress.
        """
        self.touched = True
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
        # Ids of callbacks only grow, so the one just stored is the last that waits; a repeated message stored none.
        if waiting := callbacks.to_apply(after=0, limit=200):
            self.send_message("apply", partial(self.apply, waiting[-1:]))
