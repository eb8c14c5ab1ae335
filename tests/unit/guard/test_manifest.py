"""Every file of a saved guard is known by its hash, and the hashes may be signed."""

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from deepfailguard.errors import ConfigurationError, CorruptFileError, SignatureError
from deepfailguard.guard.guarded import GuardedPredictor
from deepfailguard.guard.manifest import make_keys, sign_guard, verify_guard, write_manifest
from deepfailguard.predictor.soft_vote import SoftVotePredictor
from deepfailguard.store import load_json, save_json
from tests.examples import bars, template_model

FILES = {
    "calibration.safetensors",
    "canary.safetensors",
    "guard.json",
    "predictor.safetensors",
    "versions/0-ann.safetensors",
    "versions/1-bob.safetensors",
}


def _fitted(seed: int = 0) -> GuardedPredictor:
    models = {"ann": template_model(seed, 0.5), "bob": template_model(seed + 1, 0.5)}
    return GuardedPredictor.fit(models, bars(120, seed=3), predictor=SoftVotePredictor())


def _load(folder: Path, public_key: Path | None = None) -> GuardedPredictor:
    return GuardedPredictor.load(folder, [template_model(5), template_model(6)], public_key=public_key)


@pytest.fixture(scope="module")
def fitted() -> GuardedPredictor:
    return _fitted()


@pytest.fixture
def folder(fitted: GuardedPredictor, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "guard")
    return tmp_path / "guard"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    make_keys(tmp_path / "private.pem", tmp_path / "public.pem")
    return tmp_path / "private.pem", tmp_path / "public.pem"


def test_every_file_is_in_the_manifest(folder: Path) -> None:
    assert set(verify_guard(folder)) == FILES
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == FILES | {"manifest.json"}
    assert _load(folder).saved.card.names == ("ann", "bob")


@pytest.mark.parametrize("name", sorted(FILES - {"guard.json"}))
def test_a_lost_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CorruptFileError, match=rf"lost a part: no file .*{name}; copy the guard again"):
        _load(folder)


@pytest.mark.parametrize("name", sorted(FILES | {"manifest.json"}))
def test_a_flipped_bit_a_truncated_and_an_emptied_file_are_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    damages: list[Callable[[], bytes]] = [
        *(lambda at=at: whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, len(whole) // 2, -2)),  # type: ignore[misc]
        lambda: whole[: len(whole) // 2],
        lambda: b"",
        lambda: whole + b"\0",
    ]
    for damage in damages:
        (folder / name).write_bytes(damage())
        with pytest.raises(CorruptFileError, match=rf"{name} was (changed|damaged).*save it again"):
            _load(folder)
    (folder / name).write_bytes(whole)
    _load(folder)


def test_nothing_is_parsed_before_it_is_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def parsing(path: Path) -> None:
        raise AssertionError(f"parsed {path}")

    for module in ("saved", "folders", "loading"):
        for reader in ("load_json", "load_tensors"):
            monkeypatch.setattr(f"deepfailguard.guard.{module}.{reader}", parsing, raising=False)
    with (folder / "versions" / "1-bob.safetensors").open("ab") as file:  # the last that is verified
        file.write(b"more")
    with pytest.raises(CorruptFileError, match="1-bob"):
        _load(folder)


@pytest.mark.parametrize("name", ["extra.safetensors", "versions/2-eve.safetensors", "versions/deep/9.safetensors"])
def test_foreign_weights_are_named_and_hidden_ones_do_not_count(folder: Path, name: str) -> None:
    (folder / ".new.killed").mkdir()
    (folder / ".new.killed" / "calibration.safetensors").write_bytes(b"of a killed save")
    (folder / "versions" / ".partial.safetensors").write_bytes(b"of a killed save")
    _load(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes((folder / "versions" / "1-bob.safetensors").read_bytes())
    with pytest.raises(
        CorruptFileError, match=rf"{name} does not belong to the guard: its manifest.json does not name"
    ):
        _load(folder)


def test_a_manifest_that_leaves_out_a_file_does_not_cover_for_it(folder: Path) -> None:
    for name in FILES:
        write_manifest(folder, sorted(FILES - {name}))
        with pytest.raises(CorruptFileError, match=rf"{name} does not belong to the guard"):
            _load(folder)


@pytest.mark.parametrize(
    "content",
    [[], {}, {"files": []}, {"files": {"guard.json": 3}}, {"files": {"guard.json": {"bytes": 3}}}, {"files": None}],
    ids=json.dumps,
)
def test_a_manifest_of_another_form_is_refused(folder: Path, content: object) -> None:
    save_json(folder / "manifest.json", content)
    with pytest.raises(CorruptFileError, match=r"manifest\.json was damaged"):
        _load(folder)


@pytest.mark.parametrize("outside", ["../secret", "/etc/passwd", "versions/../../secret"])
def test_a_manifest_reaches_nothing_outside_of_the_folder(folder: Path, outside: str) -> None:
    content = load_json(folder / "manifest.json")
    content["files"][outside] = content["files"]["guard.json"]
    save_json(folder / "manifest.json", content)
    with pytest.raises(CorruptFileError, match=rf"names '{outside}', which is not in the guard's folder"):
        _load(folder)


def test_a_guard_of_an_older_release_is_loaded_with_a_warning(
    folder: Path, keys: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "manifest.json").unlink()
    content = load_json(folder / "guard.json")
    del content["canary"]  # releases before had none either
    save_json(folder / "guard.json", content)
    (folder / "canary.safetensors").unlink()
    caplog.set_level(logging.WARNING)
    guard = _load(folder)
    assert guard.saved.canary is None
    assert [
        message for message in caplog.messages if "has no manifest.json: the guard was saved by an older" in message
    ]
    with pytest.raises(SignatureError, match=r"not signed: no file .*manifest\.json"):
        _load(folder, keys[1])
    guard.save(folder)
    assert set(verify_guard(folder)) == FILES - {"canary.safetensors"}


def test_a_signature_without_manifest_is_no_older_release(folder: Path, keys: tuple[Path, Path]) -> None:
    sign_guard(folder, keys[0])
    (folder / "manifest.json").unlink()
    with pytest.raises(CorruptFileError, match=r"lost a part: no file .*manifest\.json"):
        _load(folder)


def test_a_guard_that_replaces_a_larger_one_leaves_nothing_of_it(folder: Path, fitted: GuardedPredictor) -> None:
    fitted.without(["bob"]).save(folder)
    assert set(verify_guard(folder)) == FILES - {"versions/1-bob.safetensors"}
    GuardedPredictor.load(folder, [template_model(5)])


def test_a_save_that_fails_leaves_the_signed_guard(
    folder: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_guard(folder, keys[0])

    def full(folder: Path, files: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("deepfailguard.guard.saved.write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        _fitted(seed=7).save(folder)
    monkeypatch.undo()
    assert _load(folder, keys[1]).saved.card.names == ("ann", "bob")
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_signed_guard_is_loaded_by_the_key_and_by_no_other(
    folder: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(SignatureError, match=r"not signed: no file .*manifest\.sig; sign it where it was made"):
        _load(folder, keys[1])
    sign_guard(folder, keys[0])
    assert _load(folder, keys[1]).saved.card.names == ("ann", "bob")
    _load(folder)  # who does not ask for a signature
    make_keys(tmp_path / "other.pem", tmp_path / "other_public.pem")
    with pytest.raises(SignatureError, match=r"manifest\.sig is no signature of .*manifest\.json by the key"):
        _load(folder, tmp_path / "other_public.pem")


def test_the_signature_is_that_of_ed25519_over_the_manifest(folder: Path, keys: tuple[Path, Path]) -> None:
    sign_guard(folder, keys[0])
    key = serialization.load_pem_public_key(keys[1].read_bytes())
    assert isinstance(key, ed25519.Ed25519PublicKey)
    key.verify((folder / "manifest.sig").read_bytes(), (folder / "manifest.json").read_bytes())


def test_an_exchanged_guard_with_a_manifest_of_its_own_is_refused(folder: Path, keys: tuple[Path, Path]) -> None:
    sign_guard(folder, keys[0])
    signature = (folder / "manifest.sig").read_bytes()
    _fitted(seed=7).save(folder)
    (folder / "manifest.sig").write_bytes(signature)
    _load(folder)  # whole
    with pytest.raises(SignatureError, match="is no signature of"):
        _load(folder, keys[1])


@pytest.mark.parametrize("damage", [lambda s: s[:-1], lambda s: b"", lambda s: s[:9] + bytes([s[9] ^ 1]) + s[10:]])
def test_a_damaged_signature_is_none(folder: Path, keys: tuple[Path, Path], damage: Callable[[bytes], bytes]) -> None:
    sign_guard(folder, keys[0])
    path = folder / "manifest.sig"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(SignatureError, match="is no signature of"):
        _load(folder, keys[1])


def test_a_signature_does_not_excuse_damage(folder: Path, keys: tuple[Path, Path]) -> None:
    sign_guard(folder, keys[0])
    with (folder / "calibration.safetensors").open("ab") as file:
        file.write(b"more")
    with pytest.raises(CorruptFileError, match=r"calibration\.safetensors was changed"):
        _load(folder, keys[1])
    before = (folder / "manifest.sig").read_bytes()
    with pytest.raises(CorruptFileError, match=r"calibration\.safetensors was changed"):
        sign_guard(folder, keys[0])
    assert (folder / "manifest.sig").read_bytes() == before


def test_saving_removes_the_signature_and_says_so(
    folder: Path, fitted: GuardedPredictor, keys: tuple[Path, Path], caplog: pytest.LogCaptureFixture
) -> None:
    fitted.save(folder)
    assert not [message for message in caplog.messages if "signed" in message]
    sign_guard(folder, keys[0])
    fitted.save(folder)
    assert not (folder / "manifest.sig").exists()
    assert [message for message in caplog.messages if "was signed; the one that replaces it is not: sign it" in message]
    sign_guard(folder, keys[0])
    sign_guard(folder, keys[0])  # again
    _load(folder, keys[1])


def test_without_a_manifest_or_a_guard_nothing_is_signed(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (folder / "manifest.json").unlink()
    with pytest.raises(ConfigurationError, match=r"has no manifest\.json to sign; load and save the guard first"):
        sign_guard(folder, keys[0])
    with pytest.raises(FileNotFoundError, match="holds no guard"):
        sign_guard(tmp_path / "nowhere", keys[0])


def test_keys_are_new_files_and_the_private_one_is_for_its_owner(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"PRIVATE" not in public.read_bytes()
    before = private.read_bytes()
    with pytest.raises(ConfigurationError, match=r"private\.pem exists, and keys are never overwritten"):
        make_keys(private, tmp_path / "fresh.pem")
    with pytest.raises(ConfigurationError, match=r"public\.pem exists"):
        make_keys(tmp_path / "fresh.pem", public)
    with pytest.raises(ConfigurationError, match=r"same\.pem exists"):
        make_keys(tmp_path / "same.pem", tmp_path / "same.pem")
    with pytest.raises(ConfigurationError, match="there is no folder"):
        make_keys(tmp_path / "fresh.pem", tmp_path / "nowhere" / "public.pem")
    assert private.read_bytes() == before
    assert not (tmp_path / "fresh.pem").exists()  # half a pair
    assert not (tmp_path / "same.pem").exists()


def test_other_files_and_keys_are_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (tmp_path / "rsa.pem").write_bytes(other.private_bytes(pem, form, serialization.NoEncryption()))
    secret = ed25519.Ed25519PrivateKey.generate()
    locked = secret.private_bytes(pem, form, serialization.BestAvailableEncryption(b"secret"))
    (tmp_path / "locked.pem").write_bytes(locked)
    (tmp_path / "text.pem").write_text("my key")
    for wrong in (tmp_path / "rsa.pem", tmp_path / "locked.pem", tmp_path / "text.pem", public):
        with pytest.raises(
            ConfigurationError, match=rf"expected .* unencrypted Ed25519PrivateKey in {wrong}; deepfailg"
        ):
            sign_guard(folder, wrong)
    sign_guard(folder, private)
    for wrong in (tmp_path / "rsa.pem", tmp_path / "text.pem", private):
        with pytest.raises(ConfigurationError, match=f"Ed25519PublicKey in {wrong}"):
            verify_guard(folder, wrong)
    with pytest.raises(ConfigurationError, match=r"cannot read the key .*nowhere\.pem: No such file"):
        verify_guard(folder, tmp_path / "nowhere.pem")


def test_without_the_library_guards_are_saved_and_verified_but_not_signed(
    fitted: GuardedPredictor, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)  # type: ignore[arg-type]
    fitted.save(tmp_path / "guard")
    _load(tmp_path / "guard")
    for wants in (
        lambda: sign_guard(tmp_path / "guard", keys[0]),
        lambda: verify_guard(tmp_path / "guard", keys[1]),
        lambda: make_keys(tmp_path / "fresh.pem", tmp_path / "fresh_public.pem"),
    ):
        with pytest.raises(ConfigurationError, match=r"library cryptography; pip install deepfailguard\[serve\]"):
            wants()
