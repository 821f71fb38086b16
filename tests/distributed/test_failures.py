"""One process fails: all raise the same error, with its rank, and nothing has changed."""

from __future__ import annotations

import pytest

import kfac_pinn as kp
from tests.distributed.cases import Net, apart, cut_up, failing, killed
from tests.distributed.pool import Pool


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raise", "TroubleError: rank {victim}: the sampler is empty"),
        ("raise in a trial", "ValueError: rank {victim}: the sampler is empty"),
        ("nan", "FloatingPointError: rank {victim}: residual 0: "),
        ("terms", "RuntimeError: ranks 0 and 1 differ: their closures return different numbers"),
        ("no points", "ValueError: rank {victim}: residual 0 has shape (0, 1): there are no poi"),
        ("other", "RuntimeError: ranks 0 and 1 differ: their residuals depend on different"),
    ],
)
def test_all_raise_what_one_does(pools, how, said, victim):
    found = pools(2)(failing, victim, how)
    raised, unchanged, losses = zip(*found, strict=True)
    assert raised[0].startswith(said.format(victim=victim)), raised[0]
    assert raised[1] == raised[0] or how == "raise"  # the class is that of another module there
    assert all(unchanged)
    assert losses[0] == losses[1]  # and the run goes on


def test_parameters_that_differ_are_found(pools):
    found = pools(2)(apart)
    assert all("ranks 0 and 1 differ: their parameters" in str(error) for error in found), found


def test_parameters_that_are_cut_up(pools):
    for error in pools(2)(cut_up):
        assert "is a piece of a tensor that is cut up among processes (DTensor" in str(error), error


def test_no_processes():
    with pytest.raises(RuntimeError, match="there are no processes yet"):
        kp.Processes()


def test_something_else_than_processes():
    with pytest.raises(TypeError, match="processes is Processes"):
        kp.KFACPINN(Net().parameters(), processes=2)


@pytest.mark.parametrize("victim", [0, 2])
def test_killed_process_is_named(victim):
    pool = Pool(3)
    found = pool(killed, victim)
    pool.close()
    assert found.pop(victim) is None
    for message, seconds in found:
        assert f"rank {victim}" in message or f", {victim}" in message
        assert seconds < 60
