"""Mutants of one module: small changes of its code and of the SQL in its texts. Pure.

A mutant replaces one piece of source: a comparison, a condition, a constant, a call, or a word of SQL. Texts for
people, logging, imports and annotations are left alone, because no rule of money depends on them.
"""

import ast
import io
import random
import re
import tokenize
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

Span: TypeAlias = Callable[[ast.expr | ast.stmt | ast.keyword], tuple[int, int]]
# Start, end, replacement and words.
Change: TypeAlias = tuple[int, int, str, str]

_SQL = re.compile(r"\b(SELECT|UPDATE|INSERT INTO|DELETE FROM|WHERE|JOIN)\b")
# Each pattern of SQL with its replacement. Patterns are tried at every place of the text.
_SQL_CHANGES: tuple[tuple[str, str], ...] = (
    (r"<=", "<"),
    (r">=", ">"),
    (r"<>", "="),
    (r"(?<![<>=!:])<(?![=>])", "<="),
    (r"(?<![<>=!:-])>(?![=])", ">="),
    (r"(?<![<>=!:])=(?![=>])", "<>"),
    (r"\bIS NULL\b", "IS NOT NULL"),
    (r"\bIS NOT NULL\b", "IS NULL"),
    (r"\bNOT EXISTS\b", "EXISTS"),
    (r"(?<!NOT )\bEXISTS\b", "NOT EXISTS"),
    (r"\bAND\b", "OR"),
    (r"\bOR\b(?! REPLACE)", "AND"),
    (r"\bSKIP LOCKED\b", ""),
    (r"\bON CONFLICT[^\n\"]* DO NOTHING\b", ""),
    (r"\bgreatest\(", "least("),
    (r"\bleast\(", "greatest("),
    (r"\bsum\(", "max("),
    (r"\bmin\(", "max("),
    (r"\bmax\(", "min("),
    (r"(?<=\w) \+ (?=\w)", " - "),
    (r"(?<=\w) - (?=\w)", " + "),
    (r"\bDESC\b", "ASC"),
)
_COMPARISONS: dict[type[ast.cmpop], str] = {
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
    ast.In: "not in",
    ast.NotIn: "in",
}
_OPERATORS: dict[type[ast.operator], str] = {ast.Add: "-", ast.Sub: "+", ast.Mult: "+", ast.FloorDiv: "*", ast.Mod: "+"}
_FUNCTIONS = {"min": "max", "max": "min", "any": "all", "all": "any"}
_QUERIES = ("filter", "exclude", "update", "get", "Q", "aggregate", "annotate", "select_for_update")
_LOGGERS = ("log", "alarm", "logging", "say", "print")


@dataclass(frozen=True)
class Mutant:
    """One change of a source: the text from `start` to `end` (offsets) becomes `replacement`."""

    path: str
    line: int
    last_line: int
    start: int
    end: int
    before: str
    replacement: str
    words: str
    # The function or class around it, and its number among equal changes there.
    scope: str = ""
    number: int = 1

    @property
    def name(self) -> str:
        """A name that survives changes of other functions."""
        before, after = (" ".join(text.split())[:100] for text in (self.before, self.replacement))
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.path}: {self.scope or 'module'}: {self.words}: {before} → {after or 'nothing'}{again}"

    def applied(self, source: str) -> str:
        return source[: self.start] + self.replacement + source[self.end :]


def draw(path: str, source: str, *, count: int, seed: int) -> list[Mutant]:
    """Return at most `count` mutants of a source, drawn by `seed`. The same arguments give the same mutants."""
    mutants = all_of(path, source)
    return sorted(
        random.Random(f"{seed}:{path}").sample(mutants, min(count, len(mutants))),  # noqa: S311 - no secret
        key=lambda mutant: mutant.start,
    )


def all_of(path: str, source: str) -> list[Mutant]:
    """Return every mutant of a source. A file that is not Python is read as SQL."""
    if not path.endswith(".py"):
        return _numbered(_of_sql(path, source, 0, source))
    scopes = [
        (node.lineno, node.end_lineno or node.lineno, node.name)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
    ]
    return _numbered(
        replace(mutant, scope=".".join(name for first, last, name in scopes if first <= mutant.line <= last))
        for mutant in [*_of_code(path, source), *_of_texts(path, source)]
        if _compiles(mutant.applied(source))
    )


def _numbered(mutants: Iterable[Mutant]) -> list[Mutant]:
    seen: Counter[str] = Counter()
    numbered = []
    for mutant in mutants:
        seen[mutant.name] += 1
        numbered.append(replace(mutant, number=seen[mutant.name]))
    return numbered


def _compiles(source: str) -> bool:
    try:
        compile(source, "mutant", "exec")
    except (SyntaxError, ValueError):
        return False
    return True


# --- Python ----------------------------------------------------------------------------------------------------------


def _of_code(path: str, source: str) -> Iterator[Mutant]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = source.splitlines()

    def offset(line: int, column: int) -> int:
        # `ast` counts columns in bytes of UTF-8.
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    def span(node: ast.expr | ast.stmt | ast.keyword) -> tuple[int, int]:
        assert node.end_lineno is not None  # noqa: S101 - parsed from source
        assert node.end_col_offset is not None  # noqa: S101
        return offset(node.lineno, node.col_offset), offset(node.end_lineno, node.end_col_offset)

    tree = ast.parse(source)
    for node in _mutable(tree):
        for start, end, replacement, words in _changes(node, source, span):
            yield Mutant(
                path=path,
                line=node.lineno,
                last_line=node.end_lineno or node.lineno,
                start=start,
                end=end,
                before=source[start:end],
                replacement=replacement,
                words=words,
            )


def _mutable(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Yield the nodes that a mutant may change: no imports, annotations, decorators, docstrings or logging."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.Import | ast.ImportFrom | ast.arguments | ast.arg):
            continue
        if isinstance(child, ast.Expr) and (_is_text(child.value) or _logs(child.value)):
            continue
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield from _mutable(ast.Expr(child.value))
            continue
        if isinstance(tree, ast.FunctionDef | ast.ClassDef) and child not in tree.body:
            continue
        if isinstance(child, ast.expr | ast.stmt):
            yield child
        yield from _mutable(child)


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant | ast.JoinedStr) and not isinstance(getattr(node, "value", ""), int)


def _logs(node: ast.expr) -> bool:
    name = node.func if isinstance(node, ast.Call) else None
    while isinstance(name, ast.Attribute):
        name = name.value
    return isinstance(name, ast.Name) and name.id in _LOGGERS


def _changes(node: ast.expr | ast.stmt, source: str, span: Span) -> Iterator[Change]:
    """Yield the changes of one node."""
    start, end = span(node)
    if isinstance(node, ast.expr):
        yield from _changes_of_expression(node, source, span)
    elif isinstance(node, ast.If):
        yield *span(node.test), "True", "the condition is always true"
        yield *span(node.test), "False", "the condition is never true"
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield start, end, "pass", "the call is dropped"
    elif isinstance(node, ast.Return) and node.value is not None and not isinstance(node.value, ast.Constant):
        yield *span(node.value), "None", "None is returned"
    elif isinstance(node, ast.Raise):
        yield start, end, "pass", "the error is not raised"
    elif isinstance(node, ast.Continue | ast.Break):
        yield start, end, "pass", f"'{type(node).__name__.lower()}' is dropped"


def _changes_of_expression(node: ast.expr, source: str, span: Span) -> Iterator[Change]:
    start, end = span(node)
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = _COMPARISONS[type(node.ops[0])]
        yield span(node.left)[1], span(node.comparators[0])[0], f" {other} ", f"the comparison becomes {other!r}"
    elif isinstance(node, ast.BoolOp):
        yield from _changes_of_conditions(node, source, span)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield start, end, f"({source[slice(*span(node.operand))]})", "'not' is dropped"
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS and not _is_text(node.left):
        other = _OPERATORS[type(node.op)]
        yield span(node.left)[1], span(node.right)[0], f" {other} ", f"the operator becomes {other!r}"
    elif isinstance(node, ast.IfExp):
        yield *span(node.test), "True", "the condition is always true"
        yield *span(node.test), "False", "the condition is never true"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield start, end, str(not node.value), f"{not node.value} instead"
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield start, end, str(node.value + 1), f"{node.value + 1} instead"
    elif isinstance(node, ast.Call):
        yield from _changes_of_call(node, source, span)


def _changes_of_conditions(node: ast.BoolOp, source: str, span: Span) -> Iterator[Change]:
    word, other = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
    first, second = span(node.values[0])[1], span(node.values[1])[0]
    if len(node.values) == 2:
        yield first, second, re.sub(rf"\b{word}\b", other, source[first:second]), f"{other!r} instead of {word!r}"
    for number, value in enumerate(node.values):
        edges = (span(value)[0], second) if number == 0 else (span(node.values[number - 1])[1], span(value)[1])
        yield *edges, "", "one condition is dropped"


def _changes_of_call(node: ast.Call, source: str, span: Span) -> Iterator[Change]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in _FUNCTIONS:
        yield *span(node.func), _FUNCTIONS[name], f"{_FUNCTIONS[name]} instead"
    if name in ("filter", "exclude") and isinstance(node.func, ast.Attribute):
        other = "exclude" if name == "filter" else "filter"
        yield span(node.func.value)[1], span(node.func)[1], f".{other}", f"{other} instead of {name}"
    if name in _QUERIES:
        arguments: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
        for argument in arguments:
            first, last = span(argument)
            comma = re.match(r"\s*,\s*", source[last:])
            yield first, last + (comma.end() if comma else 0), "", "one argument of the query is dropped"


# --- SQL -------------------------------------------------------------------------------------------------------------


def _of_texts(path: str, source: str) -> Iterator[Mutant]:
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    texts = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in texts and _SQL.search(token.string) and not _is_docstring(token):
            first = starts[token.start[0] - 1] + token.start[1]
            last = starts[token.end[0] - 1] + token.end[1]
            yield from _of_sql(path, source[first:last], first, source)


def _is_docstring(token: tokenize.TokenInfo) -> bool:
    return token.line.lstrip().startswith('"""') and token.string.startswith('"""') and "%(" not in token.string


def _of_sql(path: str, text: str, first: int, source: str) -> Iterator[Mutant]:
    comments = [match.span() for match in re.finditer(r"--[^\n]*", text)]
    for pattern, replacement in _SQL_CHANGES:
        for match in re.finditer(pattern, text):
            if any(start <= match.start() < end for start, end in comments):
                continue
            start, end = first + match.start(), first + match.end()
            line = source.count("\n", 0, start) + 1
            context = " ".join(source[max(0, start - 40) : end + 40].split())
            yield Mutant(
                path, line, line, start, end, source[start:end], replacement,
                f"SQL {match.group()} becomes {replacement or 'nothing'!s} in … {context} …",
            )  # fmt: skip
