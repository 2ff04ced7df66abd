"""Schedule of faults, which chooses the faults of each request."""

import threading
from collections.abc import Iterable

from payments.mpesa.simulator import draws, faults


class Schedule:
    """Faults chosen by phone number, and random faults. With the same seed, the same id gets the same random faults.

    `rate` is divided evenly among `names`, and each random fault is drawn independently. A small `rate` is therefore
    about the share of payments with a random fault.
    """

    def __init__(
        self,
        *,
        seed: int = 0,
        rate: float = 0.0,
        names: tuple[str, ...] = (),
        phones: Iterable[tuple[str, str]] = (),
    ) -> None:
        self.seed = seed
        self._lock = threading.Lock()
        self._rate, self._names = 0.0, names
        self._phones: dict[str, list[faults.Spec]] = {}
        self._uses: dict[tuple[str, str], int] = {}
        self.set_rate(rate, names)
        for phone, text in phones:
            self.add(phone, text)

    def set_rate(self, rate: float, names: tuple[str, ...]) -> None:
        """Change the random faults from now on. Raises: ValueError if a fault would get a chance above 1."""
        if not 0 <= rate <= max(1, len(names)):
            raise ValueError(f"a fault rate must lie between 0 and the number of faults, not {rate}")
        with self._lock:
            self._rate, self._names = rate, names

    def add(self, phone: str, text: str) -> None:
        """Add a fault for this phone. Its count of uses starts again at 0. Raises: ValueError."""
        faults.parse_phone(f"{phone}={text}")
        with self._lock:
            others = [spec for spec in self._phones.get(phone, []) if spec.text != text]
            self._phones[phone] = [*others, faults.parse(text)]
            self._uses.pop((phone, text), None)

    def clear(self, phone: str) -> None:
        """Remove the faults of this phone. Random faults continue."""
        with self._lock:
            self._phones.pop(phone, None)

    def count_uses(self, phone: str, texts: Iterable[str]) -> None:
        """Count the uses of specifications by an earlier process with the same book."""
        with self._lock:
            for text in texts:
                self._uses[phone, text] = self._uses.get((phone, text), 0) + 1

    def active_faults(self, stage: faults.Stage, *, key: str, phone: str, earlier: int) -> faults.ActiveFaults:
        """Return the faults of a request with the id `key`. `earlier` requests of this kind had the same id."""
        with self._lock:
            rate, names = self._rate, self._names
            specs = []
            for spec in self._phones.get(phone, ()):
                if stage in spec.fault.stages and self._fits(spec, stage) and self._has_uses_left(phone, spec):
                    specs.append(spec)
                    if spec.count is not None:
                        self._uses[phone, spec.text] = self._uses.get((phone, spec.text), 0) + 1
        used = tuple(spec.text for spec in specs if spec.count is not None)
        if rate and stage != "deposit":
            for name in names:
                fault = faults.FAULTS[name]
                may_apply = stage in fault.stages and (fault.first is None or earlier < fault.first)
                if may_apply and draws.fraction(self.seed, key, name) < rate / len(names):
                    specs.append(faults.parse(name))
        if not specs:
            return faults.NO_FAULTS
        variants = {spec.fault.name: self._chosen_options(spec, key) for spec in reversed(specs)}
        seconds = {spec.fault.name: spec.seconds for spec in reversed(specs) if spec.seconds is not None}
        return faults.ActiveFaults(variants, seconds, used)

    def _has_uses_left(self, phone: str, spec: faults.Spec) -> bool:
        return spec.count is None or self._uses.get((phone, spec.text), 0) < spec.count

    @staticmethod
    def _fits(spec: faults.Spec, stage: faults.Stage) -> bool:
        # M-Pesa Express and B2C payments have different failure codes.
        codes = faults.PAYMENT_FAILURES if stage == "payment" else faults.DEPOSIT_FAILURES
        return spec.fault.name != "fail" or not spec.options or spec.options[0] in codes

    def _chosen_options(self, spec: faults.Spec, key: str) -> tuple[str, ...]:
        fault = spec.fault
        groups = (faults.RANDOM_FAILURES,) if fault.name == "fail" and not spec.options else fault.choices
        return tuple(
            next((option for option in spec.options if option in group), None)
            or draws.pick(
                tuple(option for option in group if option not in fault.named_only), self.seed, key, fault.name, number
            )
            for number, group in enumerate(groups)
        )
