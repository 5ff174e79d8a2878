"""The side path: a module's own output plus a low-rank one, computed in the module's own forward.

A patched module is the same object under a subclass of its own class. Its adapters' tensors are non-persistent
buffers, so that `.to()`, offloading hooks and `torch.compile` see them and `state_dict()` does not. All active
low-rank deltas of a target stand joined along the rank in one pair of factors; their strengths are one vector over
the joined rank:

    out = base(x) + up @ (scale * (down @ x))
"""

from __future__ import annotations

import functools
from abc import ABCMeta
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorry.algebra import Delta
from lorry.patching.following import kept_in, say_moved
from lorry.patching.layer_kinds import computes_from_packed
from lorry.patching.placement import layer_hooks
from lorry.patching.sharded import add_sharded, is_sharded

FACTORS = DOWN, UP, SCALE = ("lorry_down", "lorry_up", "lorry_scale")
DOWN_AND_UP = (DOWN, UP)
"""The buffers that are empty in a module where nobody acts any more; its strengths may stay."""
BUFFERS = (*FACTORS, "lorry_weight", "lorry_bias")


class SidePath(nn.Module):
    """What the subclass of a patched module adds to it."""

    lorry_takes_factors: ClassVar[bool] = False
    """Whether `forward` adds what the factors make of its input; where not, every delta acts through a copy."""
    lorry_class: ClassVar[type[nn.Module]]
    """The module's own class."""
    lorry_down: Tensor | None
    """(rank, in), or (rank, in / groups, *kernel): the joined factors. None when nothing is active here."""
    lorry_up: Tensor | None
    """(out, rank)."""
    lorry_scale: Tensor | None
    """(rank,), float32 whatever the module's dtype: strength times the file's own scale."""
    lorry_weight: Tensor | None
    """The weight with deltas added that have no low-rank form, in place of the module's own. None without such."""
    lorry_bias: Tensor | None
    """The bias with deltas added, in place of the module's own. None without such."""
    lorry_trained: tuple[str, ...] = ()
    """The trainable adapters active here by factors: these are parameters, each pair on its own."""
    lorry_formulas: tuple[Formula, ...] = ()
    """The trainable adapters active here by the formula of their family, which has no low-rank form."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make a layer of the module's own class: a new one carries nothing. PEFT makes its layers by `type(layer)`."""
        return cls.lorry_class(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return _revived, (self.lorry_class,), self.__dict__

    @property
    def weight(self) -> Any:
        """What the module's own forward computes with: the copy or the parameter, and what is in training added.

        FSDP asks for it while the parameter is shared out, and gets that.
        """
        copy = self._buffers["lorry_weight"]
        weight = self._parameters.get("weight") if copy is None else copy
        if weight is None or not self.lorry_formulas or is_sharded(weight):
            return weight
        return self._trained_weight(weight)

    @property
    def bias(self) -> Any:
        """What the module's own forward computes with: the copy, or the parameter."""
        copy = self._buffers["lorry_bias"]
        return self._parameters.get("bias") if copy is None else copy

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        """Follow the module, but keep scales in float32, and keep all under a hook that casts at each call."""
        names = (SCALE, *(trained_names(name)[2] for name in self.lorry_trained))
        casts = layer_hooks(self) is not None
        names = (*BUFFERS, *names) if casts else names
        trained = {key: self._parameters.pop(key) for key in self._trained_keys()} if casts else {}
        shared = [key for key in ("weight", "bias") if shares(self, key)]
        self._buffers.update({f"lorry_{key}": None for key in shared})  # not moved twice
        exact = {name: tensor for name in names if (tensor := self._buffers[name]) is not None}
        before = kept_in(self)
        super()._apply(fn, recurse)
        self._buffers.update({f"lorry_{key}": cast(Tensor, self._parameters[key]).data for key in shared})
        for name, tensor in exact.items():
            applied = cast(Tensor, self._buffers[name])
            self._buffers[name] = applied if applied.dtype == tensor.dtype else tensor.to(applied.device)
        for parameter in trained.values():
            _follow_device(cast(nn.Parameter, parameter), fn)
        self._parameters.update(trained)
        say_moved(self, before)
        return self

    def _trained_keys(self) -> list[str]:
        """Return the names of the parameters of adapters in training."""
        factors = [key for name in self.lorry_trained for key in trained_names(name)[:2]]
        return factors + [key for formula in self.lorry_formulas for key in formula.parameters()]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in [key for key in destination if key.startswith(f"{prefix}lorry_")]:
            del destination[name]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = (local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, *rest)
        missing_keys[:] = [key for key in missing_keys if not key.startswith(f"{prefix}lorry_")]

    def _trained_weight(self, weight: Tensor) -> Tensor:
        """Add the formulas' deltas, in float32 at least and rounded once, as a copy for inference is made."""
        base = cast(Tensor, self._parameters["weight"])
        with torch.autocast(weight.device.type, enabled=False):
            total = weight.to(torch.promote_types(weight.dtype, torch.float32))
            for formula in self.lorry_formulas:
                total = total + formula.delta_of(self).weight(base, total.dtype, formula.strength)
            return total.to(weight.dtype)

    def _with_side_output(self, x: Tensor, out: Tensor) -> Tensor:
        if self.lorry_down is not None and self.lorry_up is not None and self.lorry_scale is not None:
            out = self._add(x, out, self.lorry_down, self.lorry_up, self.lorry_scale)
        for name in self.lorry_trained:
            out = self._add(x, out, *(getattr(self, key) for key in trained_names(name)))
        return out

    def _add(self, x: Tensor, out: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
        raise NotImplementedError


class LinearSidePath(SidePath):
    """For `nn.Linear` and its subclasses."""

    lorry_takes_factors = True

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        out = super().forward(input, *args, **kwargs)
        if self.lorry_down is None and not self.lorry_trained:
            return out
        return self._with_side_output(input, out)

    def _add(self, x: Tensor, out: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
        if is_sharded(out):
            return add_sharded(x, out, down, up, scale)
        hidden = functional.linear(x.to(down.dtype), down).mul_(scale)
        if not _can_accumulate(out, hidden, up):
            return out + functional.linear(hidden, up).to(out.dtype)
        rows, products = out.view(-1, up.shape[0]), (hidden.view(-1, up.shape[1]), up.t())
        if out is x or _is_followed(out, hidden, up):
            return torch.addmm(rows, *products).view_as(out)
        rows.addmm_(*products)
        return out


class PackedLinearSidePath(LinearSidePath):
    """For linear layers that compute from packed bits, and cannot from a plain copy put in their weight's place."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        weight, bias = self._buffers["lorry_weight"], self.bias
        if weight is None:
            return super().forward(input, *args, **kwargs)
        bias = None if bias is None else bias.to(weight.dtype)
        out = functional.linear(input.to(weight.dtype), weight, bias).to(input.dtype)
        return self._with_side_output(input, out)


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class ConvSidePath(SidePath):
    """For convolutions over one to three axes; stride, padding, dilation and groups are the module's own."""

    lorry_takes_factors = True

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: A002
        out = super().forward(input, *args, **kwargs)
        if self.lorry_down is None and not self.lorry_trained:
            return out
        return self._with_side_output(input, out)

    def _add(self, x: Tensor, out: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
        conv = cast(nn.Conv2d, self)
        groups = conv.groups
        if groups > 1:
            down, scale = down.repeat(groups, *(1 for _ in down.shape[1:])), scale.repeat(groups)
        kernel = (None,) * (down.ndim - 2)
        hidden = conv._conv_forward(x.to(down.dtype), down, None).mul_(scale[(..., *kernel)])
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(kernel) - 1]
        side = convolve(hidden, up[(..., *kernel)], groups=groups).to(out.dtype)
        return out + side if torch.is_grad_enabled() else out.add_(side)


class EmbeddingSidePath(SidePath):
    """For `nn.Embedding`: a token's row of `up`, times `down`."""

    lorry_takes_factors = True

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        out = super().forward(input)
        return out if self.lorry_down is None else self._with_side_output(input, out)

    def _add(self, x: Tensor, out: Tensor, down: Tensor, up: Tensor, scale: Tensor) -> Tensor:
        hidden = functional.embedding(x, up) * scale
        return out + (hidden.to(down.dtype) @ down).to(out.dtype)


@final
@dataclass(frozen=True, eq=False, slots=True)
class Formula:
    """A trainable adapter at one module, which acts by the formula of its family on the weight."""

    name: str
    delta: Delta
    strength: float

    def parameters(self) -> dict[str, Tensor]:
        """Return its tensors by the attribute of the module that each of them is."""
        return {f"lorry_{self.name}_{field}": tensor for field, tensor in self.delta.tensors().items()}

    def delta_of(self, module: nn.Module) -> Delta:
        """Return the delta over the parameters that the module has now: sharding may have replaced them."""
        fields = self.delta.tensors()
        return self.delta.with_tensors(
            {field: getattr(module, f"lorry_{self.name}_{field}") for field in fields}
        )


def shares(module: nn.Module, key: str) -> bool:
    """Whether a patched module computes with a view of its parameter, as those of prepared models do."""
    view, parameter = module._buffers[f"lorry_{key}"], module._parameters.get(key)
    return view is not None and parameter is not None and view.data_ptr() == parameter.data_ptr()


def trained_names(adapter: str) -> tuple[str, str, str]:
    """Return the attributes of a patched module that hold a trainable adapter's down, up and scale."""
    return (f"lorry_{adapter}_down", f"lorry_{adapter}_up", f"lorry_{adapter}_scale")


@functools.cache
def side_path_class(cls: type[nn.Module]) -> type[SidePath]:
    """Return the subclass of a module's class that adds the side path; only copies, where no low-rank one is known."""
    if issubclass(cls, nn.Linear):
        return _subclass(cls, PackedLinearSidePath if computes_from_packed(cls) else LinearSidePath)
    if cls.forward is nn.Embedding.forward:  # not Gemma's, which multiplies what it has looked up
        return _subclass(cls, EmbeddingSidePath)
    return _subclass(cls, ConvSidePath if issubclass(cls, CONVOLUTIONS) else SidePath)


def _subclass(cls: type[nn.Module], side_path: type[SidePath]) -> type[SidePath]:
    names = {
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "lorry_class": cls,
    }
    if issubclass(type(cls), ABCMeta):
        return cast("type[SidePath]", _AheadOfItsLayer(cls.__name__, (cls, side_path), names))
    return type(cls.__name__, (side_path, cls), names)


class _AheadOfItsLayer(ABCMeta):
    """Makes classes of (layer, side path) in which the side path is asked first.

    Python lets an object change to a class whose first base is laid out as its own. `ABC` (quanto's layers are of it)
    and `nn.Module` are laid out unlike, so there the layer has to be the first base.
    """

    def mro(cls) -> list[type]:
        if "lorry_class" not in vars(cls):
            return super().mro()
        layer, side_path = cls.__bases__
        first = [one for one in side_path.__mro__ if one not in layer.__mro__]
        return [cls, *first, *layer.__mro__]


def _revived(cls: type[nn.Module]) -> nn.Module:
    """Make an empty patched module of `cls`, for pickle and `copy.deepcopy` to fill."""
    return object.__new__(side_path_class(cls))


def _follow_device(parameter: nn.Parameter, fn: Callable[[Tensor], Tensor]) -> None:
    """Move a parameter, and its gradient, to where `fn` moves a tensor, in the dtype that it has."""
    device = fn(parameter.data.new_empty(0)).device
    if device != parameter.device:
        parameter.data = parameter.data.to(device)
        parameter.grad = None if parameter.grad is None else parameter.grad.to(device)


def _can_accumulate(out: Tensor, hidden: Tensor, up: Tensor) -> bool:
    """Whether one product can add to the base's output, which saves writing and reading it once more."""
    return out.dtype == hidden.dtype == up.dtype and out.is_contiguous() and out.device == up.device


def _is_followed(*tensors: Tensor) -> bool:
    """Whether autograd is to know what becomes of one of them."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
