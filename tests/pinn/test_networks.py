"""Networks: published sizes and initialisations, exact constraints, and a jet rule for every op."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from kfac_pinn.pinn.domains import Box
from kfac_pinn.pinn.networks import (
    MLP,
    SIREN,
    FourierFeatures,
    ModifiedMLP,
    PeriodicFeatures,
    PirateNet,
)
from kfac_pinn.pinn.wrappers import HardConstraint, Normalized, wall_distance
from kfac_pinn.taylor_mode.operators import laplacian

BOX = Box((0.0, -1.0), (2.0, 3.0))


def networks():
    periodic = PeriodicFeatures((None, 2.0), harmonics=2)
    pirate = PirateNet((2, 8, 1))
    for block in pirate.blocks:
        nn.init.constant_(block.alpha, 0.4)
    return {
        "mlp": MLP((2, 8, 7, 1)),
        "mlp with a module": MLP((2, 8, 1), nn.GELU()),
        "siren": SIREN((2, 8, 8, 1), omega=3.0),
        "modified": ModifiedMLP((2, 8, 8, 1)),
        "pirate": pirate,
        "fourier": nn.Sequential(FourierFeatures(2, 10), MLP((10, 6, 1))),
        "periodic": nn.Sequential(periodic, MLP((periodic.width, 6, 1))),
        "normalized": nn.Sequential(Normalized(BOX), MLP((2, 6, 1))),
        "hard": HardConstraint(MLP((2, 6, 1)), lambda x: x[:, :1] ** 2, wall_distance(BOX)),
    }


def nested_laplacian(u, x):
    """Sum of second derivatives by two reverse passes, another mechanism than jets."""
    x = x.clone().requires_grad_()
    (du,) = torch.autograd.grad(u(x).sum(), x, create_graph=True)
    rows = [torch.autograd.grad(du[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(2)]
    return sum(rows)[:, None]


@pytest.mark.parametrize("name", networks())
def test_every_network_has_jet_rules(name):
    network, x = networks()[name].double(), torch.rand(5, 2, dtype=torch.float64)
    assert network(x).shape == (5, 1)
    expected = nested_laplacian(network, x)
    torch.testing.assert_close(laplacian(network, x), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    ("sizes", "count"),
    [
        ((2, 64, 1), 257),
        ((5, 64, 1), 449),
        ((5, 64, 64, 48, 48, 1), 10_065),
        ((10, 256, 256, 128, 128, 1), 118_145),
        ((100, 768, 768, 512, 512, 1), 1_325_057),
    ],
)
def test_published_parameter_counts(sizes, count):
    assert sum(p.numel() for p in MLP(sizes).parameters()) == count


def test_mlp_is_the_sequential_of_the_published_code():
    torch.manual_seed(3)
    ours = MLP((3, 5, 4, 1))
    torch.manual_seed(3)
    sequential = nn.Sequential(
        nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)
    )
    x = torch.rand(7, 3)
    assert torch.equal(ours(x), sequential(x))


def test_siren_keeps_the_variance_of_its_layers():
    siren = SIREN((2, 512, 512, 512, 1), omega=30.0).double()
    x = 2 * torch.rand(400, 2, dtype=torch.float64) - 1
    for index, layer in enumerate(siren.layers[:-1]):
        if index:  # W x times omega, without the bias, has unit variance inside the sine
            inside = 30.0 * nn.functional.linear(x, layer.weight)
            assert abs(inside.square().mean() - 1) < 0.1
        x = torch.sin(30.0 * layer(x))
        assert abs(x.var() - 0.5) < 0.06  # the arcsine distribution's


def test_modified_mlp_is_its_formula():
    network, x = ModifiedMLP((2, 4, 4, 1)).double(), torch.rand(3, 2, dtype=torch.float64)
    U, V = (torch.tanh(encoder(x)) for encoder in network.encoders)
    H = x
    for layer in network.layers[:-1]:
        Z = torch.tanh(layer(H))
        H = (1 - Z) * U + Z * V
    torch.testing.assert_close(network(x), network.layers[-1](H))
    with pytest.raises(ValueError, match="one width"):
        ModifiedMLP((2, 4, 5, 1))


def test_pirate_net_starts_linear_in_its_embedding():
    network, x = PirateNet((2, 8, 1), blocks=3).double(), torch.rand(3, 2, dtype=torch.float64)
    torch.testing.assert_close(network(x), network.output(network.embedding(x)))


def test_periodic_features_are_periodic():
    features = PeriodicFeatures((None, 2.0, 0.5), harmonics=3)
    x, shift = torch.rand(4, 3).double(), torch.tensor([0.0, 2.0, -1.5]).double()
    assert features(x).shape == (4, features.width) == (4, 13)
    torch.testing.assert_close(features(x + shift), features(x), rtol=1e-13, atol=1e-13)
    assert features(x.float()).dtype == features.float()(x.float()).dtype == torch.float32


def test_normalized_maps_the_corners():
    corners = torch.tensor([BOX.lower, BOX.upper], dtype=torch.float64)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(Normalized(BOX).double()(corners), expected)


def test_hard_constraints_hold_exactly():
    network = HardConstraint(MLP((2, 8, 1)).double(), lambda x: x.sum(1, True), wall_distance(BOX))
    x = BOX.boundary(50, dtype=torch.float64)
    torch.testing.assert_close(network(x), x.sum(1, True), rtol=0, atol=1e-15)
    middle = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    assert math.isclose(wall_distance(BOX)(middle).item(), 1.0)


MISUSED = {
    "one size": (lambda: MLP((3,)), "at least two"),
    "no sizes": (lambda: MLP(3), "one tuple"),
    "sizes one by one": (lambda: MLP(2, 64), "one tuple"),
    "sizes by name": (lambda: MLP("2-64-1"), "one tuple"),
    "a size of zero": (lambda: MLP((2, 0, 1)), "positive integers"),
    "a fraction": (lambda: MLP((2, 8.5, 1)), "positive integers"),
    "a class": (lambda: MLP((2, 4, 1), nn.GELU), r"class GELU: pass an instance, GELU\(\)"),
    "a name": (lambda: MLP((2, 4, 1), "tanh"), "function such as torch.tanh, not 'tanh'"),
    "no frequency": (lambda: SIREN((2, 4, 1), 0.0), "omega must be positive"),
    "no period": (lambda: PeriodicFeatures((None, None)), "one number a coordinate"),
    "one period": (lambda: PeriodicFeatures(2.0), "one number a coordinate"),
    "values": (lambda: HardConstraint(MLP((2, 1)), 0.0, wall_distance(BOX)), "functions of the"),
    "widths": (lambda: ModifiedMLP((2, 4, 5, 1)), "one width"),
    "odd": (lambda: FourierFeatures(2, 5), "odd"),
}


@pytest.mark.parametrize("name", MISUSED)
def test_misuse_is_named(name):
    call, message = MISUSED[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()


def test_errors_name_the_fix():
    with pytest.raises(ValueError, match="at least two"):
        MLP((3,))
    with pytest.raises(TypeError, match=r"class SiLU: pass an instance, SiLU\(\)"):
        MLP((3, 4, 1), torch.nn.SiLU)
    with pytest.raises(ValueError, match="odd"):
        FourierFeatures(2, 5)
