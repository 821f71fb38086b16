"""Weights that a network emits, in the linearisation every optimizer reads.

A residual r_n of task t depends on the hypernetwork's parameters phi only through theta_t =
H(task_t; phi). With its row j_n = d r_n / d theta_t, found by one backward pass through the PINN,

    d r_n / d phi = d (j_n . H(task_t(n); phi)) / d phi,   j_n held constant:

a plain residual of the hypernetwork at R points, which kfac_pinn linearises in factored form. Rows
of one task share the inputs z of every layer, so that its kernel is

    K_nm = sum_l (z_l,t(n) . z_l,t(m) + 1) (g_l,n . g_l,m)

with T x T products of the z. Nothing of length |phi| is formed for a row.

Shape letters: T tasks, R stacked residuals, size: the numbers emitted for a task.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode, handle_torch_function

from hyperlora_ext.emission import task_linear
from hyperlora_ext.hyper import Fields, HyperLoRA
from kfac_pinn import Linearization, linearize
from kfac_pinn.jacobian.blocks import Layer, LayerJacobian
from kfac_pinn.jacobian.linearization import Block, TermJacobian
from kfac_pinn.jacobian.losses import total_loss
from kfac_pinn.taylor_mode.jets import Jet

__all__ = ["GeneratedLinearization", "SketchedLinearization", "TaskResiduals"]

Function = Callable[[Any], Any]


@dataclass(frozen=True)
class TaskResiduals:
    """The closure of a hypernetwork: residuals of many tasks, and their linearisation.

    optimizer = KFACPINN(hyper.parameters())
    optimizer.step(TaskResiduals(hyper, tasks, residuals))

    Attributes:
        model: H.
        tasks: (T, p).
        residuals: maps u of all tasks (points (T n, d) -> fields) to residuals (T n_k,) by name,
            task after task.
        signs: None: exact curvature. K: `linearize` offers Kronecker factors from K random sign
            vectors a task (about 16 are needed to be worth it).
        seed: of the sign vectors.
    """

    model: HyperLoRA
    tasks: Tensor
    residuals: Callable[[Function], Mapping[str, Tensor]]
    signs: int | None = None
    seed: int = 0

    def __call__(self) -> Mapping[str, Tensor]:
        """The residuals by name, (T n_k,) each."""
        return self.residuals(self.model.fields(self.tasks))

    def linearize(
        self, parameters: Sequence[Tensor], check: bool = False, names: Any = None
    ) -> Linearization:
        """r and J with respect to parameters of the hypernetwork.

        Args:
            parameters: all of them, or some (those of the last layer: `model.network.layers[-1]`).
            check: also compare J^T r with autograd's gradient, parameter by parameter.
            names: of the parameters, for errors.

        Raises:
            RuntimeError: where the residuals' rows cannot be told apart, found by the check.
        """
        with torch.enable_grad():
            rows = task_rows(self)
            exact = GeneratedLinearization(self, list(parameters), rows)
            if check:
                check_gradient(self, exact, names)
        if self.signs is None:
            return exact
        generator = Generator().manual_seed(self.seed)
        return SketchedLinearization(exact, self.signs, generator)


@dataclass(frozen=True)
class TaskRows:
    """r and d r / d theta, stacked and scaled as in `Linearization`.

    Attributes:
        residual: (R,).
        rows: j_n, (R, size).
        task: t(n), (R,).
    """

    residual: Tensor
    rows: Tensor
    task: Tensor


class GeneratedLinearization(Linearization):
    """Residual and Jacobian with respect to the hypernetwork's parameters, exact."""

    def __init__(self, closure: TaskResiduals, parameters: list[Tensor], found: TaskRows) -> None:
        self.closure, self.found = closure, found
        repeated, count = closure.tasks[found.task], len(found.residual)

        def pulled_back() -> Tensor:
            """sqrt(R) (r_n + j_n . (theta_t - theta_t at the current point))."""
            change = (closure.model.factors(repeated) * found.rows).sum(1)
            return count**0.5 * (change - change.detach() + found.residual)

        plain = linearize(pulled_back, parameters)
        super().__init__(parameters, plain.terms, plain.loss)

    @cached_property
    def layers(self) -> list[tuple[Layer, Tensor, Tensor]]:
        """Each layer, inputs [z; 1] of its tasks (T, d_in + 1) and g (R, d_out), scaled."""
        (term,) = self.terms
        firsts, found = first_rows(self.found.task, len(self.closure.tasks)), []
        for jacobian in term.blocks.values():
            assert isinstance(jacobian, LayerJacobian), "a hypernetwork is made of linear layers"
            layer, z = jacobian.layer, jacobian.inputs.z[0, firsts]
            columns = [z] * (layer.weight is not None)
            columns += [torch.ones_like(z[:, :1])] * (layer.bias is not None)
            found.append((layer, torch.cat(columns, dim=1), term.scale * jacobian.g[0]))
        return found

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v: the inputs of a task meet the weights once."""
        if v.ndim > 1:
            return super().__matmul__(v)
        task = self.found.task
        parts = [(g * (z @ layer.matrix(v).T)[task]).sum(1) for layer, z, g in self.layers]
        return torch.stack(parts).sum(0)

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u: the rows of a task are summed before they meet its inputs."""
        out = u.new_zeros(self.size)
        for layer, z, g in self.layers:
            summed = g.new_zeros(len(z), g.shape[1])
            summed.index_add_(0, self.found.task, u[:, None] * g)
            layer.write(summed.T @ z, out)
        return out

    def kernel(self) -> Tensor:
        """J J^T, shape (R, R), with the products of z task by task."""
        task = self.found.task
        kernel = self.residual.new_zeros(len(task), len(task))
        for _, z, g in self.layers:
            add_symmetric(kernel, g, z @ z.T, task)
        return kernel


class SketchedLinearization(Linearization):
    """Curvature from sign vectors: tangents of K terms of T points, for Kronecker factors.

    With eps in {+-1}^R drawn K times, s_kt = sum_{n of t} eps_kn r_n has E[J_s^T J_s] / K = J^T J,
    the blocks between tasks included in neither. Whatever is read in another way than through the
    tangents (residual, gradient, rows, products, Gramian, kernel) is exact.
    """

    def __init__(self, exact: GeneratedLinearization, count: int, generator: Generator) -> None:
        self.exact = exact
        closure, found = exact.closure, exact.found
        tasks = len(closure.tasks)
        sketches = [sketch(found, tasks, generator) for _ in range(count)]

        def pulled_back() -> dict[str, Tensor]:
            theta = closure.model.factors(closure.tasks)
            scale = (tasks / count) ** 0.5
            return {f"signs {k}": scale * (theta * rows).sum(1) for k, rows in enumerate(sketches)}

        tangents = linearize(pulled_back, exact.parameters).terms
        super().__init__(exact.parameters, [renamed(t, exact.blocks) for t in tangents], exact.loss)
        self.residual, self.gradient = exact.residual, exact.gradient

    def __matmul__(self, v: Tensor) -> Tensor:
        return self.exact @ v

    def vjp(self, u: Tensor) -> Tensor:
        return self.exact.vjp(u)

    def split(self, u: Tensor) -> tuple[Tensor, ...]:
        return self.exact.split(u)

    def restrict(self, block: Block) -> Linearization:
        return self.exact.restrict(block)

    def rows(self, block: Block | None = None) -> Tensor:
        return self.exact.rows(block)

    def batches(
        self, size: int | None = None, block: Block | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        return self.exact.batches(size, block)

    def gramian(self, block: Block | None = None) -> Tensor:
        return self.exact.gramian(block)

    def gramian_diagonal(self) -> Tensor:
        return self.exact.gramian_diagonal()

    def kernel(self) -> Tensor:
        return self.exact.kernel()


def renamed(tangent: TermJacobian, blocks: Sequence[Block]) -> TermJacobian:
    """The tangent of one linearisation by the blocks of another of the same parameters."""
    own = {tuple(map(id, block.parameters)): block for block in blocks}
    found = {own[tuple(map(id, b.parameters))]: j for b, j in tangent.blocks.items()}
    return replace(tangent, blocks=found)


class TaskCapture(TorchFunctionMode):
    """Records every use of `task_linear`: the weight, the input, the place of the output."""

    def __init__(self) -> None:
        super().__init__()
        self.uses: list[tuple[Tensor, Tensor, GradientEdge]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        jet = bool(args) and isinstance(args[0], Jet)
        # A method of Tensor does not see for itself that its `self` is a jet.
        call = handle_torch_function if jet else func
        output = call(*((func, args[:1]) if jet else ()), *args, **kwargs)
        if func is task_linear:
            rows = [value.data if jet else value[None] for value in (args[0], output)]
            edge = output.data if jet else output
            self.uses.append((args[1], rows[0].detach(), get_gradient_edge(edge)))
        return output


def task_rows(closure: TaskResiduals) -> TaskRows:
    """One pass through the PINNs of all tasks, one backward pass a residual."""
    theta = closure.model.factors(closure.tasks).detach().requires_grad_()
    fields = Fields(closure.model, theta, closure.model.space.offset(closure.tasks))
    with TaskCapture() as capture:
        residuals = [r.reshape(-1) for r in closure.residuals(fields).values()]
    if not capture.uses:
        raise RuntimeError(
            "the residuals do not evaluate the tasks' networks: they have no rows. Regression on "
            "weights takes one of torch's optimizers, by `Published`, or `by_weights(train=None)`"
        )
    scales = [len(r) ** -0.5 for r in residuals]
    rows = [s * rows_of(r, theta, fields, capture) for s, r in zip(scales, residuals, strict=True)]
    every = torch.arange(len(theta), device=theta.device)
    return TaskRows(
        torch.cat([s * r.detach() for s, r in zip(scales, residuals, strict=True)]),
        torch.cat(rows),
        torch.cat([every.repeat_interleave(len(r) // len(theta)) for r in residuals]),
    )


def rows_of(residual: Tensor, theta: Tensor, fields: Fields, capture: TaskCapture) -> Tensor:
    """d r_n / d theta_t(n) of one residual, (N, size): each layer from its z and g."""
    edges = [edge for *_, edge in capture.uses]
    gradients = torch.autograd.grad(residual.sum(), edges, retain_graph=True, allow_unused=True)
    rows = residual.new_zeros(len(residual), theta.shape[1])
    parts = fields.hyper.split(rows), fields.hyper.split(theta.detach())
    for layer, (weight, _), out, own in zip(fields.layers, fields.weights, *parts, strict=True):
        for (used, z, _), g in zip(capture.uses, gradients, strict=True):
            if used is weight and g is not None:
                g = g if g.ndim == 3 else g[None]
                out += layer.emission.rows(own, z, g)
    return rows


def first_rows(task: Tensor, count: int) -> Tensor:
    """The first row n of each task, (T,); without waiting for a device."""
    rows = torch.arange(len(task), device=task.device)
    return rows.new_full((count,), len(task)).scatter_reduce_(0, task, rows, "amin")


def sketch(found: TaskRows, tasks: int, generator: Generator) -> Tensor:
    """sum_{n of t} eps_n j_n for one draw of signs, (T, size)."""
    signs = torch.randint(0, 2, (len(found.task),), generator=generator) * 2 - 1
    signed = found.rows * signs.to(found.rows)[:, None]
    return signed.new_zeros(tasks, signed.shape[1]).index_add_(0, found.task, signed)


def add_symmetric(
    kernel: Tensor, g: Tensor, shared: Tensor, task: Tensor, block: int = 512
) -> None:
    """K_nm += shared_t(n)t(m) g_n . g_m, the lower blocks computed and mirrored."""
    for start in range(0, len(g), block):
        here, upto = slice(start, start + block), slice(0, start + block)
        part = (g[here] @ g[upto].T).mul_(shared[task[here]][:, task[upto]])
        kernel[here, upto] += part
        kernel[:start, here] += part[:, :start].T


def check_gradient(closure: TaskResiduals, found: Linearization, names: Any) -> None:
    """J^T r against autograd's gradient of the loss, parameter by parameter."""
    expected = torch.autograd.grad(
        total_loss(closure()), found.parameters, allow_unused=True, materialize_grads=True
    )
    names = names or [f"{i} of shape {tuple(p.shape)}" for i, p in enumerate(found.parameters)]
    size = max(float(e.norm()) for e in expected)
    for name, mine, right in zip(names, found.unflatten(found.gradient), expected, strict=True):
        if (mine - right).norm() > 1e-6 * size + 1e-3 * right.norm():
            raise RuntimeError(
                f"the gradient of parameter {name} of the hypernetwork does not match autograd's: "
                "some operation of the base or of the residuals mixes points (BatchNorm, a mean "
                "over the points), or the base uses an adapted weight more than as a linear layer"
            )
