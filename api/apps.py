"""App configurations: the edges, Django's admin with our site, and the console.

Django reads this module before any model, so this module imports nothing from the project.
"""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class AdminSiteConfig(AdminConfig):
    """Django's admin with the console as its site."""

    default_site = "api.console.site.Console"


class ApiConfig(AppConfig):
    """The edges. It has commands, but no models."""

    name = "api"


class ConsoleConfig(AppConfig):
    """The console. It has templates, template tags and static files, but no models."""

    name = "api.console"
    label = "console"

    def ready(self) -> None:
        """Register the checks of `api`."""
        from api import checks  # noqa: F401 - importing it earlier would read the settings too early
