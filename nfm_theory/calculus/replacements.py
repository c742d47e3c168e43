r"""Correct derivatives of every order: operations that PyTorch differentiates wrongly, composed from primitives.

By the chain rule, one operation with a wrong or missing second derivative makes every term of an expansion wrong.
These problems were found with PyTorch 2.13, order by order up to five:

| operation | derivatives without `exact_derivatives` |
|---|---|
| layer, instance and batch norm on the sample's own statistics | **silently wrong**, see below |
| SiLU, Mish | `jvp(jvp)` raises under `no_grad` |
| CELU with α ≠ 1 | off by 1e-8 from order 1, in float64 |
| GLU, hard sigmoid, Huber and soft-margin loss | raise from order 2 |
| fused attention, fast paths of the transformer modules | raise from order 1, at best 2 |
| binary cross entropy on logits | `vmap(jvp(jvp))` raises |
| vector norms, normalization, standard deviation | `grad(jvp(jvp))` raises |
| in-place activations, `+=` and the like | `vmap(jvp(jvp))` raises; `y *= y` is **silently wrong** from order 1 |
| determinants, solves, products, and others of `linear_algebra.py` | **silently wrong** from order 2 |
| recurrent layers in float32, distances, `grid_sample`, and others of `substitutes.py` | raise from order 1 |

Through a norm on the sample's own statistics, `jvp(jvp)` and `grad(jvp)` are wrong. Hence the parameter gradient of a
single `jvp` is wrong, and so is that of $v^\top H v$ in every composition, `jvp(grad)` and double backward included.
Group norm, batch norm in evaluation mode, pooling and all smooth activations are right.

`exact_derivatives` replaces the operations of the table by the compositions in `REPLACEMENTS`.
Sources: PyTorch issues 196699, 196700, 198017.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from ..setting.ambient import full_precision
from .linear_algebra import LINEAR_ALGEBRA
from .norms import NORMS
from .refusals import REFUSED, refuse_wrapped
from .substitutes import SUBSTITUTES

# Normalization ----------------------------------------------------------------------------------------------


def _per_channel(z: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """Multiply by a weight and add a bias for each channel (dimension 1)."""
    shape = (1, -1) + (1,) * (z.dim() - 2)
    z = z if weight is None else z * weight.reshape(shape)
    return z if bias is None else z + bias.reshape(shape)


def _standardize(z: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    centered = z - z.mean(dims, keepdim=True)
    return centered * torch.rsqrt((centered * centered).mean(dims, keepdim=True) + eps)


def _layer_norm(input, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=True):
    z = _standardize(input, tuple(range(-len(normalized_shape), 0)), eps)
    z = z if weight is None else z * weight
    return z if bias is None else z + bias


def _native_layer_norm(input, normalized_shape, weight, bias, eps):
    dims = tuple(range(-len(normalized_shape), 0))
    variance, mean = torch.var_mean(input, dims, correction=0, keepdim=True)
    return _layer_norm(input, normalized_shape, weight, bias, eps), mean, torch.rsqrt(variance + eps)


def _rms_norm(input, normalized_shape, weight=None, eps=None):
    dims = tuple(range(-len(normalized_shape), 0))
    eps = torch.finfo(input.dtype).eps if eps is None else eps
    z = input * torch.rsqrt((input * input).mean(dims, keepdim=True) + eps)
    return z if weight is None else z * weight


def _group_norm(input, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=True):
    grouped = input.reshape(input.shape[0], num_groups, -1)
    return _per_channel(_standardize(grouped, (-1,), eps).reshape(input.shape), weight, bias)


def _running_norm(input, mean, var, weight, bias, eps):
    """Normalization by fixed statistics: one scale and one shift for each channel."""
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale
    return _per_channel(input, scale, shift if bias is None else shift + bias)


def _batch_norm(
    input, running_mean, running_var, weight=None, bias=None, training=False, momentum=0.1, eps=1e-5, cudnn=True
):
    if not training:
        return _running_norm(input, running_mean, running_var, weight, bias, eps)
    if running_mean is not None:  # only PyTorch's own function can update the buffers
        refuse_wrapped("batch norm", input, "it updates its statistics; call model.eval()")
        return F.batch_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    dims = (0, *range(2, input.dim()))
    return _per_channel(_standardize(input, dims, eps), weight, bias)


def _instance_norm(
    input, running_mean=None, running_var=None, weight=None, bias=None, use_input_stats=True, momentum=0.1, eps=1e-5
):
    if not use_input_stats:
        return _running_norm(input, running_mean, running_var, weight, bias, eps)
    if running_mean is not None:
        refuse_wrapped("instance norm", input, "it updates its statistics; call model.eval()")
        return F.instance_norm(input, running_mean, running_var, weight, bias, True, momentum, eps)
    return _per_channel(_standardize(input, tuple(range(2, input.dim())), eps), weight, bias)


# Activations ------------------------------------------------------------------------------------------------


def _silu(input, inplace=False):
    return input * torch.sigmoid(input)


def _mish(input, inplace=False):
    return input * torch.tanh(F.softplus(input))


def _hardsigmoid(input, inplace=False):
    return torch.clamp(input / 6 + 0.5, 0, 1)


def _celu(input, alpha=1.0, inplace=False):
    return alpha * F.elu(input / alpha)


def _glu(input, dim=-1):
    value, gate = input.chunk(2, dim)
    return value * torch.sigmoid(gate)


# Losses -----------------------------------------------------------------------------------------------------


def _reduce(loss: Tensor, size_average, reduce, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:
        raise ValueError(
            "expected only 'reduction' under exact_derivatives(), got the deprecated "
            f"size_average={size_average}, reduce={reduce}; use reduction='mean', 'sum' or 'none'"
        )
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"expected reduction 'mean', 'sum' or 'none', got {reduction!r}")
    return loss if reduction == "none" else getattr(loss, reduction)()


def _binary_cross_entropy_with_logits(
    input, target, weight=None, size_average=None, reduce=None, reduction="mean", pos_weight=None
):
    # Not softplus: above its threshold the second derivative is 0.
    log_one = F.logsigmoid(input) if pos_weight is None else pos_weight * F.logsigmoid(input)
    loss = -target * log_one - (1 - target) * F.logsigmoid(-input)
    loss = loss if weight is None else loss * weight
    return _reduce(loss, size_average, reduce, reduction)


def _soft_margin_loss(input, target, size_average=None, reduce=None, reduction="mean"):
    return _reduce(-F.logsigmoid(target * input), size_average, reduce, reduction)


def _huber_loss(input, target, reduction="mean", delta=1.0, weight=None):
    error = input - target
    size = error.abs()
    loss = torch.where(size <= delta, 0.5 * error * error, delta * (size - 0.5 * delta))
    loss = loss if weight is None else loss * weight
    return _reduce(loss, None, None, reduction)


# Attention --------------------------------------------------------------------------------------------------


def _attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
) -> Tensor:
    if dropout_p > 0:
        raise ValueError(
            f"expected attention without dropout, got dropout_p={dropout_p}; call model.eval() or pass dropout_p=0.0"
        )
    if is_causal and attn_mask is not None:
        raise ValueError("expected either attn_mask or is_causal=True, got both; combine them in one attn_mask")
    if enable_gqa:
        key, value = (z.repeat_interleave(query.shape[-3] // z.shape[-3], -3) for z in (key, value))
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return torch.softmax(scores, -1) @ value
    if attn_mask.dtype == torch.bool:
        allowed = attn_mask
    else:
        allowed = attn_mask != -math.inf
        scores = scores + attn_mask.masked_fill(~allowed, 0)
    # The fill value is finite, so that a row without any allowed key gives 0, as in PyTorch, and not nan.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return (torch.softmax(scores, -1) * allowed.any(-1, keepdim=True)) @ value


def _multi_head_attention(
    query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v, add_zero_attn,
    dropout_p, out_proj_weight, out_proj_bias, training=True, key_padding_mask=None, need_weights=True,
    average_attn_weights=True, **options,
):  # fmt: skip
    """The usual case, for tokens `(length, batch, dim)`; rarer options are passed on to PyTorch.

    PyTorch is then asked for the attention weights, because it uses no fused kernel if it must return them.
    """
    rare = (bias_k, bias_v, key_padding_mask, *options.values())
    plain = not training and query.dim() == 3 and not add_zero_attn
    if not plain or in_proj_weight is None or any(option is not None and option is not False for option in rare):
        output, weights = F.multi_head_attention_forward(
            query, key, value, embed_dim_to_check, num_heads, in_proj_weight, in_proj_bias, bias_k, bias_v,
            add_zero_attn, dropout_p, out_proj_weight, out_proj_bias, training, key_padding_mask, True,
            average_attn_weights=average_attn_weights, **options,
        )  # fmt: skip
        return output, weights if need_weights else None
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(z, weight, bias).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for z, weight, bias in zip((query, key, value), in_proj_weight.chunk(3), biases, strict=True)
    )
    with exact_derivatives():  # the mode is off inside a replacement
        mixed = F.scaled_dot_product_attention(q, k, v)
    output = F.linear(mixed.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias)
    if not need_weights:
        return output, None
    weights = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1)
    return output, weights.mean(1) if average_attn_weights else weights


# The table --------------------------------------------------------------------------------------------------

#: Maps a function of PyTorch to a composition of primitives with the same signature and the same value.
REPLACEMENTS: dict[Callable, Callable] = (
    {
        F.layer_norm: _layer_norm,
        torch.layer_norm: _layer_norm,
        torch.native_layer_norm: _native_layer_norm,
        F.rms_norm: _rms_norm,
        torch.rms_norm: _rms_norm,
        F.group_norm: _group_norm,
        torch.group_norm: _group_norm,
        F.batch_norm: _batch_norm,
        torch.batch_norm: lambda x, weight, bias, mean, var, *rest: _batch_norm(x, mean, var, weight, bias, *rest),
        F.instance_norm: _instance_norm,
        torch.instance_norm: lambda x, weight, bias, mean, var, *rest: _instance_norm(
            x, mean, var, weight, bias, *rest[:3]
        ),
        F.silu: _silu,
        F.mish: _mish,
        F.hardsigmoid: _hardsigmoid,
        F.celu: _celu,
        torch.celu: _celu,
        F.glu: _glu,
        F.binary_cross_entropy_with_logits: _binary_cross_entropy_with_logits,
        F.soft_margin_loss: _soft_margin_loss,
        F.huber_loss: _huber_loss,
        F.scaled_dot_product_attention: _attention,
        F.multi_head_attention_forward: _multi_head_attention,
    }
    | LINEAR_ALGEBRA
    | NORMS
    | REFUSED
    | SUBSTITUTES
)

#: Maps a method that overwrites its tensor, as `x += y` does, to the one that returns a new tensor.
OUT_OF_PLACE: dict[Callable, Callable] = {torch.relu_: torch.relu} | {
    getattr(Tensor, f"{name}_"): getattr(Tensor, name)
    for name in ("add", "sub", "mul", "div", "relu", "sigmoid", "tanh", "clamp", "masked_fill")
}


class plain_operations(TorchFunctionMode):
    """Context manager within which every operation is PyTorch's own, in full precision."""

    #: `exact_derivatives` has no effect inside this context.
    exact = True

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Call PyTorch's function without autocast."""
        with torch._C.DisableTorchFunction(), full_precision():
            return func(*args, **(kwargs or {}))


class exact_derivatives(TorchFunctionMode):
    r"""Context manager within which derivatives by `torch.func` and `torch.autograd` are correct at every order.

    It computes the operations of `REPLACEMENTS` from primitives, ignores `inplace=True` of activations, and lets
    `x += y` make a new tensor where `jvp`, `grad` or `vmap` track x. Values agree with PyTorch's to rounding. The only
    exception is a network that reads a tensor again after an in-place operation has overwritten it; `layers.split`
    refuses such a network. The context can be nested, can be used inside functions that are transformed, and changes
    no global setting. Autocast is off for what is computed inside. Batch norm that updates its statistics is left as it
    is, and refused within a transform of `torch.func`, where its second derivative would be wrong.

    Source: the PyTorch issues named at the top of the module.

    Raises:
        ValueError: for attention with dropout or with two masks, and for a loss called with `size_average`;
            `DerivativeError`, which is one, for operations in `REFUSED`.

    Example:
        >>> f = lambda t: torch.nn.functional.silu(t)
        >>> with exact_derivatives(), torch.no_grad():  # raises without the context
        ...     d = lambda g: lambda t: torch.func.jvp(g, (t,), (torch.ones(()),))[1]
        ...     d(d(f))(torch.zeros(()))
        tensor(0.5000)
    """

    def __init__(self):
        super().__init__()
        self._active: list[bool] = []

    #: Marks a mode that makes derivatives exact, so that no second one is needed inside it.
    exact = True

    def __enter__(self):
        """Activate the mode, unless the innermost active mode is exact already."""
        self._active.append(not getattr(_get_current_function_mode(), "exact", False))
        return super().__enter__() if self._active[-1] else self

    def __exit__(self, *error):
        """Deactivate the mode if this context has activated it."""
        if self._active.pop():
            super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        """Redirect one call. The mode is off meanwhile, so that replacements call PyTorch's own functions."""
        kwargs = kwargs or {}
        if kwargs.get("inplace"):
            kwargs = {**kwargs, "inplace": False}
        replacement = REPLACEMENTS.get(func)
        if replacement is None and func in OUT_OF_PLACE and is_functorch_wrapped_tensor(args[0]):
            replacement = OUT_OF_PLACE[func]
        if torch._C._is_any_autocast_enabled():
            with full_precision():
                return (replacement or func)(*args, **kwargs)
        return (replacement or func)(*args, **kwargs)
