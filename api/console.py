"""The operator's console: Django's admin under our name, behind the members' own login by phone and PIN."""

from django.contrib.admin import AdminSite
from django.contrib.admin.apps import AdminConfig


class ConsoleConfig(AdminConfig):
    default_site = "api.console.Console"


class Console(AdminSite):
    site_header = site_title = "KASOKO"
    index_title = "Console"
    enable_nav_sidebar = True
