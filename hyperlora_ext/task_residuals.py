"""Residuals of many tasks whose weights a network emits, as a closure that linearises itself.

A residual r_n of task t depends on the hypernetwork's parameters phi only through theta_t =
H(task_t; phi). With its row j_n = d r_n / d theta_t,

    d r_n / d phi = d (j_n . H(task_t(n); phi)) / d phi,   j_n held constant:

a plain residual of the hypernetwork at R points, which kfac_pinn linearises in factored form. The
rows cost one backward pass a residual: every point is lent a copy of its task's numbers, so that
the gradient at the copies is j_n. Rows of one task share the inputs z of every layer of the
hypernetwork, so that its kernel is

    K_nm = sum_l (z_l,t(n) . z_l,t(m) + 1) (g_l,n . g_l,m)

with T x T products of the z. Nothing of length |phi| is formed for a row.

Shape letters: T tasks, R stacked residuals, size: the numbers emitted for a task.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from hyperlora_ext.hyper import Fields, HyperLoRA
from kfac_pinn import Linearization, linearize
from kfac_pinn.jacobian.blocks import LayerJacobian
from kfac_pinn.jacobian.layers import Block, Layer

__all__ = ["EmittedLinearization", "TaskResiduals"]

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
    """

    model: HyperLoRA
    tasks: Tensor
    residuals: Callable[[Function], Mapping[str, Tensor]]

    def __call__(self) -> Mapping[str, Tensor]:
        """The residuals by name, (T n_k,) each."""
        return self.residuals(self.model.fields(self.tasks))

    def linearize(self, parameters: Sequence[Tensor]) -> Linearization:
        """r and J with respect to parameters of the hypernetwork, all or some of them.

        Raises:
            RuntimeError: where the residuals' rows cannot be told apart.
        """
        with torch.enable_grad():
            return EmittedLinearization(self, list(parameters), task_rows(self))


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


class CopiedFields(Fields):
    """u of T tasks with a copy of theta for every point; the gradient at a copy is a row.

    Attributes:
        copies: theta of every point, (T n, size), one entry an evaluation.
    """

    def __init__(self, hyper: HyperLoRA, theta: Tensor, offsets: Tensor) -> None:
        super().__init__(hyper, theta.detach(), offsets)
        self.copies: list[Tensor] = []

    def lent(self, points: int) -> Tensor:
        # A copy a point: the gradient at a shared theta would be the sum of all rows
        copies = self.theta.repeat_interleave(points // len(self.theta), dim=0)
        self.copies.append(copies.requires_grad_())
        return copies

    def rows(self, name: str, residual: Tensor) -> Tensor:
        """d r_n / d theta_t(n), (N, size)."""
        if not residual.requires_grad:
            raise RuntimeError(NO_ROWS.format(name=name))
        # The sum of all residuals: no point reads another's copy
        found = torch.autograd.grad(
            residual.sum(), self.copies, retain_graph=True, allow_unused=True
        )
        used = [rows for rows in found if rows is not None]
        for rows in used:
            if len(rows) != len(residual):
                raise RuntimeError(
                    f"residual {name!r} has {len(residual)} entries but evaluates the networks at "
                    f"{len(rows)} points: its rows cannot be told apart. Evaluate u once for "
                    "every place an entry reads, at as many points as there are entries"
                )
        return torch.stack(used).sum(0)


NO_ROWS = (
    "residual {name!r} does not evaluate the tasks' networks (it carries no gradient): it has no "
    "rows. Regression on weights takes one of torch's optimizers"
)


def task_rows(closure: TaskResiduals) -> TaskRows:
    """One pass through the PINNs of all tasks, one backward pass a residual."""
    model, tasks = closure.model, closure.tasks
    fields = CopiedFields(model, model.factors(tasks), model.space.offset(tasks))
    residuals = {name: r.reshape(-1) for name, r in closure.residuals(fields).items()}
    scales = [len(r) ** -0.5 for r in residuals.values()]
    rows = [s * fields.rows(*pair) for s, pair in zip(scales, residuals.items(), strict=True)]
    every = torch.arange(len(tasks), device=fields.theta.device)
    return TaskRows(
        torch.cat([s * r.detach() for s, r in zip(scales, residuals.values(), strict=True)]),
        torch.cat(rows),
        torch.cat([every.repeat_interleave(len(r) // len(tasks)) for r in residuals.values()]),
    )


@dataclass(frozen=True)
class SharedLayer:
    """A layer of the hypernetwork whose inputs all rows of a task have in common.

    Attributes:
        layer: which parameters.
        z: inputs [z; 1] of each task, the trained columns, (T, d_in + 1).
        g: d r_n / d y_n, scaled, (R, d_out).
    """

    layer: Layer
    z: Tensor
    g: Tensor


class EmittedLinearization(Linearization):
    """Residual and Jacobian with respect to the hypernetwork's parameters, exact."""

    def __init__(self, closure: TaskResiduals, parameters: list[Tensor], found: TaskRows) -> None:
        self.closure, self.found = closure, found
        repeated, count = closure.tasks[found.task], len(found.residual)

        def pulled_back() -> Tensor:
            """sqrt(R) (r_n + j_n . (theta_t - theta_t at the current point))."""
            # Rows are constant: their own derivatives in phi are of second order in the step
            change = (closure.model.factors(repeated) * found.rows).sum(1)
            # sqrt(R): rows are scaled already, and `linearize` will divide by it
            return count**0.5 * (change - change.detach() + found.residual)

        plain = linearize(pulled_back, parameters)
        super().__init__(parameters, plain.terms, plain.loss)

    @cached_property
    def layers(self) -> dict[Block, SharedLayer]:
        """The layers that are applied once a row, to what all rows of a task share."""
        (term,) = self.terms
        firsts = first_rows(self.found.task, len(self.closure.tasks))
        found: dict[Block, SharedLayer] = {}
        for block, jacobian in term.blocks.items():
            # One use a row: with more, the inputs of a task are not all that its rows share
            if isinstance(jacobian, LayerJacobian) and len(jacobian.g) == 1:
                inputs = jacobian.inputs.extended[0, firsts][:, jacobian.layer.columns]
                found[block] = SharedLayer(jacobian.layer, inputs, term.scale * jacobian.g[0])
        return found

    def __matmul__(self, v: Tensor) -> Tensor:
        """J v: the inputs of a task meet the weights once."""
        if v.ndim > 1:
            return super().__matmul__(v)
        (term,), task = self.terms, self.found.task
        product = v.new_zeros(len(task))
        for block, jacobian in term.blocks.items():
            if shared := self.layers.get(block):
                product += (shared.g * (shared.z @ shared.layer.matrix(v).T)[task]).sum(1)
            else:
                product += term.scale * jacobian.jvp(v)
        return product if term.rest is None else product + term.scale * term.rest.jvp(v)

    def vjp(self, u: Tensor) -> Tensor:
        """J^T u: the rows of a task are summed before they meet its inputs."""
        (term,), out = self.terms, u.new_zeros(self.size)
        for block, jacobian in term.blocks.items():
            if shared := self.layers.get(block):
                # Summed over a task's rows first: T outer products in place of R
                summed = u.new_zeros(len(shared.z), shared.g.shape[1])
                summed.index_add_(0, self.found.task, u[:, None] * shared.g)
                shared.layer.write(summed.T @ shared.z, out)
            else:
                jacobian.add_vjp(term.scale * u, out)
        if term.rest is not None:
            term.rest.add_vjp(term.scale * u, out)
        return out

    def kernel(self) -> Tensor:
        """J J^T, shape (R, R), with the products of z task by task."""
        task = self.found.task
        kernel = self.residual.new_zeros(len(task), len(task))
        for block in self.blocks:
            if shared := self.layers.get(block):
                add_symmetric(kernel, shared.g, shared.z @ shared.z.T, task)
            else:
                kernel += self.restrict(block).kernel()
        return kernel


def first_rows(task: Tensor, count: int) -> Tensor:
    """The first row n of each task, (T,); without waiting for a device."""
    rows = torch.arange(len(task), device=task.device)
    return rows.new_full((count,), len(task)).scatter_reduce_(0, task, rows, "amin")


def add_symmetric(
    kernel: Tensor, g: Tensor, shared: Tensor, task: Tensor, block: int = 512
) -> None:
    """K_nm += shared_t(n)t(m) g_n . g_m, the lower blocks computed and mirrored."""
    for start in range(0, len(g), block):
        here, upto = slice(start, start + block), slice(0, start + block)
        part = (g[here] @ g[upto].T).mul_(shared[task[here]][:, task[upto]])
        kernel[here, upto] += part
        # The blocks above the diagonal by symmetry: half of the products
        kernel[:start, here] += part[:, :start].T
