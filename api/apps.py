"""The apps of api: Django's admin under our name, and the console, whose templates and static files it has.

Read before any model is, so this module imports nothing of the project.
"""

from django.apps import AppConfig
from django.contrib.admin.apps import AdminConfig


class AdminSiteConfig(AdminConfig):
    default_site = "api.console.site.Console"


class ConsoleConfig(AppConfig):
    name = "api.console"
    label = "console"
