"""Which of a folder's files is the adapter."""

from __future__ import annotations

from collections.abc import Iterable

from lorry.errors import AdapterNotFoundError, did_you_mean, some
from lorry.files._shards import INDEX, without_parts

SAFE = (".safetensors", ".sft", INDEX)
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

KNOWN_STEMS = ("pytorch_lora_weights", "adapter_model")
"""What diffusers and PEFT call the file; these are taken though others lie beside them."""
NOT_ADAPTERS = ("scheduler", "optimizer", "checkpoint", "diffusion_pytorch_model")
"""Parts of names that are no adapter's. Source: huggingface/diffusers, `loaders/lora_base.py`, and its model files."""


def choose_weights(names: Iterable[str], use_safetensors: bool | None, where: str) -> str:
    """Return the name of the one file in a folder that is an adapter.

    Args:
        names: of the files of one folder.
        use_safetensors: True for safetensors only, False for pickles only, None for safetensors where there are any.
        where: the folder or repository, for messages.

    Raises:
        AdapterNotFoundError: there is none, or more than one and none under a name that diffusers or PEFT gives.
    """
    names = without_parts(sorted(names))
    _refuse_pickled_parts(names, where)
    groups = {True: (SAFE,), False: (PICKLES[:1], PICKLES[1:]), None: (SAFE, PICKLES[:1], PICKLES[1:])}[
        use_safetensors
    ]
    for endings in groups:
        found = [
            name
            for name in names
            if name.endswith(endings) and not any(part in name for part in NOT_ADAPTERS)
        ]
        known = [name for stem in KNOWN_STEMS for name in found if name in {stem + end for end in endings}]
        if known or len(found) == 1:
            return (known or found)[0]
        if found:
            listed = some((repr(name) for name in found), 20)
            raise AdapterNotFoundError(
                f"{where} holds several adapters: {listed}. Say which with `weight_name=`."
            )
    wanted = {True: "safetensors", False: "pickle", None: "adapter"}[use_safetensors]
    hint = _hint(names, use_safetensors)
    raise AdapterNotFoundError(
        f"{where} holds no {wanted} file. It holds: {some(names, 10) or 'nothing'}.{hint}"
    )


def missing(weight_name: str, names: Iterable[str], where: str) -> AdapterNotFoundError:
    """Return the error that says that `where` has no file `weight_name`, and which ones it has."""
    names = sorted(names)
    near = did_you_mean(weight_name, names)
    listed = some([name for name in names if name.endswith((*SAFE, *PICKLES))], 10) or "no weights"
    return AdapterNotFoundError(f"{where} has no file {weight_name!r}.{near} It has: {listed}.")


def check_pickle_wanted(name: str, use_safetensors: bool | None) -> None:
    """Raise when `name` is a pickle's and safetensors are demanded.

    Raises:
        AdapterNotFoundError: says what to change.
    """
    if use_safetensors and name.endswith(PICKLES):
        raise AdapterNotFoundError(
            f"{name} is a pickle, and `use_safetensors=True` allows none. Leave that argument out to read it (lorry "
            "loads only tensors from it and runs no code)."
        )


def _refuse_pickled_parts(names: Iterable[str], where: str) -> None:
    index = next((name for name in names if name.endswith(".bin.index.json")), None)
    if index:
        raise AdapterNotFoundError(
            f"{where} holds an adapter in several pickles ({index}), which lorry does not read. Save it as safetensors."
        )


def _hint(names: Iterable[str], use_safetensors: bool | None) -> str:
    if use_safetensors and any(name.endswith(PICKLES) for name in names):
        return " A pickle is there: leave `use_safetensors` out to read it."
    return ""
