"""All planted bugs of the services, by name."""

from soak.simulation import evidence_bugs, sending_bugs
from soak.simulation.planting import Bug

BUGS: dict[str, Bug] = {**sending_bugs.BUGS, **evidence_bugs.BUGS}
