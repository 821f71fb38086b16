"""Variants of low-rank adapters under Gauss-Newton, each with the same seconds, points and base.

    python examples/reproduce/hyperlora/variants.py 4 kovasznay --base 10 --task 2 --tasks 3

- random: B = 0, A at random (LoRA);
- aimed: B = 0, A along a full Gauss-Newton step (`adapt(aimed=...)`);
- scaled: the update times 16 / sqrt(rank) (rsLoRA: Kalajdzievski, 2023, with alpha = 16);
- magnitudes: a trained factor for each output as well (DoRA: Liu et al., 2024, whose norms are
  constants of a step; here they are those of W0);
- principal: A, B start at the largest singular values of W0, the rest of it being frozen (PiSSA:
  Meng et al., 2024).

Prints Markdown: errors over the test tasks after so many seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import torch
from benchmark import Benchmark
from cache import Row
from regimes import pinn
from tables import arguments, benchmark_of, markdown
from torch import Tensor, nn

from hyperlora_ext.lora import LoRALinear, count, frozen, linear_of, start_of
from hyperlora_ext.ranks import ranks_for
from hyperlora_ext.rewiring import rewired

__all__ = ["VARIANTS", "Magnitudes", "Scaled", "main", "rows"]

ALPHA = 16.0
Variant: TypeAlias = Callable[[nn.Linear, int], nn.Module]


class Scaled(nn.Module):
    """W0 x + b + s B A x, s = ALPHA / sqrt(r)."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.frozen, self.scale = frozen(linear), ALPHA / rank**0.5
        self.update = nn.Sequential(
            linear_of(start_of(linear, rank), None),
            linear_of(linear.weight.new_zeros(linear.out_features, rank), None),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Fields at the points, or at a jet of them."""
        return self.frozen(x) + self.scale * self.update(x)


class Magnitudes(nn.Module):
    """m (W0 + B A) x + b, m (d_out,) trained, one at the start."""

    b: Tensor

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.adapter = LoRALinear(linear_of(linear.weight.detach(), None), start_of(linear, rank))
        self.m = nn.Parameter(torch.ones_like(linear.weight[:, 0]))
        b = torch.zeros_like(self.m) if linear.bias is None else linear.bias
        self.register_buffer("b", b.detach())

    def forward(self, x: Tensor) -> Tensor:
        """Fields at the points, or at a jet of them."""
        return self.m * self.adapter(x) + self.b


def random(linear: nn.Linear, rank: int) -> nn.Module:
    """LoRA."""
    return LoRALinear(linear, start_of(linear, rank))


def principal(linear: nn.Linear, rank: int) -> nn.Module:
    """PiSSA: W0 = B A + the rest, B A of the r largest singular values."""
    U, s, V = torch.linalg.svd(linear.weight.detach(), full_matrices=False)
    B, A = U[:, :rank] * s[:rank].sqrt(), s[:rank, None].sqrt() * V[:rank]
    bias = None if linear.bias is None else linear.bias.detach()
    return LoRALinear(linear_of(linear.weight.detach() - B @ A, bias), A, B)


VARIANTS: dict[str, Variant] = {
    "random": random,
    "scaled": Scaled,
    "magnitudes": Magnitudes,
    "principal": principal,
}


def adapted(
    base: nn.Module, rank: int, variant: Callable[[nn.Linear, int], nn.Module]
) -> nn.Module:
    """The base with such an adapter in the place of each layer; it begins as the base."""
    ranks = ranks_for(base, rank)
    return rewired(base, ranks, lambda name, linear: variant(linear, ranks[name]))


def rows(benchmark: Benchmark, rank: int) -> Iterator[Row]:
    """A row a variant, the one that `adapt` makes first."""
    yield benchmark.measured("aimed", lambda task: benchmark.adapted(task, rank))
    config = benchmark.config
    for name, variant in VARIANTS.items():

        def trained(task: Tensor, variant: Variant = variant) -> nn.Module:
            torch.manual_seed(0)
            v = adapted(benchmark.w0(task), rank, variant)
            problem = config.family.problem(task)
            return pinn(v, problem, config.train, seconds=benchmark.budget.task)

        size = count(adapted(benchmark.base, rank, variant))
        yield benchmark.measured(name, trained) | {"parameters": size}


def main() -> None:
    """The command."""
    parser = arguments(__doc__, "rank", range(1, 65))
    parsed = vars(parser.parse_args())
    rank = parsed.pop("rank")
    for line in markdown(rows(benchmark_of(parsed), rank)):
        print(line, flush=True)


if __name__ == "__main__":
    main()
