"""Base class of all refusals by the domain's rules."""


class Refusal(Exception):
    """A rule refuses the request. Nothing was done, and no money moved.

    Each subclass stands beside the function that raises it, and its name states the fact. Its message is for people.
    """
