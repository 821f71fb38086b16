"""What calls of `backward()` were about, and their graphs kept alive.

`Tensor.backward` frees the graph that residuals are read from, and closures of other codebases call
it. While anyone watches, `torch.autograd.backward` (which `Tensor.backward` calls) is wrapped.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["BackwardWatch", "depends_on", "pass_on"]


class BackwardWatch:
    """Collects the scalars on which `backward()` is called.

    Calls with `create_graph=True` or `inputs=` are derivatives, not training: they are left alone.

    Args:
        parameters: of the optimizer.
        run: True: backward does its work but keeps the graph. False: it is skipped, and parameters
            without a gradient get a zero one, for code that reads it.

    Attributes:
        losses: those scalars, in order.
        versions: of the parameters' gradients after the last of those calls.
        values: versions of the parameters themselves at that time.
        taken: whether another optimizer has stepped on those losses, and moved what they read.
    """

    def __init__(self, parameters: Iterable[Tensor] = (), run: bool = True) -> None:
        self.parameters, self.run = list(parameters), run
        self.losses: list[Tensor] = []
        self.versions: list[int] = []
        self.values: list[int] = []
        self.taken = False

    def start(self) -> None:
        """Watch from now on."""
        # Installed for as long as anyone watches: other code finds torch as it was
        if not WATCHES:
            torch.autograd.backward = watched
        if self not in WATCHES:
            WATCHES.append(self)

    def stop(self) -> None:
        """Watch no longer."""
        if self in WATCHES:
            WATCHES.remove(self)
        if not WATCHES and torch.autograd.backward is watched:
            torch.autograd.backward = ORIGINAL

    def clear(self) -> None:
        """Forget the losses, and let their graphs go."""
        self.losses.clear()

    @property
    def loss(self) -> Tensor | None:
        """Their sum, or None if there was none."""
        if not self.losses:
            return None
        return torch.stack([loss.reshape(()) for loss in self.losses]).sum()

    @property
    def gradients_were_changed(self) -> bool:
        """Whether the gradients were changed in place since: clipped, for one."""
        now = [p.grad._version for p in self.parameters if p.grad is not None]
        return bool(self.losses) and not self.run and now != self.versions

    def __enter__(self) -> BackwardWatch:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def saw(self, losses: Sequence[Tensor], weights: Sequence[Tensor | None]) -> None:
        """Remember a call of backward."""
        self._forget_stale()
        self.taken = False
        pairs = zip(losses, weights, strict=True)
        weighted = [loss if weight is None else loss * weight for loss, weight in pairs]
        self.losses += [each for each in weighted if not self.run or self._concerns(each)]
        if not self.run:
            for p in self.parameters:
                # Code that clips or averages gradients after backward() would meet None
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            # torch counts changes in place: clipping shows without a copy of the gradients
            self.versions = [p.grad._version for p in self.parameters if p.grad is not None]

    def _concerns(self, loss: Tensor) -> bool:
        """Whether it is a loss of these parameters, not of another model in the same process."""
        return not self.parameters or depends_on(loss, self.parameters)

    def _forget_stale(self) -> None:
        """Losses of parameters that moved since, by another optimizer, are no part of a step."""
        # A GAN's losses, say: the other network's optimizer has stepped since, and these are stale
        values = [p._version for p in self.parameters]
        if values != self.values:
            self.clear()
        self.values = values


def pass_on(
    losses: Sequence[Tensor], parameters: Iterable[Tensor], differentiated: Collection[int]
) -> list[tuple[Tensor, Tensor]]:
    """Add to `.grad` of leaves that somebody else trains what `backward()` would have added.

    Adaptive weights of the loss, say, which another optimizer raises (McClenny & Braga-Neto, 2020).
    Points that the closure differentiates by are none.

    Args:
        losses: on which `backward()` was called and skipped, with their graphs.
        parameters: of our optimizer.
        differentiated: ids of what derivatives were taken by.

    Returns:
        Those leaves, each with its gradient.
    """
    ours = {*map(id, parameters), *differentiated}
    found: dict[int, Tensor] = {}
    for loss in losses:
        others = {id(leaf): leaf for leaf in leaves(loss) if id(leaf) not in ours}
        found |= others
        if others:
            # The real backward, for these leaves alone: ours keep their gradient
            ORIGINAL(loss, retain_graph=True, inputs=list(others.values()))
    return [(leaf, leaf.grad) for leaf in found.values() if leaf.grad is not None]


def leaves(root: Tensor) -> Iterator[Tensor]:
    """Those of a tensor's graph."""
    # A stack, not recursion: graphs of derivatives are deeper than Python allows
    seen, stack = set(), [root.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
        stack.extend(parent for parent, _ in node.next_functions)


def depends_on(root: Tensor, parameters: Iterable[Tensor]) -> bool:
    """Whether the graph of a tensor ends in one of the parameters."""
    wanted = {id(p) for p in parameters}
    return any(id(leaf) in wanted for leaf in leaves(root))


WATCHES: list[BackwardWatch] = []
ORIGINAL = torch.autograd.backward
# What torch says, and what to write.
COMPILED = (
    "donated buffers",
    "a model that was compiled before this optimizer was made, whose backward pass therefore runs "
    "only once. Hand step a closure, optimizer.step(closure), or have the model compiled anew: "
    "torch.compiler.reset() once the optimizer is made",
)


def watched(
    tensors: Any,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    grad_variables: Any = None,
    inputs: Any = None,
) -> None:
    """`torch.autograd.backward` while someone watches: graphs stay."""
    losses = [tensors] if isinstance(tensors, Tensor) else tensors
    # Anything else is a derivative inside of a residual
    training = (
        not create_graph
        and inputs is None
        and grad_variables is None
        and isinstance(losses, (list, tuple))
        and all(isinstance(t, Tensor) and t.numel() == 1 and t.requires_grad for t in losses)
    )
    if not training:
        # Kept even if the caller does not care: residuals are still to be read from it
        keep = True if retain_graph is None else retain_graph
        ORIGINAL(tensors, grad_tensors, keep, create_graph, grad_variables, inputs)
        return
    single = grad_tensors is None or isinstance(grad_tensors, Tensor)
    weights = [grad_tensors] * len(losses) if single else list(grad_tensors)
    for watch in WATCHES:
        watch.saw(losses, weights)
    if all(watch.run for watch in WATCHES):
        try:
            ORIGINAL(tensors, grad_tensors, True, create_graph, inputs=inputs)
        except RuntimeError as error:
            if COMPILED[0] in str(error):
                raise RuntimeError(f"{COMPILED[1]} (torch: {error})") from error
            raise
