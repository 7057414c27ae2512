"""The one exception for what a user can put right."""


class InputError(ValueError):
    """Say in one line which value was wrong, what was expected and what to do.

    The command line prints the message and leaves with exit code 2; in Python it is a `ValueError`.
    """
