"""Every rule of the table against nested reverse-mode autograd, to fourth order."""

# ruff: noqa: E501  (one program a line)

from __future__ import annotations

import inspect
import math

import pytest
import torch
import torch.nn.functional as F
from nested_autograd import derivatives_along_lines
from torch import nn
from torch.overrides import TorchFunctionMode

from kfac_pinn.taylor_mode.jets import Jet
from kfac_pinn.taylor_mode.operators import taylor
from kfac_pinn.taylor_mode.rule_table import RULES
from kfac_pinn.taylor_mode.rules import elementwise, linear, rule

N, d, D = 3, 4, 3
f64 = torch.float64


def constant(*shape, seed=7):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=f64) + 0.3


W, b, row, col = constant(5, d), constant(5), constant(d), constant(N, 1)
MATRIX, MASK = constant(d, d), constant(N, d) > 0.8
INDEX = torch.tensor([2, 0, 2])

# Functions of one variable: x -> f(x) on entries in (0.1, 0.9), and on negative ones.
POSITIVE = [
    torch.log, torch.log1p, torch.log2, torch.log10, torch.sqrt, torch.rsqrt, torch.reciprocal,
    torch.asin, torch.acos, torch.atanh, lambda x: torch.acosh(x + 1.2), lambda x: x**1.7,
    torch.arcsin, torch.arccos, torch.arctanh, lambda x: torch.arccosh(x + 1.2), torch.arcsinh,
    torch.arctan, torch.absolute,
    lambda x: x**-2, lambda x: 2.0**x, lambda x: x**x, lambda x: torch.pow(row, x),
    lambda x: x**row, lambda x: torch.float_power(x, 2.5),
    torch.lgamma, torch.digamma, lambda x: torch.polygamma(1, x), lambda x: x.polygamma(2),
    torch.special.entr, torch.logit, lambda x: torch.logit(x, 0.3), torch.special.ndtri,
    lambda x: torch.xlogy(x, 1 + x) + torch.xlogy(row, x), lambda x: torch.special.xlog1py(x, x),
]  # fmt: skip


def either(of_jets, of_tensors):
    """A function that autograd does not differentiate (or wrongly), and what it is in others."""
    return lambda x: of_jets(x) if isinstance(x, Jet) else of_tensors(x)


ANY_SIGN = [
    torch.exp, torch.expm1, torch.exp2, torch.sin, torch.cos, torch.tan, torch.sinh, torch.cosh,
    torch.atan, torch.asinh, torch.erf, torch.erfc, torch.square, torch.abs, torch.tanh,
    torch.sigmoid, F.logsigmoid, F.softplus, lambda x: F.softplus(x, beta=3.0, threshold=1.5),
    F.silu, F.mish, F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.elu,
    lambda x: F.elu(x, alpha=0.7), lambda x: F.celu(x, 0.5), F.selu, F.relu, F.relu6, F.hardtanh,
    lambda x: F.leaky_relu(x, 0.2), lambda x: F.relu(x) ** 3, F.softsign, F.tanhshrink, torch.sign,
    lambda x: torch.round(x) + torch.floor(x) * x + x.ceil() + x.trunc(), lambda x: x**3, lambda x: x**0, lambda x: x**1,
    lambda x: F.prelu(x, constant(1)), lambda x: F.prelu(x, row), torch.positive, torch.neg,
    lambda x: torch.erfinv(x / 2), torch.special.ndtr, torch.special.log_ndtr, torch.special.erfcx,
    lambda x: torch.sinc(x) * torch.sinc(3 * x), torch.special.i0, torch.special.i1e, torch.deg2rad, torch.rad2deg,
    either(F.hardsigmoid, lambda x: F.relu6(x + 3) / 6), F.hardswish, F.hardshrink, F.softshrink, lambda x: F.threshold(x * x, 0.5, 2.0), F.rrelu,
    either(lambda x: x % 0.4, lambda x: x - 0.4 * torch.floor(x / 0.4)),
    either(lambda x: 2.0 % (x + 2) + torch.fmod(x, 0.4), lambda x: 2.0 - (x + 2) * (2 / (x + 2)).floor() + x - 0.4 * (x / 0.4).trunc()),
    lambda x: torch.frac(x) * x, either(lambda x: x // 0.3 * x + 2 // (2 + x), lambda x: (x / 0.3).floor() * x + (2 / (2 + x)).floor()), lambda x: torch.div(x, 0.3, rounding_mode="trunc") * x,
    torch.sgn, torch.angle, lambda x: torch.copysign(x, row - 0.5), lambda x: torch.ldexp(x, INDEX[:, None]),
    lambda x: torch.nan_to_num(torch.where(x > 0, x * x, math.nan), 3.0), either(lambda x: torch.heaviside(x, row) * x, lambda x: (x > 0) * x),
]  # fmt: skip


def in_place(x):
    if not isinstance(x, Jet):
        return out_of_place(x)  # autograd cannot differentiate all of this twice
    y = x * 2
    y += x
    y -= 0.1
    y *= row
    y /= 2
    y.tanh_().add_(x).mul_(0.5)
    F.relu(y, inplace=True)
    nn.SiLU(inplace=True)(y)
    y **= 2
    y[:, 1] = x[:, 0] * y[:, 2]
    y[:, 2:3] = 3.0
    y[MASK] = -1.0
    return y


def out_of_place(x):
    y = 0.5 * (torch.tanh((3 * x - 0.1) * row / 2) + x)
    y = F.silu(torch.relu(y)) ** 2
    y = torch.stack([y[:, 0], x[:, 0] * y[:, 2], 0 * x[:, 0] + 3.0, y[:, 3]], 1)
    return torch.where(MASK, -1.0, y)


def layer_norm(x, shape, weight=None, bias=None):
    if isinstance(x, Jet):
        return F.layer_norm(x, shape, weight, bias)
    # The third derivative of torch's own layer_norm is wrong (2.13: finite differences disagree).
    dims = tuple(range(-len(shape), 0))
    z = x - x.mean(dims, keepdim=True)
    z = z * torch.rsqrt((z * z).mean(dims, keepdim=True) + 1e-5)
    return z if weight is None else z * weight + bias


class Attention(nn.Module):
    def forward(self, x):
        q, k, v = x[:, :, None], torch.sin(x)[:, :, None], torch.cos(x)[:, :, None]
        return F.scaled_dot_product_attention(q, k, v)


norms = nn.ModuleDict(
    {
        "group": nn.GroupNorm(2, d),
        "batch": nn.BatchNorm1d(d).eval(),
        "conv1": nn.Conv1d(1, 2, 3, padding=1),
        "conv2": nn.Conv2d(1, 2, 2),
        "conv3": nn.Conv3d(1, 2, 1, bias=False),
        "bilinear": nn.Bilinear(d, d, 2),
    }
).to(f64)

torch.manual_seed(0)
modules = (
    nn.ModuleDict(
        {
            "lstm": nn.LSTM(1, 2, num_layers=2, bidirectional=True, batch_first=True),
            "projected": nn.LSTM(1, 3, proj_size=2, bias=False, batch_first=True),
            "gru": nn.GRU(1, 2, num_layers=2, bidirectional=True),
            "rnn": nn.RNN(1, 2, batch_first=True, bias=False),
            "relu rnn": nn.RNN(d, 2, nonlinearity="relu", batch_first=True),
            "lstm cell": nn.LSTMCell(d, 2),
            "gru cell": nn.GRUCell(d, 2),
            "rnn cell": nn.RNNCell(d, 2),
            "relu cell": nn.RNNCell(d, 2, nonlinearity="relu"),
            "attention": nn.MultiheadAttention(
                d, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True
            ),
            "unequal attention": nn.MultiheadAttention(d, 2, kdim=2, vdim=3),
            "encoder": nn.TransformerEncoderLayer(d, 2, 5, batch_first=True, activation="gelu"),
            "decoder": nn.TransformerDecoderLayer(d, 2, 5, batch_first=True, norm_first=True),
        }
    )
    .to(f64)
    .eval()
)


def distances(x, y, p=2.0):
    """torch.cdist, which autograd differentiates once only."""
    if isinstance(x, Jet):
        return torch.cdist(x, y, p)
    return torch.linalg.vector_norm(x[:, None] - y, p, -1)


def own_distances(x):
    if isinstance(x, Jet):
        return F.pdist(x)
    return torch.stack([distances(x[i : i + 1], x[j : j + 1]) for i, j in ((0, 1), (0, 2), (1, 2))])


class LayerNorm(nn.LayerNorm):
    def forward(self, x):
        return layer_norm(x, self.normalized_shape, self.weight, self.bias)


for name in ("encoder", "decoder"):
    for key, child in list(modules[name].named_children()):
        if isinstance(child, nn.LayerNorm):
            setattr(modules[name], key, LayerNorm(d).to(f64))


def instance_norm(x, weight, bias):
    if isinstance(x, Jet):
        return F.instance_norm(x, None, None, weight, bias)
    # Third derivatives of torch's own are wrong, as those of layer_norm.
    return layer_norm(x, x.shape[2:]) * weight[:, None] + bias[:, None]


ARITHMETIC = {
    "linear": lambda x: F.linear(x, W, b),
    "linear without bias": lambda x: F.linear(x, W),
    "linear with jet weights": lambda x: F.linear(constant(2, d), x, x[:, 0]),
    "linear with a jet bias": lambda x: F.linear(x, MATRIX, x),
    "add": lambda x: x + torch.sin(x) + row + 2 + (1 + x),
    "add alpha": lambda x: torch.add(x, x * x, alpha=3) + torch.add(row, x, alpha=2),
    "add broadcasts": lambda x: (x[:, :1] + row) + (x[:, 0] + col).sum() + (row + x[:, :1] * x),
    "sub": lambda x: (x - x * x) - (1 - x) + (row - x) - (x - row) + torch.sub(x, x**2, alpha=2),
    "rsub": lambda x: torch.rsub(x, 2.0) * torch.rsub(x, x * x),
    "mul": lambda x: x * torch.sin(x) * row * 2 * (3 * x),
    "mul broadcasts": lambda x: (x[:, :1] * x) * x[0] * (x[:, 0] * col).sum(0)[0],
    "div": lambda x: x / (2 + x) / row / 2 + 1 / (1 + x) + row / (1 + x),
    "matmul": lambda x: (x @ MATRIX) @ row + (constant(2, N) @ x).sum() + (x @ x.T).sum(1),
    "matmul reflected": lambda x: x.__rmatmul__(constant(2, N)),
    "matmul vectors": lambda x: (x[0] @ x[1]) + x @ x[0] + (row @ x.T) + x[0] @ MATRIX[:, 0],
    "matmul batches": lambda x: x[:, None] @ constant(N, d, 2) + (x[0] @ constant(2, d, 2)).sum(),
    "matmul aligned": lambda x: (x @ constant(2, d, d)).sum(0) + (MATRIX @ x[:, :, None])[..., 0],
    "mm bmm mv": lambda x: torch.mm(x, MATRIX) + torch.bmm(x[:, None], x[:, :, None])[:, :, 0]
    + torch.mv(x, row)[:, None] + torch.dot(x[0], x[1]) + torch.inner(row, x[0]),
    "inner": lambda x: torch.inner(torch.sin(x), MATRIX) + torch.inner(x, x[0])[:, None],
    "outer": lambda x: torch.outer(x[:, 0], x[0]) + torch.outer(col[:, 0], x[1]),
    "tensordot": lambda x: torch.tensordot(x, MATRIX, 1) + torch.tensordot(x, x, ([1], [1])).sum(),
    "einsum": lambda x: torch.einsum("ni,ij,nj->n", x, MATRIX, torch.sin(x)),
    "einsum implicit": lambda x: torch.einsum("ni, nj", x, x).sum() * torch.einsum("ij->ji", x).sum(),
    "einsum three jets": lambda x: torch.einsum("ni,nj,mj->nim", x, x, torch.cos(x)),
    "einsum constants first": lambda x: torch.einsum("ij,jk,nk->ni", MATRIX, MATRIX, x),
    "einsum dots": lambda x: torch.einsum("...i,oi->...o", x * x, W).sum() + torch.einsum("i...", x).T
    + torch.einsum("...i,...i,j", x, x[0], row),
    "bilinear": lambda x: norms["bilinear"](x, torch.sin(x)),
    "addmm": lambda x: torch.addmm(x, x, MATRIX, beta=2, alpha=3),
    "addcmul": lambda x: torch.addcmul(x, x, row, value=2) + torch.addcdiv(x, row, x + 1),
    "addmm variants": lambda x: torch.baddbmm(x, x[None], MATRIX[None], beta=2) + torch.addbmm(x, x[None], MATRIX[None])
    + torch.addr(x, x[:, 0], x[0], alpha=2) + torch.addmv(x[:, 0], x, row)[:, None] + torch.addmm(x, x, MATRIX, beta=0),
    "products of vectors": lambda x: torch.cross(x[:, :3], torch.sin(x[:, 1:]), dim=1) + torch.linalg.cross(x[:, :3], x[:, 1:])
    + torch.linalg.vecdot(x, x * x)[:, None] + torch.vdot(x[0], x[1]) + torch.kron(x, x).sum(),
    "products of many": lambda x: torch.linalg.multi_dot([x, MATRIX, x.T]) + torch.chain_matmul(x, MATRIX, x.T)
    + torch.linalg.matrix_power(x[:, :3], 3) + torch.linalg.matrix_power(x[:, :3], 0) + torch.linalg.matrix_power(x[:, :3] + MATRIX[:3, :3], -1),
    "bilinear of tokens": lambda x: F.bilinear(x[:, None], x[:, None], constant(2, d, d)),
    "logaddexp": lambda x: torch.logaddexp(x, torch.sin(x)) + torch.logaddexp(row, x) + torch.logaddexp2(x, row),
    "lerp": lambda x: torch.lerp(x, x * x, 0.3),
    "prod": lambda x: torch.prod(x, 1, keepdim=True) + x.prod(0) + 1e-3 * x.prod(),
    "hypot": lambda x: torch.hypot(x, row) + torch.hypot(x[:, :1], x),
    "atan2": lambda x: torch.atan2(x - 0.5, x[:, :1] - 0.7) + torch.atan2(x, row),
    "tensor to a jet": lambda x: torch.tensor(2.0, dtype=f64) ** x,
    "keywords": lambda x: torch.sum(input=x * x, axis=1, keepdims=True) + torch.mul(x, other=x)
    + F.linear(input=torch.tanh(input=x), weight=MATRIX) + torch.cat([x, x], axis=1)[:, :d],
    "where": lambda x: torch.where(x > 0.5, x * x, torch.sin(x)) + torch.where(MASK, x, 0.0),
    "where broadcasts": lambda x: torch.where(x[:, :1] > 0.5, x, 1) + (x * x).where(MASK, row),
    "masked_fill": lambda x: (x * x).masked_fill(MASK, 2.0),
    "maximum": lambda x: torch.maximum(x, x**2 + 0.2) + torch.maximum(row, x) + torch.fmax(x, row),
    "minimum": lambda x: torch.minimum(x, 0.3 + x**2) * torch.minimum(x, row),
    "clamp": lambda x: x.clamp(0.3, 0.7) * x + (x * x).clamp(min=0.2) + x.clamp(max=row),
    "clamp_min": lambda x: x.clamp_min(0.4) * x.clamp_max(0.6),
    "in place": in_place,
    "written over": lambda x: (x + 0).copy_(x[:, :1]) * (x + 0).fill_(2.0) + (x + 0).zero_(),
    "larger and smaller": lambda x: torch.max(x, x**2 + 0.2) * torch.min(row, x) + x.max(MATRIX[0]),
    "complex": lambda x: torch.complex(x, x * x).abs() + torch.polar(x, x * x).imag + (torch.exp(1j * x)).real
    + torch.complex(x, row).angle() + torch.sgn(torch.complex(x, row)).imag + torch.view_as_real(torch.complex(x, x)).sum(-1)
    + (torch.complex(x, x).mH @ torch.complex(x, x)).real.sum() + torch.view_as_complex(torch.stack([x, x], -1)).conj().imag
    + torch.imag(torch.conj_physical(torch.complex(x, x)).resolve_conj()) * torch.real(torch.complex(x, x)).resolve_neg(),
    "complex numbers": lambda x: ((x + 1j) * (2j - x) / (1j * x) + (1 + 1j) ** x + x ** (1 - 2j) + 1j / (x + 0j)).imag
    + torch.where(x > 0.5, x + 0j, 2j).real + (1j * x.type(torch.complex128) + 2j).abs() + (x.to(torch.complex128) @ (1j * MATRIX)).imag.sum(),
}  # fmt: skip

SHAPES = {
    "reshape": lambda x: (x * x).reshape(-1, 2).view(2, -1).reshape_as(x),
    "view_as": lambda x: (x * x).view((d, N)).view_as(x),
    "flatten": lambda x: torch.flatten(x[:, :, None] * row, 1),
    "flatten to one": lambda x: (x * x).flatten(),
    "unflatten": lambda x: (x * x).unflatten(1, (2, 2)),
    "squeeze": lambda x: (x * x)[:, None, :, None].squeeze(1).squeeze(-1)[None].squeeze(),
    "unsqueeze": lambda x: (x * x).unsqueeze(-1).unsqueeze(0),
    "expand": lambda x: x[:, :1].expand(-1, d) * x[:, :1].expand(N, 2).sum() + x[0].expand((N, d)),
    "expand_as": lambda x: x[:, :1].expand_as(x) * row.expand_as(x) + x[0].broadcast_to(N, d),
    "broadcast_tensors": lambda x: torch.broadcast_tensors(x[:, :1] ** 2, x)[0],
    "repeat": lambda x: (x * x).repeat(2, 1, 3) + torch.tile(x, (3,)).sum(),
    "transpose": lambda x: (x * x).t().T.mT.transpose(0, 1) * x.swapaxes(0, 1).T,
    "permute": lambda x: (x[:, :, None] * row).permute(2, 0, 1) * x[None].permute((0, -2, 2)),
    "movedim": lambda x: (x[:, :, None] * row).movedim(-1, 0) * x.movedim((0, 1), (0, 1)),
    "flip": lambda x: (x * x).flip(0, 1) * torch.flip(x, (1,)),
    "slices": lambda x: x[:, 1:3] * x[..., :1] * x[0, 1] + x[None, :, 0, None][0],
    "gather by tensors": lambda x: x[INDEX] * x[:, [0, 1, 1, 2]] + (x**2)[INDEX, INDEX][:, None],
    "separated indices": lambda x: (x[:, :, None] * row)[INDEX, :, INDEX] + x[0, INDEX].sum(),
    "dots in an index": lambda x: (x**2)[..., INDEX],
    "boolean index": lambda x: (x * x)[MASK],
    "narrow": lambda x: x.narrow(1, 1, 2) * x.select(1, 0)[:, None],
    "unbind": lambda x: sum(x.unbind(1)) * sum(column**2 for column in x.T),
    "chunk": lambda x: torch.cat([part**2 for part in x.chunk(2, dim=-1)], 1),
    "split": lambda x: torch.cat([p**2 for p in (*x.split(3, 1), *torch.split(x, [1, 3], -1))], 1),
    "split with sizes": lambda x: x.split_with_sizes([2, 2], 1)[0] ** 2,
    "tensor_split": lambda x: torch.cat([p**2 for p in torch.tensor_split(x, 3, dim=1)], 1),
    "index_select": lambda x: (x * x).index_select(1, INDEX) + x.gather(1, INDEX[:, None]),
    "cat": lambda x: torch.cat((x, x * x, col, constant(N, 2)), dim=-1),
    "stack": lambda x: torch.stack([x, x * x, MATRIX[:N]], dim=1) + torch.stack((x, x), -1).sum(),
    "hstack": lambda x: torch.hstack([x, x**2]).sum() + torch.vstack([x, x[0] ** 2]).sum(0),
    "column_stack": lambda x: torch.column_stack([x[:, 0] ** 2, x, col]) * torch.hstack([x[0], x[1]]).sum(),
    "sum": lambda x: (x * x).sum() + x.sum(1) + torch.sum(x**2, (0, 1), keepdim=True) + x.sum(-1),
    "mean": lambda x: (x * x).mean() + torch.mean(x**2, dim=1) + x.mean((0, 1)) * x.mean(0, True)[0, 0],
    "scalars": lambda x: (x * x).sum().sum() * x.mean().mean(),
    "cumsum": lambda x: torch.cumsum(x * x, 1) + torch.roll(x, 1, 1) + x.tril() * x.triu(),
    "diff": lambda x: torch.diff(x * x, dim=1).sum() + torch.trace(x**2) + torch.trapezoid(x, dim=1).sum(),
    "windows": lambda x: (x * x).unfold(1, 2, 1).prod(-1) + torch.linalg.diagonal(torch.diag_embed(x)).sum(),
    "turned": lambda x: torch.rot90(x * x) + x.flip(dims=(0,)).T + torch.fliplr(x).flipud().T + x.permute(dims=(1, 0)),
    "diagonals": lambda x: torch.diag(x[0] ** 2) + torch.diagflat(x[0]) + torch.block_diag(x[:2, :2] ** 2, MATRIX[:2, :2]),
    "lists": lambda x: torch.cartesian_prod(x[0], x[1]).sum(1) * torch.meshgrid(x[0], x[1] ** 2, indexing="xy")[0].reshape(-1)
    + torch.meshgrid([x[0], x[1]], indexing="ij")[1].ravel() + torch.combinations(x[0]).prod(1).sum(),
    "depth": lambda x: torch.dstack([x, x * x]).dsplit(2)[1][..., 0] + torch.atleast_3d(x[0] ** 2).sum() + torch.atleast_2d(x[0])
    + x.hsplit(2)[0].sum() * torch.cat(x.vsplit(3)) + torch.atleast_1d(x.sum()),
    "finite differences": lambda x: torch.gradient(x * x, dim=1)[0] + torch.cumulative_trapezoid(x * x, dim=1).sum() + torch.trapz(x).sum(),
    "fourier": lambda x: torch.fft.irfft(torch.fft.rfft(x * x) * (1 + 2j), n=d) + torch.fft.fftshift(torch.fft.fft2(x).abs()),
    "all transforms": lambda x: sum(
        torch.view_as_real(torch.complex(z.real, z.imag)).sum() if (z := getattr(torch.fft, name)(x * x)).is_complex() else z.sum()
        for name in dir(torch.fft)
        if name.endswith(("fft", "fft2", "fftn", "shift")) and name[0] != "_"
    ),
    "windowed fourier": lambda x: torch.istft(torch.stft(x * x, 4, return_complex=True, window=torch.ones(4, dtype=f64)), 4,
    window=torch.ones(4, dtype=f64)),
    "images of images": lambda x: F.pixel_unshuffle(x[:2, :, None].unflatten(1, (2, 2))[None, :, 0] ** 2, 1).sum()
    + F.channel_shuffle(x[None, :2, :, None] ** 2, 2).sum(1) + F.avg_pool3d(x[None, None] ** 2, (1, 1, 2)).sum()
    + F.adaptive_avg_pool3d(x[None, None] ** 2, 1).sum(),
    "sizes": lambda x: (x * x).sum_to_size(1, d) + (x * x).real,
    "diagonal": lambda x: torch.diagonal(x @ MATRIX).sum() + torch.diag_embed(x * x),
    "repeat_interleave": lambda x: torch.repeat_interleave(x * x, 2, 1),
    "take_along_dim": lambda x: torch.take_along_dim(x * x, INDEX[:, None], 1),
    "images": lambda x: F.interpolate(x[:, None], scale_factor=2) * F.avg_pool1d(x, 2).sum()
    + F.adaptive_avg_pool1d(x, 2).sum() + F.avg_pool2d(x[None], 2).sum(),
    "patches": lambda x: F.unfold(x[None, None], 2).sum(1)
    + F.fold(x.T[None], (2, 4), (2, 2)).sum() * F.adaptive_avg_pool2d(x[None], 2).sum()
    + F.pixel_shuffle(x.T[None, :, :, None], 2).sum(),
    "pad": lambda x: F.pad(x * x, (1, 2)) + F.pad(x, (1, 2), value=2.0),
    "clone": lambda x: (x.clone() * x.contiguous()).to(f64).double().to(x).type_as(row) * row.type_as(x),
    "casts": lambda x: x.to(device="cpu").cpu() ** 2,
    "constants": lambda x: x * (torch.zeros_like(x) + torch.ones_like(x) + torch.full_like(x, 3.0)),
    "random constants": lambda x: x**2 + 0 * (torch.rand_like(x) + torch.randn_like(x)),
    "new": lambda x: x * x.new_ones(N, 1) + x.new_zeros(d) + x.new_full((1,), 2.0) + x.new_tensor(1.0),
    "of the value": lambda x: x**2 * (x.detach() > 0.5) * torch.isfinite(x) * (x != 0.5).double(),
    "iteration": lambda x: torch.stack([point**2 for point in x]) * len(x) * x.size(1) * x.dim(),
}  # fmt: skip

LAYERS = {
    "conv1d": lambda x: norms["conv1"](x[:, None]),
    "conv2d": lambda x: norms["conv2"](x[:, None, None, :].expand(N, 1, 2, d)),
    "conv3d": lambda x: norms["conv3"](x[:, None, None, None, :]),
    "conv1d of one": lambda x: norms["conv1"](x[:1]),
    "glu": lambda x: F.glu(x * x),
    "layer_norm": lambda x: layer_norm(x, (d,), row, row),
    "layer_norm plain": lambda x: layer_norm(x, (N, d)),
    "rms_norm": lambda x: F.rms_norm(x, (d,), row) + F.rms_norm(x, (d,), eps=1e-3),
    "group_norm": lambda x: norms["group"](x),
    "batch_norm": lambda x: norms["batch"](x) * F.batch_norm(x, row, row),
    "var": lambda x: x.var(1) + torch.var(x, dim=1, correction=0) + x.var(),
    "std": lambda x: x.std(1, keepdim=True) * x,
    "biased var": lambda x: (
        x.var(1, unbiased=False, keepdim=True) + x.std(1, False)[:, None] + x.var(False)
    ),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, dim=1) + x.norm() + x.norm(2, 1),
    "other norms": lambda x: torch.linalg.vector_norm(x, 1, 1) * torch.linalg.norm(x, 3, 1),
    "norm of order one": lambda x: torch.linalg.norm(x, ord=1, dim=1) * torch.norm(x, p=1, dim=1),
    "matrix norms": lambda x: torch.linalg.norm(x) * torch.linalg.norm(x, "fro", (0, 1)),
    "normalize": lambda x: F.normalize(x, dim=1),
    "amax": lambda x: (x * x).amax(1) * torch.amin(x, 1, keepdim=True),
    "logsumexp": lambda x: torch.logsumexp(x, 1) * x.logsumexp(1, keepdim=True),
    "softmax": lambda x: F.softmax(x, dim=1) * torch.softmax(x, 0) * nn.Softmax(-1)(x),
    "log_softmax": lambda x: F.log_softmax(x, dim=1) * F.softmin(x, 1),
    "attention": Attention(),
    "sorted": lambda x: (
        x.sort(1, True).values * x.msort()
        + torch.topk(x, 2, 1).values.sum()
        + torch.kthvalue(x, 2, 1).values[:, None]
        + torch.kthvalue(x, k=2, dim=0, keepdim=True).values
    ),
    "extremes": lambda x: (
        x.max() * x.min()
        + x.max(1, True).values * torch.min(x, 0).values
        + x.amax() * x.amin((0, 1))
        + x.cummax(1).values
        + torch.aminmax(x).max * torch.aminmax(x, dim=1, keepdim=True).min
    ),
    "middle": lambda x: (
        x.median() * torch.nanmedian(x, 1, True).values
        + torch.mode(x, 1, True).values
        + torch.masked_select(x, MASK).sum()
    ),
    "moments": lambda x: (
        torch.cov(x).sum()
        + torch.quantile(x, 0.3, 1, True)
        + torch.corrcoef(x).sum()
        + torch.cumprod(x, 1)
        + x.nanmean()
        + torch.nansum(x)
    ),
    "variance and mean": lambda x: sum(torch.var_mean(x, 1, keepdim=True)) * sum(torch.std_mean(x)),
    "logcumsumexp": either(
        lambda x: torch.logcumsumexp(x, 1),
        lambda x: torch.stack([x[:, : i + 1].logsumexp(1) for i in range(d)], 1),
    ),
    "transposed convolutions": lambda x: (
        F.conv_transpose1d(x[:, None], constant(1, 2, 3), constant(2), stride=2)
        + F.conv_transpose2d(x[None, None], constant(1, 1, 2, 2)).sum()
        + F.conv_transpose3d(x[None, None, None], constant(1, 1, 1, 1, 2)).sum()
    ),
    "convolutions of jets": lambda x: (
        F.conv1d(x[:, None], x[:1, None, :2], x[0, :1])
        + F.conv1d(constant(N, 1, d), x[:1, None, :2])
    ),
    "instance_norm": lambda x: (
        instance_norm(x[:, :, None] * row, row, row)
        + F.instance_norm(x[:, :, None] * row, row, row, use_input_stats=False)
    ),
    "distances": lambda x: (
        distances(x, torch.sin(x) + 1)
        + distances(x, MATRIX, 1.0)[:, :N]
        + distances(x, MATRIX, math.inf)[:, :N]
        + own_distances(x).sum()
        + F.pairwise_distance(x, x * x)[:, None]
        + torch.dist(x, x * x)
        + F.cosine_similarity(x, row[None])[:, None]
    ),
    "determinants": lambda x: (
        torch.det(x[:, :3]) * torch.slogdet(x[:, :3] + torch.eye(3))[1]
        + torch.linalg.inv(x[:, :3] + 2 * torch.eye(3))
        + torch.linalg.solve(x[:, :3] + 2 * torch.eye(3), x[:, :1])
        + torch.linalg.eigvalsh(x @ x.T)
        + torch.linalg.matrix_exp(x[:, :3])
    ),
    "scattered": lambda x: (
        torch.zeros(N, d, dtype=f64).scatter(1, INDEX[:, None], x[:, :1] ** 2)
        + x.index_add(1, INDEX, x[:, :3] ** 2)
        + x.index_fill(1, INDEX, 2.0) * x
    ),
    "pooled": lambda x: (
        F.max_pool1d(x * x, 2).sum()
        + F.grid_sample(x[None, None] ** 2, (x[:2, :2] - 0.5)[None, None], align_corners=True).sum()
    ),
    "losses": lambda x: (
        F.mse_loss(x, x * x) + F.l1_loss(x, row.expand_as(x)) + F.embedding(INDEX, x * x).sum()
    ),
    "masked attention": lambda x: (
        F.scaled_dot_product_attention(
            x[:, :, None], torch.sin(x)[:, :, None], x[:, :, None], attn_mask=MATRIX[:d] > 0.7
        )
        + F.scaled_dot_product_attention(
            x[:, :, None], x[:, :, None], x[:, :, None], is_causal=True
        )
        + F.scaled_dot_product_attention(
            x[:, :, None], x[:, :, None], x[:, :, None], attn_mask=MATRIX
        )
    ),
    "lstm": lambda x: (
        modules["lstm"](x[:, :, None])[0].sum(1)
        + sum(e.sum() for e in modules["lstm"](x[:, :, None])[1])
    ),
    "lstm with a projection": lambda x: modules["projected"](x[:, :, None])[0].sum(1),
    "gru": lambda x: modules["gru"](x[:, :, None])[0].sum(0),
    "rnn": lambda x: (
        modules["rnn"](x[:, :, None])[0].sum(1) + modules["relu rnn"](x[:, None])[0][:, 0]
    ),
    "cells": lambda x: (
        modules["gru cell"](x, modules["lstm cell"](x)[0])
        + modules["rnn cell"](x)
        + modules["relu cell"](x)
    ),
    "multihead attention": lambda x: (
        modules["attention"](x[None], x[None] ** 2, x[None] ** 2)[0][0]
        + modules["attention"](x, x, x, need_weights=False)[0]
        + modules["attention"](x, x, x, attn_mask=torch.ones(N, N).triu(1).bool())[1].sum()
    ),
    "unequal attention": lambda x: modules["unequal attention"](x, x[:, :2], x[:, 1:])[0],
    "transformer": lambda x: (
        modules["encoder"](x[None])[0] + modules["decoder"](x[None], x[None] ** 2)[0]
    ),
    "dropout": lambda x: F.dropout(x * x, training=False) * nn.Dropout().eval()(x),
}

PROGRAMS = {**ARITHMETIC, **SHAPES, **LAYERS}
PROGRAMS |= {f"positive {i}": f for i, f in enumerate(POSITIVE)}
PROGRAMS |= {f"any sign {i}": lambda x, f=f: f(3 * x - 1.4) for i, f in enumerate(ANY_SIGN)}

# Autograd of torch 2.9 has no second derivatives of these, that of 2.13 has: there is no oracle.
if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13):
    DIFFERENTIABLE = [name for name in PROGRAMS if name not in {"instance_norm", "pooled"}]
else:
    DIFFERENTIABLE = list(PROGRAMS)


class Recorder(TorchFunctionMode):
    """The torch functions that are called with jets."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if Jet in types:
            self.seen.add(func)
        return func(*args, **(kwargs or {}))


def points_and_directions():
    return 0.8 * constant(N, d, seed=3) - 0.14, constant(D, N, d, seed=4) - 0.8


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_rule_against_nested_autograd(name):
    u, (x, v) = PROGRAMS[name], points_and_directions()
    expected = derivatives_along_lines(u, x, v, 4)
    for order in range(1, 5):
        found = taylor(u, x, order, v)
        torch.testing.assert_close(found, tuple(expected[: order + 1]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["in place", "mul", "matmul batches", "div", "any sign 20"])
@pytest.mark.parametrize("weights", [(D,), (2, D), (1, D)])
def test_summed_top_order(name, weights):
    u, (x, v), w = PROGRAMS[name], points_and_directions(), constant(*weights) - 0.7
    for order in range(1, 5):
        *lower, top = taylor(u, x, order, v)
        *same, summed = taylor(u, x, order, v, w)
        torch.testing.assert_close(same, lower, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(summed, torch.tensordot(w, top, 1), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_rule_backpropagates(name):
    """The gradient of the top order in x, against one more order of nested autograd."""
    u, (x, v) = PROGRAMS[name], points_and_directions()
    gradients = []
    for derivatives in (
        lambda x: derivatives_along_lines(u, x, v, 2),
        lambda x: taylor(u, x, 2, v),
    ):
        z = x.clone().requires_grad_()
        total = sum((each * torch.cos(each.detach())).sum() for each in derivatives(z))
        gradients.append(torch.autograd.grad(total, z)[0])
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


COMPARISONS = [
    "lt", "le", "gt", "ge", "eq", "ne", "greater", "greater_equal", "less", "less_equal",
    "not_equal", "isclose", "allclose", "heaviside", "equal", "logical_and", "logical_or",
    "logical_xor",
]  # fmt: skip
UNARY = [
    "isnan", "isinf", "isfinite", "detach", "argmax", "argmin", "argsort", "logical_not", "signbit",
    "tolist", "isreal", "isposinf", "isneginf", "count_nonzero", "all", "any", "nonzero", "argwhere",
    "bool", "int", "long", "element_size", "is_contiguous",
]  # fmt: skip


def of_the_value(x):
    """All functions that give plain tensors: of jets as of values."""
    unary = [getattr(x, name)() for name in UNARY]
    binary = [getattr(x, name)(torch.full_like(x, 0.5).detach()) for name in COMPARISONS]
    half = torch.tensor([0.5], dtype=f64)
    other = [
        torch.isin(x, half),
        torch.searchsorted(half, x),
        torch.bucketize(x, half),
        torch.is_complex(x),
        len(x.stride()),
    ]
    other += [x.new_empty(2).shape, x[0, 0].item(), x.cpu().shape, bool(x[0, 0] > 0)]
    return [
        *unary,
        *binary,
        *other,
        x.half().dtype,
        x.float().dtype,
        x.bfloat16().dtype,
        x.cdouble().dtype,
        x.cfloat().dtype,
    ]


def test_powers_at_zero():
    """Monomials are smooth there, whatever the exponents come in."""
    x, v = torch.tensor([[0.0], [-0.5], [0.0]], dtype=f64), torch.ones(1, 1, dtype=f64)
    one_by_one = lambda x: torch.cat([x**k for k in range(4)], 1)  # noqa: E731
    for u in (one_by_one, lambda x: x ** torch.arange(4), lambda x: x ** torch.arange(4.0)):
        for k, rows in enumerate(taylor(u, x, 4, v)):
            expected = [math.factorial(k) * (p == k) for p in range(4)]  # of x^p at 0
            assert rows.reshape(3, 4)[0].tolist() == rows.reshape(3, 4)[2].tolist() == expected


def test_functions_of_the_value():
    x, seen = points_and_directions()[0], []
    taylor(lambda jet: seen.append(of_the_value(jet)) or jet, x)
    for a, b in zip(seen[0], of_the_value(x), strict=True):
        assert a.equal(b) if isinstance(a, torch.Tensor) else a == b


def bare(function):
    """The name that namesakes share."""
    name = function.__name__.rstrip("_")
    return name.removeprefix("special_").removeprefix("linalg_")


def test_every_rule_is_exercised():
    x, _ = points_and_directions()
    programs = [*PROGRAMS.values(), lambda x: of_the_value(x) and x]
    with Recorder() as recorder:
        for program in programs:
            taylor(program, x, 2)
    exercised = {RULES[function] for function in recorder.seen}
    called = {bare(function) for function in recorder.seen}
    guards = {RULES[f] for f in (torch.autograd.grad, torch.Tensor.cuda, torch.Tensor.numpy)}
    ours = {r for r in RULES.values() if r.__module__.startswith("kfac_pinn")}  # users add theirs
    missed = ours - exercised - guards
    names = sorted({str(f) for f, r in RULES.items() if r in missed and bare(f) not in called})
    assert not names, "\n".join(names)


def test_a_missing_rule_prints_the_lines_that_add_it():
    x = points_and_directions()[0]
    with pytest.raises(NotImplementedError) as error:
        taylor(torch.special.bessel_j0, x)
    text = str(error.value)
    assert "torch.special.bessel_j0" in text or "torch.special_bessel_j0" in text
    for line in ("@elementwise(", "linear(", "@rule(", "from kfac_pinn.taylor_mode.rules import"):
        assert line in text
    compile(
        text.split(":\n\n", 1)[1].replace("    ", "", 1).replace("\n    ", "\n"), "message", "exec"
    )


def test_one_decorated_function_adds_a_rule():
    x, v = points_and_directions()
    before = dict(RULES)
    try:

        @elementwise(torch.special.bessel_j0)
        def bessel(v, y, order):
            minus = -torch.special.bessel_j1(v)
            return [minus, -y - minus / v][:order]

        linear(torch.rot90)

        @rule(F.cosine_similarity)
        def cosine(x, y, dim=1):
            return (F.normalize(x, dim=dim) * F.normalize(y, dim=dim)).sum(dim)

        first = taylor(lambda x: torch.special.bessel_j0(x), x, 2, v)
        torch.testing.assert_close(first[1], -torch.special.bessel_j1(x) * v)
        assert taylor(lambda x: torch.rot90(x**2), x, 2, v)[2].shape == (D, d, N)
        u = lambda x: F.cosine_similarity(x, torch.sin(x) + row)  # noqa: E731
        torch.testing.assert_close(list(taylor(u, x, 3, v)), derivatives_along_lines(u, x, v, 3))
    finally:
        RULES.clear()
        RULES.update(before)


DEFAULTS = {
    "layer_norm": lambda x: F.layer_norm(x, (d,)),
    "batch_norm": lambda x: F.batch_norm(x, 1e-3 * row, 1e-5 * row),
    "group_norm": lambda x: F.group_norm(x, 2),
    "instance_norm": lambda x: F.instance_norm(x[:, None]),
    "rms_norm": lambda x: F.rms_norm(1e-4 * x, (d,)),
    "normalize": lambda x: F.normalize(1e-9 * x),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x * x),
    "cosine_similarity": lambda x: F.cosine_similarity(x, x * x),
    "leaky_relu": lambda x: F.leaky_relu(x - 5e-4) + F.hardshrink(1e3 * x) + F.softshrink(1e3 * x),
    "elu": lambda x: F.elu(x - 5e-4) + F.celu(x - 5e-4) + F.softplus(2e4 * x) + F.rrelu(x - 5e-4),
}


@pytest.mark.parametrize("name", DEFAULTS)
def test_default_arguments_are_those_of_torch(name):
    """On small entries, where what is added for safety counts."""
    u, x = DEFAULTS[name], 1e-3 * points_and_directions()[0]
    slopes = torch.autograd.functional.jvp(u, x, row.expand(N, d))[1]
    value, (first,) = taylor(u, x, 1, row[None])
    torch.testing.assert_close(value, u(x), rtol=1e-12, atol=0)
    torch.testing.assert_close(first, slopes, rtol=1e-10, atol=1e-10 * slopes.abs().max())


# Which a rule need not know: None stands for torch's own, and F hands `training` over.
OTHER_DEFAULTS = {"p", "compute_mode", "indexing", "training"}


def test_defaults_in_the_signatures_are_those_of_torch():
    """F hands most of them over itself; who calls a rule by other ways gets the same."""
    compared = 0
    for function, definition in RULES.items():
        try:
            theirs, ours = (inspect.signature(f).parameters for f in (function, definition))
        except (TypeError, ValueError):  # written in C
            continue
        for name in (theirs.keys() & ours.keys()) - OTHER_DEFAULTS:
            if ours[name].default is not inspect.Parameter.empty:
                assert ours[name].default == theirs[name].default, (function, name)
                compared += 1
    assert compared > 40


ERRORS = {
    "largest entry": (lambda x: torch.linalg.vector_norm(x, float("inf"), 1), "torch.amax"),
    "spectral norm": (lambda x: torch.linalg.norm(x, 2), "one dim"),
    "no rule": (lambda x: torch.special.bessel_j1(x), "bessel_j1 has no rule"),
    "unknown argument": (lambda x: torch.add(x, x, out=x.new_zeros(())), "'out'.*@rule"),
    "not differentiable": (
        lambda x: torch.scatter(x, 1, INDEX[:, None], x, reduce="add"),
        "does not differentiate it so often",
    ),
    "nuclear norm": (lambda x: torch.norm(x, p="nuc"), "linalg.matrix_norm"),
    "random relu": (lambda x: F.rrelu(x, training=True), "model.eval"),
    "dropout in an LSTM": (lambda x: nn.LSTM(d, 2, 2, dropout=0.5).double()(x)[0], "model.eval"),
    "dropout in attention": (
        lambda x: nn.MultiheadAttention(d, 2, 0.5).double()(x, x, x)[0],
        "model.eval",
    ),
    "packed sequences": (
        lambda x: nn.LSTM(d, 2).double()(nn.utils.rnn.PackedSequence(x, torch.tensor([N])))[0],
        "padded",
    ),
    "running statistics": (
        lambda x: nn.InstanceNorm1d(d, track_running_stats=True).double()(x[:, :, None]),
        "model.eval",
    ),
    "autograd inside": (lambda x: torch.autograd.grad(x.sum(), x), "Taylor mode"),
    "batch norm": (nn.BatchNorm1d(d).double(), "model.eval"),
    "dropout": (lambda x: F.dropout(x), "model.eval"),
    "linear in one": (lambda x: torch.take_along_dim(row, x), "first argument"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_name_the_fix(name):
    u, fix = ERRORS[name]
    with pytest.raises((NotImplementedError, TypeError), match=fix):
        taylor(u, points_and_directions()[0])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.softmax(x, 1, dtype=torch.float64),
        lambda x: torch.softmax(x, 1, torch.float64),
        lambda x: F.log_softmax(x, dim=1, dtype=torch.float64),
        lambda x: F.softmin(x, 1, dtype=torch.float64),
    ],
)
def test_softmax_computes_in_the_dtype_asked_for(function):
    x = torch.rand(5, 3, generator=torch.Generator().manual_seed(0))
    along = torch.tensor([1.0, 0.0, 0.0]).expand_as(x)
    value, (slope, *_) = taylor(function, x, order=1)
    expected, expected_slope = torch.autograd.functional.jvp(function, x, along)
    assert value.dtype == slope.dtype == torch.float64
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(slope, expected_slope)
