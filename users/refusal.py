"""Base class of all refusals by the domain's rules."""


class Refusal(Exception):
    """A rule refuses the request. Nothing was done, and no money moved.

    Each subclass is defined beside the function that raises it. Its name states the reason, and its message is for
    people.
    """
