"""What stops a start."""


class StartError(Exception):
    """The service cannot be started or has ended by itself; the message is the line the user reads."""
