"""Paths through a table of transitions."""

from collections.abc import Mapping


def paths_from(transitions: Mapping[str, set[str]], first: str) -> dict[str, list[str]]:
    """Return the shortest path of legal transitions from the first state to each state that can be reached."""
    paths: dict[str, list[str]] = {first: []}
    reached = [first]
    for state in reached:
        for following in sorted(transitions[state] - set(paths)):
            paths[following] = [*paths[state], following]
            reached.append(following)
    return paths
