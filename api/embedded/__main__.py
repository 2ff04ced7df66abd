"""The commands `status`, `stop` and `erase`, and the keeper's own start.

Run by path: `python -P api/embedded stop`. The interpreter then knows no package, so this file loads its directory as
the package `kasoko_embedded`. Importing `api.embedded` would import `api`, which needs Celery and the settings.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGE_DIR = Path(__file__).resolve().parent
PACKAGE_NAME = "kasoko_embedded"
USAGE = "usage: python -P api/embedded status | stop | erase [checkout]"


def _load_package() -> None:
    """Import the package that this file belongs to, by its path."""
    # Python puts a directory that it runs at the front of sys.path, also with -P. Our files must not become top-level
    # modules.
    sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != PACKAGE_DIR]
    spec = importlib.util.spec_from_file_location(PACKAGE_NAME, PACKAGE_DIR / "__init__.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"{PACKAGE_DIR} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACKAGE_NAME] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    _load_package()
    commands = importlib.import_module(f"{PACKAGE_NAME}.commands")
    sys.exit(commands.main(sys.argv[1:], default_checkout=PACKAGE_DIR.parents[1], usage=USAGE))
