"""Which versions answer together in the decision benchmark."""

import doctest

import pytest

from benchmarks.decisions import ensembles
from benchmarks.decisions.ensembles import SETTINGS, Ensemble, choose
from benchmarks.decisions.pools import FAULTS, Draw, Member, PoolPlan

POOL = tuple(Member(family, fault) for fault in (None, "noise", "labels") for family in ("A", "B", "C", "D", "E"))


def of(setting: str, chosen: list[Ensemble]) -> list[list[Member]]:
    return [[POOL[number] for number in each.members] for each in chosen if each.setting == setting]


def test_doctests() -> None:
    results = doctest.testmod(ensembles)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("versions", [2, 3, 4, 5])
def test_each_setting_is_what_it_says(versions: int) -> None:
    chosen = choose(POOL, versions, 1000, seed=0)
    assert all(len(each.members) == versions for each in chosen)
    assert all(member.fault is None for each in of("sound", chosen) for member in each)
    assert all(len({m.fault for m in each}) == 1 and each[0].fault for each in of("same fault", chosen))
    for each in of("one faulty", chosen):
        assert sum(member.fault is not None for member in each) == 1
        assert len({member.family for member in each}) == versions
    assert {each.setting for each in chosen} == set(SETTINGS)


def test_no_two_ensembles_have_the_same_members() -> None:
    chosen = choose(POOL, 2, 1000, seed=0)
    assert len({each.members for each in chosen}) == len(chosen) == 15 * 14 // 2


def test_a_setting_has_no_more_than_wanted() -> None:
    chosen = choose(POOL, 3, 7, seed=0)
    assert [len(of(setting, chosen)) for setting in SETTINGS] == [7, 7, 7, 7]


def test_many_versions_are_drawn_not_listed() -> None:
    members = tuple(Member(str(number), fault) for fault in (None, "noise", "labels") for number in range(15))
    chosen = choose(members, 5, 10, seed=0)
    mixed = [each.members for each in chosen if each.setting == "mixed"]
    assert len(mixed) == 10
    assert all(len(set(each)) == 5 for each in mixed)


def test_the_seed_decides() -> None:
    assert choose(POOL, 3, 5, seed=1) == choose(POOL, 3, 5, seed=1)
    assert choose(POOL, 3, 5, seed=1) != choose(POOL, 3, 5, seed=2)


def test_members_stand_in_the_order_of_the_requests(tmp_path: object) -> None:
    plan = PoolPlan(Draw("digits", 100, ""), folder=tmp_path, faults=("label_noise",))  # type: ignore[arg-type]
    asked = [
        Member(type(request.architecture).__name__, request.faults[0].name if request.faults else None)
        for request in plan.requests()
    ]
    assert tuple(asked) == plan.members
    assert {name: fault.name for name, fault in FAULTS.items()} == {name: name for name in FAULTS}
