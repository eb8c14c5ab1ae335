"""The manifest of a guard's folder: every file's hash, and a signature over them all."""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from deepfailguard.errors import ConfigurationError, CorruptFileError, SignatureError
from deepfailguard.guard.folders import CARD_FILE, MANIFEST_FILE, SIGNATURE_FILE, check_guard
from deepfailguard.store import atomic_path, load_json, save_json

if TYPE_CHECKING:  # an extra
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = ["make_keys", "sign_guard", "verify_guard", "write_manifest"]

_REMEDY: Final = "copy the guard again from where it is whole, or save it again"
_ENTRY: Final = ("sha256", "bytes")
_PRIVATE, _PUBLIC = 0o600, 0o644

logger = logging.getLogger(__name__)


def write_manifest(folder: Path, files: Sequence[str]) -> None:
    """Write the manifest of files, given by their paths below the folder."""
    content = {Path(name).as_posix(): _entry(folder / name) for name in files}
    save_json(folder / MANIFEST_FILE, {"files": content})


def verify_guard(folder: Path, public_key: Path | None = None) -> tuple[str, ...]:
    """Compare every file of a guard with its manifest, before anything else reads them.

    A manifest alone tells damage; only its signature tells that nobody exchanged the guard, manifest and all. Whoever
    can write to the folder while it is loaded can deceive both.

    Args:
        folder: of the guard.
        public_key: PEM file of an Ed25519 key; the signature is not looked at if None.

    Returns:
        the files' paths below the folder. Empty if there is no manifest, which is logged: the guard was saved by a
        release that wrote none.

    Raises:
        FileNotFoundError: the folder holds no guard.
        CorruptFileError: a file is lost, was changed or truncated, or does not belong to the guard.
        SignatureError: there is no manifest, or it is not signed with the private key to this public one.
        ConfigurationError: there is no such key, or the library for keys is not installed.
    """
    check_guard(folder)
    path, signature = folder / MANIFEST_FILE, folder / SIGNATURE_FILE
    if public_key is not None:
        _check_signature(path, signature, public_key)
    if not path.is_file() and not signature.is_file():
        logger.warning(
            "%s has no %s: the guard was saved by an older release, or somebody removed it; load and save the guard",
            folder,
            MANIFEST_FILE,
        )
        return ()
    files = _listed(path)
    for name, entry in files.items():
        _check_file(folder / name, entry)
    _check_nothing_else(folder, files)
    return tuple(files)


def sign_guard(folder: Path, private_key: Path) -> None:
    """Sign a guard's manifest, once all files are those of the manifest; an older signature is replaced.

    The signature is the 64 bytes of Ed25519 over the bytes of the manifest, as other tools write and check it.

    Args:
        folder: of the guard.
        private_key: PEM file of an Ed25519 key that is not encrypted.

    Raises:
        FileNotFoundError: the folder holds no guard.
        CorruptFileError: a file is not that of the manifest.
        ConfigurationError: there is no manifest or no such key, or the library for keys is not installed.
    """
    key = _private_key(private_key)
    if not verify_guard(folder):
        raise ConfigurationError(f"{folder} has no {MANIFEST_FILE} to sign; load and save the guard first")
    with atomic_path(folder / SIGNATURE_FILE) as temporary:
        temporary.write_bytes(key.sign((folder / MANIFEST_FILE).read_bytes()))


def make_keys(private: Path, public: Path) -> None:
    """Make a pair of Ed25519 keys as PEM files; only the owner may read the private one, which is not encrypted.

    Raises:
        ConfigurationError: one of the files exists, which is never overwritten, or the library for keys is not
            installed.
    """
    ed25519, form = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    secret = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    told = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    _write_new(private, secret, _PRIVATE)
    try:
        _write_new(public, told, _PUBLIC)
    except BaseException:
        private.unlink()  # half a pair is of no use
        raise


def _write_new(path: Path, content: bytes, mode: int) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} exists, and keys are never overwritten; give another path") from error
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no folder {path.parent}; make it, or give another path") from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
    except OSError:
        path.unlink()  # half a key would be in the way of a whole one
        raise


def _entry(path: Path) -> dict[str, Any]:
    """What the manifest says of a file."""
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


def _listed(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a manifest, by path."""
    if not path.is_file():
        raise CorruptFileError(f"the guard has lost a part: no file {path}; {_REMEDY}")
    try:
        files = {str(name): {key: entry[key] for key in _ENTRY} for name, entry in load_json(path)["files"].items()}
    except (CorruptFileError, KeyError, TypeError, AttributeError) as error:
        raise CorruptFileError(f"{path} was damaged: {error}; {_REMEDY}") from error
    for name in files:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise CorruptFileError(f"{path} names {name!r}, which is not in the guard's folder; {_REMEDY}")
    return files


def _check_file(path: Path, expected: dict[str, Any]) -> None:
    if not path.is_file():
        raise CorruptFileError(f"the guard has lost a part: no file {path}; {_REMEDY}")
    found = _entry(path)
    if found["bytes"] != expected["bytes"]:
        raise CorruptFileError(
            f"{path} was changed since the guard was saved: it has {found['bytes']} bytes, not {expected['bytes']}; "
            f"{_REMEDY}"
        )
    if found != expected:
        raise CorruptFileError(f"{path} was changed since the guard was saved: its hash differs; {_REMEDY}")


def _check_nothing_else(folder: Path, files: Collection[str]) -> None:
    """Refuse what a guard is made of, or looks like it, without being in the manifest."""
    for path in (folder / CARD_FILE, *sorted(folder.rglob("*.safetensors"))):
        below = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in below.parts)  # what a killed save left
        if not hidden and below.as_posix() not in files:
            raise CorruptFileError(
                f"{path} does not belong to the guard: its {MANIFEST_FILE} does not name it; remove it, or {_REMEDY}"
            )


def _check_signature(manifest: Path, signature: Path, public_key: Path) -> None:
    key = _public_key(public_key)
    for path in (manifest, signature):
        if not path.is_file():
            raise SignatureError(
                f"the guard is not signed: no file {path}; sign it where it was made (deepfailguard sign), or load it "
                "without a public key if you trust the folder"
            )
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature.read_bytes(), manifest.read_bytes())
    except InvalidSignature as error:
        raise SignatureError(
            f"{signature} is no signature of {manifest} by the key {public_key}: the guard was changed since it was "
            "signed, or somebody else signed it; ask who made it for the guard or for the key"
        ) from error


def _library() -> tuple[Any, Any]:
    """The modules for Ed25519 and for reading and writing keys."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise ConfigurationError(
            "keys and signatures need the library cryptography; pip install deepfailguard[serve]"
        ) from error
    return ed25519, serialization


def _private_key(path: Path) -> "Ed25519PrivateKey":
    ed25519, form = _library()
    found = _read(path, lambda pem: form.load_pem_private_key(pem, password=None))
    key: Ed25519PrivateKey = _of_kind(found, ed25519.Ed25519PrivateKey, path)
    return key


def _public_key(path: Path) -> "Ed25519PublicKey":
    ed25519, form = _library()
    found = _read(path, form.load_pem_public_key)
    key: Ed25519PublicKey = _of_kind(found, ed25519.Ed25519PublicKey, path)
    return key


def _read(path: Path, parse: Callable[[bytes], Any]) -> Any:
    """The key in a file; None if there is another thing in it."""
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the key {path}: {error.strerror}; deepfailguard keys makes one"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm):  # no PEM, another kind of key, or an encrypted one
        return None


def _of_kind(key: Any, kind: Any, path: Path) -> Any:
    if not isinstance(key, kind):
        raise ConfigurationError(
            f"expected a PEM file of an unencrypted {kind.__name__} in {path}; deepfailguard keys makes one"
        )
    return key
