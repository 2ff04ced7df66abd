"""A PostgreSQL and a Valkey that belong to this checkout, for machines without servers.

A process that needs a server calls `ensure` and holds a lease: a shared file lock that ends with the process. A
detached keeper process runs both servers while anyone holds the lease. It stops them a few seconds after the last
holder is gone. Passwords, logs and data are under `.kasoko/`.

PostgreSQL refuses to run as root. Root's servers run as the user `kasoko-pg` if it exists, otherwise as `nobody`. If
that user cannot enter the checkout (in /root, for example), the data are in /var/lib/kasoko. The programs come from
wheels (requirements-embedded.txt) or from the system.

The package uses the standard library only, and relative imports only. The settings import it as `api.embedded`. The
Makefile and the keeper run it by path, `python -P api/embedded status | stop | erase`, without importing `api`.

Not for production: production sets DATABASE_URL and CELERY_BROKER_URL.
"""

from .control import describe, erase, stop
from .lease import ensure, leave
from .state import EmbeddedServerError, Profile, state_dir
from .valkey import REDIS_DATABASES

__all__ = [
    "REDIS_DATABASES",
    "EmbeddedServerError",
    "Profile",
    "describe",
    "ensure",
    "erase",
    "leave",
    "state_dir",
    "stop",
]
