"""The admin under our name. Read before any model is, so it names the site and imports nothing of it."""

from django.contrib.admin.apps import AdminConfig


class ConsoleConfig(AdminConfig):
    default_site = "api.console.Console"
