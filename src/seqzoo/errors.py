"""The one exception for a request that cannot be met."""


class UserError(Exception):
    """A request was wrong: the message is one line saying what was given, what is allowed, what to
    change.

    The command line prints it without a traceback and exits with status 2.
    """
