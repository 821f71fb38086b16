"""Damped Gauss-Newton steps of the published problems with three digits more than float64 has.

Everything is in numpy's longdouble (eps = 1e-19 where the processor offers it): derivatives of the
network by forward mode, in space and in the parameters at once, and the solve by Householder
reflections of J itself. Nothing of the package is used.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

Array = np.ndarray
Data = dict[str, Array]
AVAILABLE = np.finfo(np.longdouble).eps < 1e-18
SIZES = (16, 8, 1)


def system(problem: str, data: Data, theta: Array) -> tuple[Array, Array]:
    """r (R,) and J (R, P), stacked and scaled by 1 / sqrt(N) like those of a `Linearization`."""
    x, y, xb, yb = (data[key].astype(np.longdouble) for key in ("X", "y", "Xb", "yb"))
    r, J = EQUATIONS[problem](x, y[:, 0], theta)
    u, _, _ = jets(xb, theta)
    parts = [(r, J), (u[..., 0] - yb[:, 0], u[..., 1:])]
    scales = [1 / np.sqrt(np.longdouble(len(r))) for r, _ in parts]
    residual = np.concatenate([s * r for s, (r, _) in zip(scales, parts, strict=True)])
    return residual, np.concatenate([s * J for s, (_, J) in zip(scales, parts, strict=True)])


def damped_step(J: Array, r: Array, damping: float) -> Array:
    """-(J^T J + lambda I)^-1 J^T r, the shortest (p, q) with J p + sqrt(lambda) q = -r.

    With (J, sqrt(lambda) I)^T = Q R that is -Q R^-T r: no squared condition number.
    """
    rows, columns = J.shape
    tall = np.concatenate([J.T, np.sqrt(np.longdouble(damping)) * np.eye(rows, dtype=J.dtype)])
    mirrors = []
    for k in range(rows):
        v = tall[k:, k].copy()
        v[0] += np.copysign(np.sqrt(v @ v), v[0])
        v /= np.sqrt(v @ v)
        tall[k:, k:] -= 2 * np.outer(v, v @ tall[k:, k:])
        mirrors.append(v)
    y = np.zeros(len(tall), J.dtype)
    for k in range(rows):  # R^T y = r
        y[k] = (r[k] - tall[:k, k] @ y[:k]) / tall[k, k]
    for k in reversed(range(rows)):
        y[k:] -= 2 * mirrors[k] * (mirrors[k] @ y[k:])
    return -y[:columns]


def poisson(x: Array, y: Array, theta: Array) -> tuple[Array, Array]:
    _, _, second = jets(x, theta)
    r = second.sum(0)
    return r[..., 0] + y, r[..., 1:]


def heat(x: Array, y: Array, theta: Array) -> tuple[Array, Array]:
    _, first, second = jets(x, theta)
    r = first[0] - second[1] / 4
    return r[..., 0], r[..., 1:]


def log_fokker_planck(x: Array, y: Array, theta: Array) -> tuple[Array, Array]:
    _, (q_t, *q_x), second = jets(x, theta)
    slope, place = np.stack(q_x), x.T[1:, :, None]
    linear = q_t - (slope * place).sum(0) / 2 - second[1:].sum(0)
    value = linear[..., 0] - np.longdouble(3) / 2 - (slope[..., 0] ** 2).sum(0)
    return value, linear[..., 1:] - 2 * (slope[..., :1] * slope[..., 1:]).sum(0)


EQUATIONS = {"poisson2d": poisson, "heat1d": heat, "logfokkerplanck3d": log_fokker_planck}


def jets(x: Array, theta: Array) -> tuple[Array, Array, Array]:
    """u (N, 1+P), du/dx_i and d2u/dx_i2 (d, N, 1+P), each before its P parameter derivatives."""
    theta, (N, d) = theta.astype(np.longdouble), x.shape
    u = np.zeros((N, d, 1 + len(theta)), np.longdouble)
    u[..., 0] = x
    u1 = np.zeros((d, *u.shape), np.longdouble)
    u1[np.arange(d), :, np.arange(d), 0] = 1
    u2 = np.zeros_like(u1)
    for k, (weight, bias, start) in enumerate(layers(theta, d)):
        if k > 0:
            u, u1, u2 = tanh(u, u1, u2)
        u, u1, u2 = (linear(v, weight, start) for v in (u, u1, u2))
        u[..., 0] += bias
        out = len(bias)
        u[:, np.arange(out), 1 + start + weight.size + np.arange(out)] += 1
    return u[:, 0], u1[:, :, 0], u2[:, :, 0]


def layers(theta: Array, d_in: int) -> Iterator[tuple[Array, Array, int]]:
    """Weight, bias and where they begin in the flat vector."""
    start = 0
    for d_out in SIZES:
        end = start + d_out * d_in
        yield theta[start:end].reshape(d_out, d_in), theta[end : end + d_out], start
        start, d_in = end + d_out, d_out


def linear(v: Array, weight: Array, start: int) -> Array:
    """W v, with the derivative v of each weight."""
    y = np.einsum("oi,...ip->...op", weight, v)
    d_out, d_in = weight.shape
    for row in range(d_out):
        first = 1 + start + row * d_in
        y[..., row, first : first + d_in] += v[..., 0]
    return y


def tanh(u: Array, u1: Array, u2: Array) -> tuple[Array, Array, Array]:
    """h(u), h' u_i and h'' u_i^2 + h' u_ii, with h' = 1 - h^2 and h'' = -2 h h'."""
    value = np.tanh(u[..., :1])
    h = np.concatenate([value, (1 - value**2) * u[..., 1:]], axis=-1)
    slope = -times(h, h)
    slope[..., 0] += 1
    bend = -2 * times(h, slope)
    return h, times(slope, u1), times(bend, times(u1, u1)) + times(slope, u2)


def times(a: Array, b: Array) -> Array:
    """The product of values, and its parameter derivatives by the product rule."""
    product = a[..., :1] * b + b[..., :1] * a
    product[..., 0] /= 2
    return product
