"""Factors are saved whole, with what they belong to, and put on that base only."""

from __future__ import annotations

import copy
import math
import os
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

import hyperlora_ext as hl
from hyperlora_ext.lora import adapters, merge
from hyperlora_ext.serialization import state, with_factors
from hyperlora_ext.symmetry import Shifted
from kfac_pinn.pinn.networks import MLP, ModifiedMLP

F64 = torch.float64


def trained(base: nn.Module, rank: object = 2, bias: bool = False) -> nn.Module:
    v = hl.adapt(base, rank, bias=bias)
    with torch.no_grad():
        for adapter in adapters(v).values():
            adapter.B.normal_(0, 0.3)
            if adapter.shift is not None:
                adapter.shift.normal_(0, 0.3)
    return v


@pytest.mark.parametrize("bias", [False, True])
def test_saved_factors_are_small_and_restored(tmp_path: Path, bias: bool) -> None:
    base = MLP((2, 64, 64, 64, 64, 64, 3)).double()
    v, x = trained(base, 4, bias), torch.randn(3, 2, dtype=F64)
    hl.save(v, tmp_path / "v.lora")
    assert os.path.getsize(tmp_path / "v.lora") < 35_000
    assert torch.load(tmp_path / "v.lora", weights_only=True)["base"]["kind"] == "MLP"
    assert torch.equal(hl.load(base, str(tmp_path / "v.lora"))(x), v(x))
    assert [path.name for path in tmp_path.iterdir()] == ["v.lora"]


@pytest.mark.parametrize("bias", [False, True])
def test_factors_follow_the_base_they_are_put_on(bias: bool) -> None:
    base, x = MLP((2, 8, 1)).double(), torch.rand(5, 2)
    v = trained(base, 2, bias)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = with_factors(copy.deepcopy(base).float(), state(v))
    assert single(x).dtype == torch.float32
    assert (single(x) - v(x.double())).abs().max() < 1e-6
    with torch.no_grad():
        for adapter in adapters(single).values():
            adapter.A.zero_()
    assert all(a.A.abs().max() > 0 for a in adapters(v).values())


def other_bases(base: nn.Module) -> dict[str, nn.Module]:
    permuted = copy.deepcopy(base)
    permuted.layers[1].weight.data = base.layers[1].weight.data.flip(1)  # the norm is the same
    biased = copy.deepcopy(base)
    biased.layers[1].bias.data += 1e-3
    return {
        r"the weight of layer 'layers\.1' has norm .* there, .* here": MLP((2, 8, 8, 1)).double(),
        r"layer 'layers\.1' has norm": permuted,
        r"'layers\.1' has norm ": biased,
        r"'layers\.1' has shape \(8, 8\) there, \(1, 8\) here": MLP((2, 8, 1)).double(),
        r"a MLP, here a ModifiedMLP": ModifiedMLP((2, 8, 8, 1)).double(),
        r"a MLP, here a Sequential": nn.Sequential(nn.Linear(2, 1)).double(),
    }


@pytest.mark.parametrize("index", range(6))
def test_another_base_is_refused(index: int, tmp_path: Path) -> None:
    base = MLP((2, 8, 8, 1)).double()
    said, other = list(other_bases(base).items())[index]
    hl.save(trained(base, {"layers.1": 1}), tmp_path / "v.lora")
    with pytest.raises(ValueError, match=rf"v\.lora belongs to another base: .*{said}"):
        hl.load(other, tmp_path / "v.lora")
    base.layers[0].weight.data += 1  # a layer that was not adapted may have changed
    hl.load(base, tmp_path / "v.lora")


def test_what_is_no_state_of_factors_is_refused(tmp_path: Path) -> None:
    base = MLP((2, 8, 1)).double()
    state_dict = tmp_path / "base.pt"
    torch.save(base.state_dict(), state_dict)
    with pytest.raises(RuntimeError, match=r"base\.pt .*is damaged, or no file of this kind"):
        hl.load(base, state_dict)
    whole = state(trained(base))
    for wrong in (
        {},
        base.state_dict(),
        [1],
        whole | {"factors": {"layers.0": {"A": torch.ones(1, 2)}}},
        whole | {"factors": {"layers.0.A": torch.ones(1, 2)}},
        whole | {"factors": {}},
    ):
        with pytest.raises(ValueError, match="the state holds no factors A and B of layers"):
            with_factors(base, wrong)
    with pytest.raises(ValueError, match="has no adapters"):
        hl.save(base, tmp_path / "v.lora")


def test_a_file_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, path = MLP((2, 8, 1)).double(), tmp_path / "v.lora"
    v, x = trained(base), torch.rand(3, 2, dtype=F64)
    hl.save(v, path)
    before = v(x)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt()))
        hl.save(trained(base), path)
    assert torch.equal(hl.load(base, path)(x), before) and len(list(tmp_path.iterdir())) == 1
    next(iter(adapters(v).values())).A.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"factor layers\.0\.A is not finite: .* is not written"):
        hl.save(v, path)
    assert torch.equal(hl.load(base, path)(x), before)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(RuntimeError, match=r"v\.lora .* is damaged"):
        hl.load(base, path)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        hl.save(trained(base), tmp_path / "nowhere" / "v.lora")


def test_a_network_in_a_frame_of_its_own_is_restored(tmp_path: Path) -> None:
    base, space = MLP((2, 8, 1)).double(), hl.GaussianField(16, centred=True)
    h = hl.HyperLoRA(base, space, 2, hidden=(5,))
    task, x = space.sample(1)[0], torch.rand(5, 2, dtype=F64)
    v = h.pinn(task)
    hl.save(v, tmp_path / "v.lora")
    restored = hl.load(base, tmp_path / "v.lora")
    assert isinstance(v, Shifted) and isinstance(restored, Shifted)
    assert torch.equal(restored(x), v(x))
    assert torch.equal(state(restored)["offset"], v.offset)
    assert (merge(restored)(x) - v(x)).abs().max() < 1e-13
