"""The old name of the command `in_doubt`, kept for one version."""

from typing import Any

from payments.management.commands import in_doubt


class Command(in_doubt.Command):
    help = "Renamed to in_doubt. " + in_doubt.Command.help

    def handle(self, *args: Any, **options: Any) -> None:
        self.stderr.write("`limbo` was renamed. Use `python manage.py in_doubt` from now on.")
        super().handle(*args, **options)
