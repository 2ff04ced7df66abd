"""Loader of `.sql` files: statements, their comments, and errors."""

from pathlib import Path

import pytest

from payments import named_sql

FILE = """-- A preface that belongs to no statement.

-- name: first
-- Its title
-- Its description
SELECT 1; -- name: in_line is no heading


-- name: second
SELECT '-- name: text',
    2;
"""


def test_statements_are_read_in_order_with_their_comments(tmp_path: Path) -> None:
    path = tmp_path / "two.sql"
    path.write_text(FILE, encoding="utf-8")
    assert list(named_sql.read(path).values()) == [
        named_sql.Statement("first", ("Its title", "Its description"), "SELECT 1; -- name: in_line is no heading"),
        named_sql.Statement("second", (), "SELECT '-- name: text',\n    2"),
    ]


def test_file_beside_a_module_is_found(tmp_path: Path) -> None:
    (tmp_path / "sums.sql").write_text("-- name: one\nSELECT 1;\n", encoding="utf-8")
    assert named_sql.beside(str(tmp_path / "sums.py")) == {"one": "SELECT 1"}


def test_repeated_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.sql"
    path.write_text("-- name: one\nSELECT 1;\n-- name: one\nSELECT 2;\n", encoding="utf-8")
    with pytest.raises(ValueError, match="two statements named one"):
        named_sql.read(path)
