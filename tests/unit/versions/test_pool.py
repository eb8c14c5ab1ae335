from dataclasses import replace
from pathlib import Path

import pytest
import torch

from deepfailguard.errors import AmbiguousVersionError, ConfigurationError, CorruptFileError, VersionNotFoundError
from deepfailguard.identity import describe, weights_fingerprint
from deepfailguard.store import save_json
from deepfailguard.types import Bounds, Change, Receipt
from deepfailguard.versions.card import IdentityCard
from deepfailguard.versions.pool import Pool
from deepfailguard.versions.spec import Recipe, VersionSpec
from tests.examples import CLASSES, TinyNet

CPU = torch.device("cpu")
RECEIPT = Receipt("label_noise", {"rate": 0.1}, 0, (Change("train.labels", "right", "wrong", 3),))


def card_of(name: str, key: str, fingerprint: str) -> IdentityCard:
    return IdentityCard(
        name=name,
        key=key,
        dataset="bars",
        source_fingerprint="s",
        train_fingerprint="t",
        classes=("a", "b", "c"),
        input_shape=(1, 8, 8),
        bounds=Bounds(),
        architecture=describe(TinyNet()),
        recipe=Recipe().as_dict(),
        seed=0,
        receipts=(RECEIPT,),
        outcome="completed",
        metrics={"test_accuracy": 0.5},
        curves={"loss": [1.0]},
        fingerprint=fingerprint,
    )


def fill(pool: Pool, name: str = "tiny-s0", key: str = "a" * 64) -> IdentityCard:
    model = TinyNet().build(CLASSES)
    card = card_of(name, key, weights_fingerprint(model))
    pool.save(model, card)
    return card


@pytest.fixture
def pool(tmp_path: Path) -> Pool:
    return Pool(tmp_path, trusted=["tests"])


def test_a_version_is_found_by_identity_and_comes_back_whole(pool: Pool) -> None:
    card = fill(pool)
    found = pool.find(card.key)
    assert found == card
    torch.manual_seed(5)
    version = pool.load(card, CPU)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))  # loading leaves the global random numbers alone
    assert weights_fingerprint(version.model) == card.fingerprint
    assert version.logits(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_nothing_is_found_before_it_is_filed(pool: Pool) -> None:
    assert pool.find("b" * 64) is None
    assert pool.cards("bars") == []
    with pytest.raises(VersionNotFoundError, match="train some"):
        pool.choose(None, "bars")


def test_names_select_and_misspelt_ones_get_a_hint(pool: Pool) -> None:
    fill(pool, "resnet-s0", "a" * 64)
    fill(pool, "vgg-s0", "b" * 64)
    assert [card.name for card in pool.select(["vgg-s0", "resnet-s0"], "bars")] == ["vgg-s0", "resnet-s0"]
    with pytest.raises(VersionNotFoundError, match=r"'resnt-s0'.*did you mean resnet-s0"):
        pool.select(["resnt-s0"], "bars")


def test_two_versions_of_one_name_need_the_key(pool: Pool) -> None:
    fill(pool, key="a" * 64)
    second = fill(pool, key="b" * 64)
    with pytest.raises(AmbiguousVersionError, match=r"tiny-s0@aaaaaaaaaa, tiny-s0@bbbbbbbbbb"):
        pool.select(["tiny-s0"], "bars")
    picked = pool.select(["tiny-s0@bbb"], "bars")
    assert picked == [replace(second, name="tiny-s0@bbbbbbbbbb")]
    assert len({pool.load(card, CPU).name for card in pool.choose(None, "bars")}) == 2


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 4
    path.write_bytes(content)


def test_one_flipped_bit_in_the_weights_is_noticed(pool: Pool, tmp_path: Path) -> None:
    card = fill(pool)
    flip_bit(next(tmp_path.rglob("weights.safetensors")))
    with pytest.raises(CorruptFileError, match=r"weights\.safetensors"):
        pool.load(card, CPU)
    assert pool.find(card.key) is None  # so that it is trained again


def test_a_damaged_card_takes_out_its_version_and_no_other(
    pool: Pool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged, sound = fill(pool, "one-s0", "a" * 64), fill(pool, "two-s0", "b" * 64)
    flip_bit(next(tmp_path.rglob("one-s0@*/card.json")))
    assert pool.cards("bars") == [sound]
    assert "one-s0@aaaaaaaaaa" in caplog.text
    assert pool.find(damaged.key) is None


def test_a_card_of_a_future_format_is_damaged_to_us(pool: Pool, tmp_path: Path) -> None:
    card = fill(pool)
    save_json(next(tmp_path.rglob("card.json")), card.to_json() | {"invented_later": 1})
    assert pool.cards("bars") == []


def test_a_version_of_another_identity_is_not_found_by_a_shared_beginning(pool: Pool) -> None:
    fill(pool, key="a" * 64)
    assert pool.find("a" * 63 + "b") is None


def test_another_versions_weights_are_refused(pool: Pool, tmp_path: Path) -> None:
    first, second = fill(pool, "one-s0", "a" * 64), fill(pool, "two-s0", "b" * 64)
    source, target = (tmp_path / "bars" / f"{c.name}@{c.key[:10]}" / "weights.safetensors" for c in (second, first))
    target.write_bytes(source.read_bytes())
    with pytest.raises(CorruptFileError, match="other weights than one-s0's card says"):
        pool.load(first, CPU)


def test_lost_weights_and_untrusted_code_are_named(pool: Pool, tmp_path: Path) -> None:
    card = fill(pool)
    with pytest.raises(ConfigurationError, match="not trusted"):
        Pool(tmp_path).load(card, CPU)
    next(tmp_path.rglob("weights.safetensors")).unlink()
    with pytest.raises(VersionNotFoundError, match="lost its weights"):
        pool.load(card, CPU)


def test_identity_follows_what_matters() -> None:
    spec = VersionSpec("bars", TinyNet(), Recipe(), seed=0)
    keys = {
        spec.key("abc", "train"),
        spec.key("abcd", "train"),
        spec.key("abc", "other"),
        replace(spec, seed=1).key("abc", "train"),
        replace(spec, dataset="others").key("abc", "train"),
        replace(spec, architecture=TinyNet(width=9)).key("abc", "train"),
        replace(spec, recipe=Recipe(epochs=11)).key("abc", "train"),
    }
    assert len(keys) == 7
    assert replace(spec, faults=("label_noise",)).key("abc", "train") == spec.key(
        "abc", "train"
    )  # the name alone is none


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optimizer": "adamm"}, "recipe.optimizer must be one of sgd, adam, adamw"),
        ({"epochs": 0}, "recipe.epochs must be a positive number, got 0"),
        ({"loss": "cross"}, "recipe.loss must be one of"),
        ({"validation_share": 1.0}, "between 0 and 1"),
        ({"epochs": "three"}, "recipe.epochs must be a positive number, got 'three'"),
        ({"patience": 0}, "recipe.patience must be at least 1"),
    ],
)
def test_impossible_recipes_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Recipe(**settings)  # type: ignore[arg-type]


def test_what_the_pool_has_instead_is_told(pool: Pool) -> None:
    with pytest.raises(VersionNotFoundError, match="no versions for data set 'digits'; train some"):
        pool.choose(None, "digits")
    fill(pool, "one-s0", "a" * 64)
    fill(pool, "two-s0", "b" * 64)
    with pytest.raises(
        VersionNotFoundError, match=r"no versions for data set 'digits', but some for bars \(2\); train"
    ):
        pool.choose(None, "digits")
    damaged = pool.folder / "digits" / "three-s0@cc" / "card.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("{")
    with pytest.raises(VersionNotFoundError, match=r"for data set 'digits', but some for bars \(2\); train"):
        pool.choose(None, "digits")
    with pytest.raises(
        VersionNotFoundError, match=r"for data set 'digits' below .*, but some for bars \(2\); train some"
    ):
        pool.choose(["one-s0"], "digits")
