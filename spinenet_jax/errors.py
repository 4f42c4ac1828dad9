"""The one exception a user's mistake raises: a single line that says what, where and what to do."""


class UserError(ValueError):
    """Input that cannot be used: scripts print its message as one line and exit with status 2."""
