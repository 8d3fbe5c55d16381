"""The one exception for what a user can mend."""


class HopInterpError(Exception):
    """Something the user gave cannot work; the message says what was given and what was wanted, in one line.

    The command prints that line and exits with status 2. Any other exception is a bug and keeps its traceback.
    """
