"""Recurrent networks, unrolled: their gates are linear layers."""

# ruff: noqa: D103  (a rule does what the torch function above it does)

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from kfac_pinn.taylor_mode.rule_table import rule
from kfac_pinn.taylor_mode.rules.registration import Operand

State: TypeAlias = tuple[Operand, ...]  # (h,), or (h, c)
Weights: TypeAlias = Sequence[Any]  # w_ih, w_hh, then b_ih and b_hh, then w_hr, if there are such
Step: TypeAlias = Callable[[Operand, Operand, State], State]  # gates of x and of h, state -> state


def lstm_step(of_x: Operand, of_h: Operand, state: State) -> State:
    """c' = sigma(f) c + sigma(i) tanh(g), h' = sigma(o) tanh(c')."""
    i, f, g, o = torch.chunk(of_x + of_h, 4, -1)
    c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


def gru_step(of_x: Operand, of_h: Operand, state: State) -> State:
    """n = tanh(n_x + sigma(r) n_h), h' = n + sigma(z) (h - n)."""
    (r_x, z_x, n_x), (r_h, z_h, n_h) = (torch.chunk(each, 3, -1) for each in (of_x, of_h))
    n = torch.tanh(n_x + torch.sigmoid(r_x + r_h) * n_h)
    return (n + torch.sigmoid(z_x + z_h) * (state[0] - n),)


def tanh_step(of_x: Operand, of_h: Operand, state: State) -> State:
    """h' = tanh(x + h)."""
    return (torch.tanh(of_x + of_h),)


def relu_step(of_x: Operand, of_h: Operand, state: State) -> State:
    """h' = max(x + h, 0)."""
    return (torch.relu(of_x + of_h),)


# --- one step ---------------------------------------------------------------------------------


@rule(torch.lstm_cell)
def lstm_cell(x: Operand, state: State, *weights: Any) -> State:
    return lstm_step(*gates(x, state[0], weights), tuple(state))


def cell(step: Step, x: Operand, h: Operand, *weights: Any) -> Operand:
    """A cell whose state is h alone."""
    return step(*gates(x, h, weights), (h,))[0]


def gates(x: Operand, h: Operand, weights: Weights) -> tuple[Operand, Operand]:
    """W_ih x + b_ih and W_hh h + b_hh."""
    w_ih, w_hh, b_ih, b_hh = with_biases(weights)
    return F.linear(x, w_ih, b_ih), F.linear(h, w_hh, b_hh)


def with_biases(weights: Weights) -> Weights:
    """w_ih, w_hh, b_ih, b_hh; None for biases that are not there, without a projection."""
    paired = list(weights[: len(weights) // 2 * 2])
    return paired + [None] * (4 - len(paired))


# --- sequences --------------------------------------------------------------------------------


def unrolled(
    step: Step, x: Operand, state: Any, weights: Weights, has_biases: bool, num_layers: int,
    dropout: float, train: bool, bidirectional: bool, batch_first: bool = False,
) -> tuple[Operand, ...]:  # fmt: skip
    """All layers of a recurrent module: the outputs (T, N, h), and the last states by layer."""
    if isinstance(state, Tensor) and not state.is_floating_point():  # the sizes of the batches
        raise NotImplementedError(
            "a packed sequence of jets: pass the padded sequence, one length for all points"
        )
    states = [tuple(each) for each in zip(*(e.unbind(0) for e in as_tuple(state)), strict=True)]
    size = len(weights) // len(states)
    lines = [weights[i * size : (i + 1) * size] for i in range(len(states))]
    x = x.transpose(0, 1) if batch_first else x
    last: list[State] = []
    directions = 1 + bidirectional
    for layer in range(num_layers):
        x = F.dropout(x, dropout, train) if layer and dropout else x
        here = range(layer * directions, (layer + 1) * directions)
        runs = [run(step, x, states[i], lines[i], i % directions == 1) for i in here]
        x = torch.cat([outputs for outputs, _ in runs], -1)
        last += [end for _, end in runs]
    ends = [torch.stack(each) for each in zip(*last, strict=True)]
    return (x.transpose(0, 1) if batch_first else x, *ends)


def run(step: Step, x: Operand, state: State, weights: Weights, back: bool) -> tuple[Any, State]:
    """One layer in one direction of time."""
    projection = weights[-1] if len(weights) % 2 else None
    w_ih, w_hh, b_ih, b_hh = with_biases(weights)
    of_x, outputs = F.linear(x, w_ih, b_ih).unbind(0), []
    for each in reversed(of_x) if back else of_x:
        state = step(each, F.linear(state[0], w_hh, b_hh), state)
        if projection is not None:
            state = F.linear(state[0], projection), *state[1:]
        outputs.append(state[0])
    return torch.stack(outputs[::-1] if back else outputs), state


def as_tuple(state: Any) -> State:
    """The states h, or h and c."""
    return tuple(state) if isinstance(state, (list, tuple)) else (state,)


for _module, _cell, _step in (
    (torch.lstm, None, lstm_step),
    (torch.gru, torch.gru_cell, gru_step),
    (torch.rnn_tanh, torch.rnn_tanh_cell, tanh_step),
    (torch.rnn_relu, torch.rnn_relu_cell, relu_step),
):
    rule(_module)(partial(unrolled, _step))
    if _cell is not None:
        rule(_cell)(partial(cell, _step))
