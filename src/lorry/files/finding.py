"""From what a user names to the path of a file on this machine."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path, PurePath

from lorry.errors import AdapterNotFoundError, did_you_mean
from lorry.files._choice import PICKLES, SAFE, check_pickle_wanted, choose_weights, missing
from lorry.files._hub import Repository
from lorry.files._shards import is_index, part_names

log = logging.getLogger(__name__)

CONFIG_NAME = "adapter_config.json"
"""PEFT's description of an adapter, in the folder of its weights."""

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_GONE = {
    "resume_download": "downloads are always resumed",
    "proxies": "set the environment variable HTTPS_PROXY",
    "mirror": "set the environment variable HF_ENDPOINT",
}
"""Arguments that huggingface_hub no longer takes, and what is done in their place."""


def find_weights(
    pretrained: str | os.PathLike[str],
    *,
    weight_name: str | None = None,
    use_safetensors: bool | None = None,
    subfolder: str | None = "",
    cache_dir: str | os.PathLike[str] | None = None,
    force_download: bool | None = False,
    resume_download: bool | None = False,
    proxies: dict[str, str] | None = None,
    local_files_only: bool | None = False,
    token: str | bool | None = None,
    revision: str | None = "main",
    mirror: str | None = None,
) -> Path:
    """Return the path of an adapter's weights, downloaded from the Hub where they are not on this machine.

    Of an adapter in several parts it is that of their index; the parts lie beside it.

    A path that exists here is never looked up on the network.

    Args:
        pretrained: a file, a folder, or the id of a repository of the Hub.
        weight_name: the file in the folder or repository; the one adapter there when None.
        use_safetensors: True refuses pickles, False looks for pickles only, None prefers safetensors.
        subfolder: of the folder or repository.
        cache_dir: where downloads are kept; huggingface_hub's own place when None.
        force_download: download again what the cache holds.
        resume_download, proxies, mirror: accepted, and logged as without effect; huggingface_hub has dropped them.
        local_files_only: download nothing.
        token: for private repositories; True for the one that `hf auth login` stored.
        revision: a branch, a tag or a commit.

    Raises:
        AdapterNotFoundError: nothing, or more than one thing, answers to that (says what is there); or `weight_name` or
            `subfolder` leads out of the folder.
        BrokenFileError: an index of parts is none.
    """
    if not os.fspath(pretrained):
        raise AdapterNotFoundError(
            "The name of the adapter is empty: expected a path, or the id of a repository of the Hub."
        )
    for name, value in {"resume_download": resume_download, "proxies": proxies, "mirror": mirror}.items():
        if value:
            log.warning("`%s` has no effect with today's huggingface_hub: %s.", name, _GONE[name])
    for argument, inner in {"weight_name": weight_name, "subfolder": subfolder}.items():
        check_inside(inner or "", argument)
    if weight_name:
        check_pickle_wanted(weight_name, use_safetensors)
    local = Path(pretrained).expanduser()
    if local.is_file():
        check_pickle_wanted(local.name, use_safetensors)
        return local
    if local.is_dir():
        return _in_folder(local / (subfolder or ""), weight_name, use_safetensors)
    _check_repository(os.fspath(pretrained))
    repository = Repository(
        os.fspath(pretrained),
        revision or "main",
        (subfolder or "").strip("/"),
        None if cache_dir is None else os.fspath(cache_dir),
        bool(force_download),
        bool(local_files_only),
        token,
    )
    return _in_repository(repository, weight_name, use_safetensors)


def check_inside(name: str, argument: str) -> None:
    """Raise when the name of a file in a folder leads out of that folder.

    Raises:
        AdapterNotFoundError: says which argument it was.
    """
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise AdapterNotFoundError(
            f"`{argument}={name!r}` leads out of the folder that it should lie in. Pass the path of the file or of its "
            "folder as the first argument."
        )


def _in_folder(folder: Path, weight_name: str | None, use_safetensors: bool | None) -> Path:
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    if weight_name is None:
        return folder / choose_weights(names, use_safetensors, f"The folder {folder}")
    if not (folder / weight_name).is_file():
        raise missing(weight_name, names, f"The folder {folder}")
    return folder / weight_name


def _in_repository(repository: Repository, weight_name: str | None, use_safetensors: bool | None) -> Path:
    name = weight_name or repository.choose(use_safetensors)
    path = repository.get(name)
    for part in part_names(path) if is_index(path) else ():
        repository.get((PurePath(name).parent / part).as_posix())
    if path.name.startswith("adapter_model."):
        repository.find((Path(name).parent / CONFIG_NAME).as_posix())
    return path


def _check_repository(name: str) -> None:
    if _REPOSITORY.fullmatch(name) and not name.startswith(".") and not name.endswith((*SAFE, *PICKLES)):
        return
    if "://" in name:
        raise AdapterNotFoundError(_about_address(name))
    parts = Path(name).parts
    hint = _near(Path(name))
    if len(parts) > 2 and name.endswith((*SAFE, *PICKLES)) and _REPOSITORY.fullmatch("/".join(parts[:2])):
        hint = (
            f" For a file of the Hub, pass {'/'.join(parts[:2])!r} and `weight_name={'/'.join(parts[2:])!r}`."
        )
    raise AdapterNotFoundError(f"{name}: there is no such file or folder.{hint}")


def _about_address(name: str) -> str:
    on_hub = re.match(
        r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/]+/[^/?#]+)(?:/(?:blob|resolve)/([^/]+)/([^?#]+))?",
        name,
    )
    if on_hub is None:
        return f"{name} is an address on the web: download the file and pass its path."
    repository, revision, file = on_hub.groups()
    then = f" and `weight_name={file!r}`" if file else ""
    then += f" and `revision={revision!r}`" if revision not in (None, "main") else ""
    return f"{name} is an address on the web. For a file of the Hub, pass {repository!r}{then}."


def _near(path: Path) -> str:
    """Suggest a file that lies beside the one that is not there."""
    folder = path.expanduser().parent
    if not folder.is_dir():
        return f" There is no folder {folder} either."
    return did_you_mean(path.name, [found.name for found in folder.iterdir()])
