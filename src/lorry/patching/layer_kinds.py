"""What a layer keeps its weight as: plain numbers, or one of the packed kinds of the quantization libraries.

Each kind knows itself by the parameter, gives the weight as plain numbers (those that the layer itself computes with),
says whether an adapter can be fused into it, and quantizes a weight again where its library can. No library is
imported: whoever made the parameter has imported it.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn

from lorry.binding import weight_shape
from lorry.errors import FuseError, StateError
from lorry.patching.repacking import gguf_can_write, like_gguf, like_quanto, like_torchao, torchao_can_write

PARAMETERS = ("weight", "bias")
"""The parameters of a module that a delta can be for."""
COMPUTE_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class LayerKind(ABC):
    """One way in which a layer keeps its weight."""

    name: ClassVar[str]
    refusal: ClassVar[str | None] = (
        "keeps its {key} as {held}, into which nothing can be fused without loss. Leave the adapter unfused: its side "
        "path loses nothing. To fuse, dequantize the base first, or load it in bfloat16 or float16."
    )
    """Why an adapter is not fused into this kind, and what to do; None where fusing is exact (rounded once)."""
    is_data: ClassVar[bool] = False
    """Whether the data is all that a parameter has, of whatever class it is: no library keeps more in it."""
    moved: ClassVar[tuple[str, ...]] = ()
    """What belongs to the parameter, and is moved to its layer's `state` at the first call."""

    @abstractmethod
    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        """Whether the module keeps the parameter in this way."""

    @abstractmethod
    def plain(self, module: nn.Module, parameter: Tensor) -> Tensor:
        """Return the parameter as plain numbers; the parameter itself where it is plain.

        Raises:
            StateError: its numbers are not here.
        """

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        """Whether other numbers can be quantized as these are, by the same library."""
        return False

    def repacked(self, module: nn.Module, parameter: Any, plain: Tensor) -> Tensor:
        """Return `plain` quantized as `parameter` is: a parameter of its class, or, where that is torch's, a tensor.

        Raises:
            StateError: it cannot be done.
        """
        raise StateError("cannot be quantized again")


@final
class Plain(LayerKind):
    """Floating point numbers, one for each of the weight's."""

    name = "plain numbers"
    refusal = None
    is_data = True

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        here = type(parameter.data) is Tensor and parameter.device.type != "meta"
        whole = parameter.ndim == 1 or tuple(parameter.shape) == weight_shape(module)
        return (
            here
            and whole
            and parameter.dtype in COMPUTE_DTYPES
            and not _quantizes_at_calls(module, parameter)
        )

    def plain(self, module: nn.Module, parameter: Tensor) -> Tensor:
        return parameter.data


@final
class Offloaded(LayerKind):
    """A hook has taken the numbers elsewhere until the next call."""

    name = "offloaded"
    refusal = "is offloaded: its {key} is not here. Fuse before offloading, or stay unfused."

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        return parameter.device.type == "meta"

    def plain(self, module: nn.Module, parameter: Tensor) -> Tensor:
        raise StateError("is offloaded: its weight is not here (load the adapter before offloading)")


@final
class Sharded(LayerKind):
    """Each process has a part (FSDP2, tensor parallelism)."""

    name = "sharded over processes (DTensor)"
    refusal = "has its {key} spread over processes. Fuse before sharding, or stay unfused."

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        return made_by(parameter.data, "torch.distributed")

    def plain(self, module: nn.Module, parameter: Tensor) -> Tensor:
        raise StateError("is spread over several processes, none of which has its whole weight")


@final
class EightBitFloat(LayerKind):
    """Layerwise casting keeps weights so and casts them for each call."""

    name = "float8"
    is_data = True

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        small = parameter.is_floating_point() and parameter.dtype not in COMPUTE_DTYPES
        return type(parameter.data) is Tensor and small

    def plain(self, module: nn.Module, parameter: Tensor) -> Tensor:
        return parameter.data.float()

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        return True

    def repacked(self, module: nn.Module, parameter: Any, plain: Tensor) -> Tensor:
        largest = torch.finfo(parameter.dtype).max
        return plain.clamp(-largest, largest).to(parameter.dtype)


@final
class BitsAndBytes4(LayerKind):
    """Two numbers a byte, with a scale for each block of them."""

    name = "bitsandbytes, 4 bits (NF4, FP4)"

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        return made_by(parameter, "bitsandbytes") and hasattr(parameter, "quant_state")

    def plain(self, module: nn.Module, parameter: Any) -> Tensor:
        state, packed = parameter.quant_state, parameter.data
        if state is None:
            raise StateError("is not quantized yet (move it to its device first)")
        library = sys.modules["bitsandbytes"]
        if getattr(state, "packing_format_for_cpu", False):  # by its first call on a CPU with AVX512-BF16
            unit = torch.eye(state.shape[1], dtype=state.dtype, device=packed.device)
            return library.matmul_4bit(unit, packed, quant_state=state).T
        return library.functional.dequantize_4bit(packed, state)

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        return parameter.quant_state is not None

    def repacked(self, module: nn.Module, parameter: Any, plain: Tensor) -> Tensor:
        options = ("blocksize", "compress_statistics", "quant_type", "quant_storage")
        how = {name: getattr(parameter, name) for name in options}
        fresh: Any = type(parameter)
        packed = fresh(plain.to(parameter.quant_state.dtype), requires_grad=False, **how).to(parameter.device)
        packed.module = parameter.module
        return packed


@final
class BitsAndBytes8(LayerKind):
    """int8 with a scale for each row."""

    name = "bitsandbytes, int8"
    moved = ("CB", "SCB")

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        return made_by(parameter, "bitsandbytes") and parameter.dtype == torch.int8

    def plain(self, module: Any, parameter: Any) -> Tensor:
        rows = (
            parameter.SCB if parameter.SCB is not None else module.state.SCB
        )  # they move there at the first call
        return sys.modules["bitsandbytes"].functional.int8_vectorwise_dequant(parameter.data, rows)

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        return True

    def repacked(self, module: nn.Module, parameter: Any, plain: Tensor) -> Tensor:
        fresh: Any = type(parameter)
        return fresh(plain.half(), requires_grad=False, has_fp16_weights=False).to(parameter.device)


@final
class Gguf(LayerKind):
    """Bytes of llama.cpp's kinds, as diffusers keeps them."""

    name = "GGUF"

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        return hasattr(parameter, "quant_type") and hasattr(parameter, "quant_shape")

    def plain(self, module: nn.Module, parameter: Tensor) -> Tensor:
        # The function that the layer's own forward calls stands beside the parameter's class.
        return sys.modules[type(parameter).__module__].dequantize_gguf_tensor(parameter)

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        return gguf_can_write(parameter.quant_type)

    def repacked(self, module: nn.Module, parameter: Any, plain: Tensor) -> Tensor:
        fresh: Any = type(parameter)
        return fresh(like_gguf(parameter, plain), quant_type=parameter.quant_type)


@final
class TorchAo(LayerKind):
    """A tensor subclass of torchao's, of any of its kinds."""

    name = "torchao"

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        return made_by(parameter.data, "torchao")

    def plain(self, module: nn.Module, parameter: Any) -> Tensor:
        return parameter.data.dequantize()

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        return torchao_can_write(parameter.data)

    def repacked(self, module: nn.Module, parameter: Any, plain: Tensor) -> Tensor:
        return _frozen(like_torchao(parameter.data, plain))


@final
class Quanto(LayerKind):
    """Before `freeze` the parameter is plain, and the layer quantizes it anew at each call."""

    name = "optimum-quanto"

    def claims(self, module: nn.Module, parameter: Tensor) -> bool:
        frozen = made_by(parameter.data, "optimum.quanto")
        return frozen or _quantizes_at_calls(module, parameter)

    def plain(self, module: Any, parameter: Any) -> Tensor:
        frozen = made_by(parameter.data, "optimum.quanto")
        return (parameter.data if frozen else like_quanto(module, parameter.data)).dequantize()

    def can_repack(self, module: nn.Module, parameter: Any) -> bool:
        return True

    def repacked(self, module: Any, parameter: Any, plain: Tensor) -> Tensor:
        plain = plain.to(parameter.dtype)
        frozen = made_by(parameter.data, "optimum.quanto")
        return _frozen(like_quanto(module, plain)) if frozen else plain


def _frozen(packed: Tensor) -> nn.Parameter:
    return nn.Parameter(packed, requires_grad=False)


def _quantizes_at_calls(module: nn.Module, parameter: Tensor) -> bool:
    return parameter.ndim > 1 and vars(module).get("weight_qtype") is not None


KINDS: tuple[LayerKind, ...] = (
    Plain(),
    Offloaded(),
    Sharded(),
    Quanto(),
    BitsAndBytes4(),
    BitsAndBytes8(),
    Gguf(),
    TorchAo(),
    EightBitFloat(),
)
"""In the order in which they are asked: what is offloaded no longer shows of what kind it is."""

OWN_PACKING = ("bitsandbytes", "optimum.quanto")
"""Libraries whose layers read packed bits in their own forward."""


def made_by(thing: object, package: str) -> bool:
    """Whether the class of `thing`, or one that it inherits from, is defined in `package`."""
    return defined_in(type(thing), package)


def defined_in(cls: type, package: str) -> bool:
    """Whether a class, or one that it inherits from, is defined in `package`."""
    return any(one.__module__ == package or one.__module__.startswith(f"{package}.") for one in cls.__mro__)


def computes_from_packed(cls: type[nn.Module]) -> bool:
    """Whether layers of this class compute from packed bits, and cannot from a plain weight put in their place."""
    return any(defined_in(cls, package) for package in OWN_PACKING)


def find_kind(module: nn.Module, key: str = "weight") -> LayerKind | None:
    """Return how the module keeps a parameter; None where it has no such parameter, or lorry does not know the kind."""
    parameter = module._parameters.get(key)
    if parameter is None:
        return None
    return next((kind for kind in KINDS if kind.claims(module, parameter)), None)


LOSSY = (
    " Or call `fuse_lora(lossy=True)`, which quantizes the sum again and loses a part of it: `lorry.fuse_support` says "
    "how much."
)
"""What else can be done where the layer's library can quantize again."""


def check_plain(path: str, module: nn.Module, key: str) -> nn.Parameter:
    """Return a parameter of plain numbers.

    Raises:
        FuseError: it is not there, offloaded, sharded, quantized, or of a kind that lorry does not know.
    """
    parameter, kind = _get(path, module, key)
    refusal = LayerKind.refusal if kind is None else kind.refusal
    if refusal is not None:
        raise FuseError(f"`{path}` {refusal.format(key=key, held=_held(module, parameter, kind))}")
    return parameter


def check_fusable(path: str, module: nn.Module, key: str, *, lossy: bool) -> tuple[nn.Parameter, LayerKind]:
    """Return a parameter that a delta can be added to without loss, or (`lossy`) that can be quantized again.

    Raises:
        FuseError: it is neither.
    """
    parameter, kind = _get(path, module, key)
    refusal, can_repack = refusal_of(kind, module, parameter)
    if kind is None or (refusal is not None and not (lossy and can_repack)):
        held = _held(module, parameter, kind)
        raise FuseError(f"`{path}` {(refusal or LayerKind.refusal or '').format(key=key, held=held)}")
    return parameter, kind


def refusal_of(kind: LayerKind | None, module: nn.Module, parameter: Tensor) -> tuple[str | None, bool]:
    """Return why nothing is fused into a parameter unasked and what can be done, and whether it can be with loss.

    The reason is None where fusing is exact.
    """
    refusal = LayerKind.refusal if kind is None else kind.refusal
    if refusal is None or kind is None or not kind.can_repack(module, parameter):
        return refusal, False
    return f"{refusal}{LOSSY}", True


def _get(path: str, module: nn.Module, key: str) -> tuple[nn.Parameter, LayerKind | None]:
    parameter = module._parameters.get(key)
    if parameter is None:
        raise FuseError(f"`{path}` has no {key} to fuse into. Leave the adapter unfused: that works here.")
    return parameter, find_kind(module, key)


def plain_parameter(path: str, module: nn.Module, key: str) -> Tensor:
    """Return a parameter as plain numbers: those that the layer computes with.

    Args:
        path: of the module, for the message.
        module: has the parameter.
        key: "weight" or "bias".

    Returns:
        The parameter's own memory where it is plain, else a new tensor.

    Raises:
        StateError: the numbers cannot be had; says why.
    """
    parameter, kind = module._parameters.get(key), find_kind(module, key)
    problem = f"has no {key}"
    if parameter is not None:
        problem = f"keeps its {key} as {_held(module, parameter, kind)}, which lorry cannot read"
    if parameter is not None and kind is not None:
        try:
            return kind.plain(module, parameter)
        except StateError as error:
            problem = str(error)
    raise StateError(
        f"`{path}` {problem}. It is needed for a copy with the adapter added, by which this adapter's family acts, and "
        "everything but linear layers in a model that `lorry.prepare` has prepared. A LoRA without that works here."
    )


def _held(module: nn.Module, parameter: Tensor, kind: LayerKind | None) -> str:
    held = f"{type(parameter.data).__name__} of {parameter.dtype} in a {type(module).__name__}"
    return held if kind is None else f"{held} ({kind.name})"
