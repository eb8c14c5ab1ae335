"""One check for all settings that count something."""

from deepfailguard.errors import ConfigurationError

__all__ = ["check_count"]


def check_count(name: str, value: object, least: int) -> None:
    """Refuse a setting that is no whole number or too small.

    Args:
        name: of the setting, for the message.
        value: what was given.
        least: the smallest that can work.

    Raises:
        ConfigurationError: it is something else; a number in quotes and 2.0 are too.

    Example:
        >>> check_count("launcher.workers", 2, least=1)
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigurationError(f"{name} must be a whole number of at least {least}, got {value!r}")
