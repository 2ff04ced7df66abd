"""Production does not start while an act has no threshold for a second person."""

from io import StringIO
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command

from api import checks
from users import figure_changes

pytestmark = pytest.mark.django_db(transaction=True)


def test_production_starts_only_with_every_threshold(settings: Any) -> None:
    settings.PRODUCTION = True
    *others, last = figure_changes.with_threshold()
    with pytest.raises(ImproperlyConfigured, match=last):
        checks.refuse_unset_thresholds()
    for act_name in others:
        call_command("threshold", act_name, "never", stdout=StringIO())
    with pytest.raises(ImproperlyConfigured, match=f"No threshold is set for {last}\\. Set each one"):
        checks.refuse_unset_thresholds()
    call_command("threshold", last, "100000", stdout=StringIO())
    checks.refuse_unset_thresholds()


def test_development_starts_without_thresholds(settings: Any) -> None:
    settings.PRODUCTION = False
    checks.refuse_unset_thresholds()
