"""The base class of the domain's refusals."""


class Refusal(Exception):
    """A rule refuses the act. Nothing was done, and no money moved.

    Subclasses stand beside the functions that raise them and are named for the fact. Their message is for people.
    """
