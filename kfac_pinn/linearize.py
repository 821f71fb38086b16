"""linearize(closure, parameters): the one object from which every optimizer reads.

The residuals of all terms are stacked and scaled, r = cat_k r_k / sqrt(N_k) (length R), so that the
loss is L = 1/2 ||r||^2 and the Gauss-Newton matrix J^T J, J = d r / d theta (R, P). Flat vectors of
length P hold the parameters in the order given.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor

from kfac_pinn.capture import Capture, Use
from kfac_pinn.jacobians import (
    BlockJacobian,
    Layer,
    LayerInputs,
    LayerJacobian,
    Leaf,
    LeafJacobian,
    leaf_rows,
)
from kfac_pinn.residuals import Residuals, Term, as_terms

__all__ = ["Linearization", "Tangent", "linearize"]

Block: TypeAlias = Layer | Leaf
LARGEST_LEAF = 4096
ROWS_BYTES = 2**28


@dataclass(frozen=True)
class Tangent:
    """One residual term, linearised: N rows of J, unscaled.

    Attributes:
        name: of the term.
        residual: r_k, shape (N,).
        blocks: the Jacobian with respect to each block that it depends on.
    """

    name: str
    residual: Tensor
    blocks: dict[Block, BlockJacobian]

    @property
    def scale(self) -> float:
        """1 / sqrt(N), by which residual and rows enter the stacked ones."""
        return 1 / math.sqrt(len(self.residual))


class Linearization:
    """Residual r and Jacobian J of a closure at the current parameters.

    Attributes:
        parameters: the tensors, in the order of the flat vector.
        tangents: one entry a residual term (several for a term with a convex loss).
        loss: L, a float; 1/2 ||r||^2 for least squares.
        excess: gradient of the loss beyond J^T r, shape (P,); None for least squares.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        tangents: Sequence[Tangent],
        loss: float,
        excess: Tensor | None = None,
    ) -> None:
        self.parameters, self.tangents = list(parameters), list(tangents)
        self.loss, self.excess = loss, excess

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(p.numel() for p in self.parameters)

    @cached_property
    def blocks(self) -> list[Block]:
        """Layers and leaves that some residual depends on, in order of appearance."""
        return list(dict.fromkeys(block for t in self.tangents for block in t.blocks))

    @cached_property
    def residual(self) -> Tensor:
        """r, stacked and scaled, shape (R,)."""
        return torch.cat([t.scale * t.residual for t in self.tangents])

    @cached_property
    def gradient(self) -> Tensor:
        """dL/dtheta = J^T r (+ excess), shape (P,)."""
        gradient = self.transpose_times(self.residual)
        return gradient if self.excess is None else gradient + self.excess

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v, shape (R,), for a flat vector v (P,)."""
        return torch.cat([self._times(t, v) for t in self.tangents])

    def transpose_times(self, u: Tensor) -> Tensor:
        """J^T u, shape (P,), for u (R,)."""
        out = u.new_zeros(self.size)
        for tangent, part in zip(self.tangents, self.split(u), strict=True):
            for block in tangent.blocks.values():
                block.add_transpose_times(tangent.scale * part, out)
        return out

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        """A stacked vector (R, ...) term by term."""
        return u.split([len(t.residual) for t in self.tangents])

    def unflatten(self, v: Tensor) -> list[Tensor]:
        """A flat vector (P,) as views of the parameters' shapes."""
        parts = v.split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def rows(self, block: Block | None = None) -> Tensor:
        """J, shape (R, P), or its columns of one block, shape (R, block.size)."""
        return torch.cat([self._rows(t, slice(None), block) for t in self.tangents])

    def row_batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Pairs (rows of J, entries of r) of at most `size` rows each, in order."""
        for tangent in self.tangents:
            for start in range(0, len(tangent.residual), size):
                points = slice(start, start + size)
                yield self._rows(tangent, points), tangent.scale * tangent.residual[points]

    def gramian(self, block: Block | None = None) -> Tensor:
        """J^T J, shape (P, P), or the diagonal block of one block, shape (size, size)."""
        size = self.size if block is None else block.size
        like = self.tangents[0].residual
        gramian = like.new_zeros(size, size)
        batch = max(1, ROWS_BYTES // (like.element_size() * size))
        for tangent in self.tangents:
            for start in range(0, len(tangent.residual), batch):
                rows = self._rows(tangent, slice(start, start + batch), block)
                gramian.addmm_(rows.T, rows)
        return gramian

    def gramian_diagonal(self) -> Tensor:
        """diag(J^T J), shape (P,)."""
        diagonal = self.tangents[0].residual.new_zeros(self.size)
        batch = max(1, ROWS_BYTES // (diagonal.element_size() * self.size))
        for rows, _ in self.row_batches(batch):
            diagonal += rows.square().sum(0)
        return diagonal

    def kernel(self) -> Tensor:
        """J J^T, shape (R, R): layer by layer, from rows or from factors, whichever is cheaper."""
        kernel = torch.zeros(len(self.residual), len(self.residual)).to(self.residual)
        for block in self.blocks:
            if self._factored_is_cheaper(block):
                self._add_factored_kernel(block, kernel)
            else:
                rows = self.rows(block)
                kernel.addmm_(rows, rows.T)
        return kernel

    def _times(self, tangent: Tangent, v: Tensor) -> Tensor:
        product = sum(block.times(v) for block in tangent.blocks.values())
        return tangent.scale * product  # type: ignore[no-any-return]

    def _rows(self, tangent: Tangent, points: slice, block: Block | None = None) -> Tensor:
        if block is not None:
            if block in tangent.blocks:
                return tangent.scale * tangent.blocks[block].rows(points)
            return tangent.residual.new_zeros(len(tangent.residual[points]), block.size)
        out = tangent.residual.new_zeros(len(tangent.residual[points]), self.size)
        for place, jacobian in tangent.blocks.items():
            rows, start = jacobian.rows(points), 0
            for columns in place.slices:
                width = columns.stop - columns.start
                torch.mul(rows[:, start : start + width], tangent.scale, out=out[:, columns])
                start += width
        return out

    def _factored_is_cheaper(self, block: Block) -> bool:
        jacobians = [t.blocks[block] for t in self.tangents if block in t.blocks]
        layers = [j for j in jacobians if isinstance(j, LayerJacobian)]
        if len(layers) < len(jacobians):
            return False
        factored = sum(a.kernel_cost(b) for a in layers for b in layers)
        return factored < len(self.residual) ** 2 * block.size

    def _add_factored_kernel(self, block: Block, kernel: Tensor) -> None:
        sizes = [len(t.residual) for t in self.tangents]
        for i, row in enumerate(kernel.split(sizes)):
            for j, cell in enumerate(row.split(sizes, dim=1)):
                a, b = self.tangents[i].blocks.get(block), self.tangents[j].blocks.get(block)
                if isinstance(a, LayerJacobian) and isinstance(b, LayerJacobian):
                    scale = self.tangents[i].scale * self.tangents[j].scale
                    cell.add_(a.kernel(b), alpha=scale)


def linearize(
    closure: Callable[[], Residuals],
    parameters: Sequence[Tensor],
    check: bool = False,
    names: Sequence[str] | None = None,
) -> Linearization:
    """Residual and Jacobian of a closure, from one forward pass and one backward pass a residual.

    Args:
        closure: takes no arguments, returns residuals (a tensor (N,) or (N, 1), a tuple or a dict
            of them; `ConvexLoss` for a term that is not a square).
        parameters: the trained tensors; other leaves are constants.
        check: also compare J^T u with autograd's, parameter by parameter, for a random u.
        names: of the parameters, for errors.

    Raises:
        TypeError, ValueError: for a closure that returns something else.
        RuntimeError: for a residual that depends on none of the parameters, or whose Jacobian
            cannot be seen exactly; the parameter is named.
        FloatingPointError: for a residual that is not finite.
    """
    parameters = list(parameters)
    names = list(names or [f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(parameters)])
    if len({(p.dtype, p.device) for p in parameters}) > 1:
        raise ValueError("the parameters differ in dtype or device; bring them to one with .to()")
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        with Capture(parameters) as capture:
            terms = as_terms(closure())
        return _Assembly(parameters, names, capture.uses).linearization(terms, check)


class _Assembly:
    """From recorded uses and residual terms to a Linearization."""

    def __init__(self, parameters: list[Tensor], names: list[str], uses: list[Use]) -> None:
        self.parameters, self.names, self.uses = parameters, names, uses
        ends = list(itertools.accumulate((p.numel() for p in parameters), initial=0))
        self.places = {
            id(p): slice(*pair)
            for p, pair in zip(parameters, itertools.pairwise(ends), strict=True)
        }
        self.inputs: dict[tuple[int, ...], LayerInputs] = {}
        self.layers = self._layers()
        captured = {id(p) for layer in self.layers.values() for p in layer.parameters}
        self.leaves = [Leaf(p, self.places[id(p)]) for p in parameters if id(p) not in captured]

    def linearization(self, terms: list[Term], check: bool) -> Linearization:
        """Backward passes, term by term; the graph lives until the last one is done."""
        pairs = [(term.name, *pair) for term in terms for pair in self._tangents_of(term)]
        tangents = [self._tangent(*pair) for pair in pairs]
        loss = float(sum(term.loss().detach() for term in terms))
        result = Linearization(self.parameters, tangents, loss, self._excess(terms))
        if check:
            self._check(result, [output for _, output, _ in pairs])
        return result

    def _tangents_of(self, term: Term) -> list[tuple[Tensor, Tensor]]:
        pairs = term.tangents()
        for output, value in pairs:
            if not torch.isfinite(value).all():
                bad = int((~torch.isfinite(value)).sum())
                raise FloatingPointError(
                    f"{term.name}: {bad} of {len(value)} entries are not finite at the current "
                    "parameters. Check the points, the data and the initialisation"
                )
            if not output.requires_grad:
                raise RuntimeError(
                    f"{term.name} does not depend on any trained parameter (it carries no "
                    "gradient). Do not detach it, nor compute it under torch.no_grad()"
                )
        return pairs

    def _layers(self) -> dict[int, Layer]:
        """One layer a weight: id(weight) -> Layer."""
        layers: dict[int, Layer] = {}
        for weight_id, uses in self._uses_by_weight().items():
            biases = {id(use.bias): use.bias for use in uses if id(use.bias) in self.places}
            if len(biases) > 1:
                raise RuntimeError(
                    f"parameter {self._name(uses[0].weight)} is used with {len(biases)} different "
                    "biases; add them outside of the linear layer, as parameters of their own"
                )
            bias = next(iter(biases.values()), None)
            layers[weight_id] = Layer(
                self._owned(uses[0].weight), bias, *self._places(uses[0].weight, bias)
            )
        return layers

    def _uses_by_weight(self) -> dict[int, list[Use]]:
        grouped: dict[int, list[Use]] = {}
        for use in self.uses:
            grouped.setdefault(id(use.weight), []).append(use)
        return grouped

    def _owned(self, value: Tensor | None) -> Tensor | None:
        return value if id(value) in self.places else None

    def _places(self, *values: Tensor | None) -> list[slice]:
        return [self.places.get(id(value), slice(0, 0)) for value in values]

    def _name(self, parameter: Tensor) -> str:
        index = [p is parameter for p in self.parameters].index(True)
        return self.names[index]

    def _tangent(self, name: str, output: Tensor, value: Tensor) -> Tangent:
        """One backward pass to every use, and the dense rows of the other leaves."""
        edges = [use.output for use in self.uses]
        gradients = (
            torch.autograd.grad(output.sum(), edges, retain_graph=True, allow_unused=True)
            if edges
            else ()
        )
        blocks: dict[Block, BlockJacobian] = {}
        for weight_id, layer in self.layers.items():
            found = [
                (use, gradient)
                for use, gradient in zip(self.uses, gradients, strict=True)
                if id(use.weight) == weight_id and gradient is not None
            ]
            if found:
                blocks[layer] = self._layer_jacobian(layer, found, output)
        blocks.update(self._leaf_jacobians(output))
        if not blocks:
            raise RuntimeError(
                f"{name} depends on none of the optimizer's parameters. Pass the parameters of the "
                "model that the residual evaluates"
            )
        return Tangent(name, value, blocks)

    def _layer_jacobian(
        self, layer: Layer, found: list[tuple[Use, Tensor]], output: Tensor
    ) -> LayerJacobian:
        key = (id(layer.weight), id(layer.bias), len(output), *(id(use) for use, _ in found))
        points = len(output)
        if key not in self.inputs:
            self.inputs[key] = self._layer_inputs(layer, [use for use, _ in found], points)
        g = [by_point(use.positions(gradient), points) for use, gradient in found]
        return LayerJacobian(layer, self.inputs[key], g[0] if len(g) == 1 else torch.cat(g))

    def _layer_inputs(self, layer: Layer, uses: list[Use], points: int) -> LayerInputs:
        """Several uses of one weight are further shared positions."""
        z, unit = [], []
        for use in uses:
            evaluated = use.inputs.shape[1]
            if evaluated != points and points != 1:
                raise RuntimeError(
                    f"parameter {self._name(layer.parameters[0])} is evaluated at {evaluated} points for a "
                    f"residual of {points} entries, so their rows cannot be told apart. Evaluate "
                    "the model once a term, at that term's own points"
                )
            z.append(by_point(use.inputs, points))
            repeated = use.unit.repeat_interleave(evaluated if points == 1 else 1)
            unit.append(repeated if use.bias is layer.bias else torch.zeros_like(repeated))
        return (
            LayerInputs(z[0], unit[0])
            if len(z) == 1
            else LayerInputs(torch.cat(z), torch.cat(unit))
        )

    def _leaf_jacobians(self, output: Tensor) -> dict[Block, BlockJacobian]:
        used = self._reached(output)
        for leaf in used:
            if leaf.parameter.numel() > LARGEST_LEAF:
                raise RuntimeError(
                    f"parameter {self._name(leaf.parameter)} reaches the residual otherwise than as the "
                    f"weight of F.linear or F.conv, and with {leaf.parameter.numel()} entries it is too "
                    f"large for an exact dense block (at most {LARGEST_LEAF}). Apply it by "
                    "torch.nn.functional.linear(x, W, b)"
                )
        rows = leaf_rows(output, [leaf.parameter for leaf in used]) if used else []
        return {
            leaf: LeafJacobian(leaf, dense)
            for leaf, dense in zip(used, rows, strict=True)
            if dense is not None
        }

    def _reached(self, output: Tensor) -> list[Leaf]:
        """The leaves that the residual depends on."""
        if not self.leaves:
            return []
        gradients = torch.autograd.grad(
            output.sum(),
            [leaf.parameter for leaf in self.leaves],
            retain_graph=True,
            allow_unused=True,
        )
        pairs = zip(self.leaves, gradients, strict=True)
        return [leaf for leaf, gradient in pairs if gradient is not None]

    def _excess(self, terms: list[Term]) -> Tensor | None:
        """The gradient of what the convex losses' tangents leave over."""
        parts = [part for part in (term.excess() for term in terms) if part is not None]
        return self._autograd(torch.stack(parts).sum()) if parts else None

    def _autograd(self, scalar: Tensor) -> Tensor:
        gradients = torch.autograd.grad(
            scalar, self.parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([gradient.reshape(-1) for gradient in gradients])

    def _check(self, result: Linearization, outputs: list[Tensor]) -> None:
        """J^T u against autograd for a random u: the Jacobian is exact, or the step does not happen."""
        generator = torch.Generator().manual_seed(0)
        u = torch.randn(len(result.residual), generator=generator, dtype=torch.float64)
        parts = result.split(u.to(result.residual))
        scaled = [t.scale * part for t, part in zip(result.tangents, parts, strict=True)]
        expected = self._autograd(sum((o * s).sum() for o, s in zip(outputs, scaled, strict=True)))  # type: ignore[arg-type]
        difference = result.transpose_times(torch.cat(parts)) - expected
        tolerance = math.sqrt(torch.finfo(expected.dtype).eps)
        unused = []
        for name, parameter in zip(self.names, self.parameters, strict=True):
            place = self.places[id(parameter)]
            error, size = difference[place].norm(), expected[place].norm()
            if error > tolerance * (
                size + 1e-3 * expected.norm() / math.sqrt(len(self.parameters))
            ):
                raise RuntimeError(MISMATCH.format(name=name, error=float(error / size)))
            if size == 0 and not any(place in b.slices for b in result.blocks):
                unused.append(name)
        if unused:
            warnings.warn(f"no residual depends on parameter {', '.join(unused)}", stacklevel=2)


MISMATCH = (
    "the Jacobian of parameter {name} does not match autograd's (relative difference {error:.1e}). "
    "The closure uses it in a way whose rows cannot be told apart: every operation must act on the "
    "points one by one (no BatchNorm or mean over the points: use LayerNorm or model.eval()), a "
    "weight must act only through F.linear or F.conv, a parameter must not be changed during the "
    "closure, and derivatives must come from kfac_pinn operators, not from torch.autograd.grad"
)


def by_point(positions: Tensor, points: int) -> Tensor:
    """(S, M, d) as it is, or (S M, 1, d) where one residual sums over all M points."""
    return positions.reshape(-1, 1, positions.shape[2]) if points == 1 else positions
