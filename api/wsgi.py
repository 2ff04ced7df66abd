"""WSGI entry point: `gunicorn api.wsgi`."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "api.settings")

application = get_wsgi_application()

from api import checks  # noqa: E402 - it reads the settings

checks.refuse_strong_role()
checks.log_warnings()
checks.refuse_unset_thresholds()
