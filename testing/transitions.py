"""Ways through a table of transitions."""

from collections.abc import Mapping


def ways(transitions: Mapping[str, set[str]], first: str) -> dict[str, list[str]]:
    """For each state that can be reached, the shortest series of legal moves from the first one."""
    found: dict[str, list[str]] = {first: []}
    reached = [first]
    for state in reached:
        for following in sorted(transitions[state] - set(found)):
            found[following] = [*found[state], following]
            reached.append(following)
    return found
