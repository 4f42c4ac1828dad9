"""The errors that scripts print as one line: a user's mistake, and a broken world."""


class UserError(ValueError):
    """Input that cannot be used: scripts print its message as one line and exit with status 2."""


class RunError(RuntimeError):
    """What ends a run that no setting is to blame for: a full disk, a lost host, a loss of NaN.

    Scripts print its message as one line and exit with status 1.
    """
