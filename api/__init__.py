"""Outer layer of the project: settings, REST, console, demo. Importing it loads the Celery application."""

from api.celery import app as celery_app

__all__ = ("celery_app",)
