"""`deepfailguard keys`, `sign` and `verify`: who made a guard, and is it still what was made?"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deepfailguard.errors import DeepfailguardError
from deepfailguard.guard.manifest import make_keys, sign_guard, verify_guard

__all__ = ["add_signing"]

_DONE, _REFUSED = 0, 1


def add_signing(commands: Any) -> None:
    """Add the three commands to a parser; each sets `run`, a function from the parsed arguments to an exit status.

    Args:
        commands: what `argparse.ArgumentParser.add_subparsers` returned.
    """
    keys = commands.add_parser("keys", help="make a pair of keys to sign guards with")
    keys.add_argument("--private", type=Path, required=True, help="file to write: keep it secret, it signs")
    keys.add_argument("--public", type=Path, required=True, help="file to write: give it to all who load your guards")
    keys.set_defaults(run=_told(_keys))
    sign = commands.add_parser("sign", help="sign a saved guard")
    sign.add_argument("guard", type=Path, metavar="GUARD_DIR", help="its folder")
    sign.add_argument("--key", type=Path, required=True, help="your private key")
    sign.set_defaults(run=_told(_sign))
    verify = commands.add_parser("verify", help="compare a saved guard's files with its manifest")
    verify.add_argument("guard", type=Path, metavar="GUARD_DIR", help="its folder")
    verify.add_argument("--public-key", type=Path, help="key of who must have signed it; nobody need have otherwise")
    verify.set_defaults(run=_told(_verify))


def _told(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """The same command, but that it tells errors in a line."""

    def telling(arguments: argparse.Namespace) -> int:
        try:
            return run(arguments)
        except (DeepfailguardError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return _REFUSED

    return telling


def _keys(arguments: argparse.Namespace) -> int:
    make_keys(arguments.private, arguments.public)
    print(f"{arguments.private} signs guards: keep it secret\n{arguments.public} verifies them: give it away")
    return _DONE


def _sign(arguments: argparse.Namespace) -> int:
    sign_guard(arguments.guard, arguments.key)
    print(f"signed {arguments.guard}")
    return _DONE


def _verify(arguments: argparse.Namespace) -> int:
    files = verify_guard(arguments.guard, arguments.public_key)
    if not files:
        print(f"error: {arguments.guard} has no manifest to compare it with; load and save the guard", file=sys.stderr)
        return _REFUSED
    who = "and its signature is not looked at: give --public-key for that"
    if arguments.public_key is not None:
        who = f"and signed by the key {arguments.public_key}"
    print(f"{arguments.guard} is whole ({len(files)} files) {who}")
    return _DONE
