"""Edges of the project, and the parts that put it together. Django loads the Celery application with it."""

from api.celery import app as celery_app

__all__ = ("celery_app",)
