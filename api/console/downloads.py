"""Downloads of tables as CSV, streamed row by row."""

import csv
from collections.abc import Iterable, Iterator
from typing import Any

from django.http import StreamingHttpResponse
from django.utils import timezone

from payments import wiring


class _Line:
    """A file-like object that returns each line instead of storing it. So csv.writer can stream its lines."""

    def write(self, line: str) -> str:
        return line


def csv_file(name: str, header: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> StreamingHttpResponse:
    """Return a CSV file. Its name begins with the present time in Nairobi."""
    writer = csv.writer(_Line())

    def lines() -> Iterator[str]:
        yield writer.writerow(header)
        for row in rows:
            yield writer.writerow([plain(cell) for cell in row])

    stamp = timezone.localtime(wiring.now()).strftime("%Y%m%d-%H%M")
    headers = {"Content-Disposition": f'attachment; filename="{stamp}-{name}"'}
    return StreamingHttpResponse(lines(), content_type="text/csv; charset=utf-8", headers=headers)


def plain(cell: Any) -> Any:
    """Put an apostrophe before text that a spreadsheet would run as a formula. Do not change numbers."""
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ("=", "+", "-", "@", "\t", "\r") else cell
