"""Errors for users: one line without traceback, which the command line and the endpoint print unchanged."""


class SetRecError(ValueError):
    """Base class of all errors caused by invalid input."""


class DataError(SetRecError):
    """Input data that cannot be used. The message names the file, row and column if known."""

    def __init__(self, reason: str, *, file: object = None, row: int | None = None, column: str | None = None) -> None:
        place = [str(file)] if file is not None else []
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column '{column}'")
        super().__init__(f"{', '.join(place)}: {reason}" if place else reason)


class UnknownItemError(SetRecError):
    """An item id that is not in the catalogue."""


class UnknownUserError(SetRecError):
    """A user id that is not in the histories."""


class UnknownNodeError(SetRecError):
    """A node id that is not in the graph."""


class BundleError(SetRecError):
    """A bundle that is damaged, incomplete or of a newer format."""


class ConfigError(SetRecError):
    """A configuration that cannot be used."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type without one."""
    return (str(error).splitlines() or [type(error).__name__])[0]
