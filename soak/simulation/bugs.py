"""All planted bugs of the services, by name."""

from soak.simulation import evidence_bugs, outage_bugs, sending_bugs, staff_bugs
from soak.simulation.planting import Bug

BUGS: dict[str, Bug] = {**sending_bugs.BUGS, **evidence_bugs.BUGS, **staff_bugs.BUGS, **outage_bugs.BUGS}
