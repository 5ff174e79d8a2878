"""The files that come with lorry: a tiny Stable Diffusion pipeline that draws 64x64 icons, and adapters for it."""

from __future__ import annotations

from pathlib import Path

from lorry.errors import AdapterNotFoundError, FileError, did_you_mean

_HERE = Path(__file__).resolve().parent


def base_folder() -> Path:
    """Return the folder of the shipped base model, in diffusers' layout.

    Raises:
        FileError: this installation of lorry came without it.
    """
    folder = _HERE / "tinybase"
    if not (folder / "model_index.json").is_file():
        raise FileError(
            f"The shipped base model is not at {folder}: expected `model_index.json` there. {_REINSTALL}"
        )
    return folder


def lora_files() -> dict[str, Path]:
    """Return the shipped adapters' files by name, in the order of their names.

    Raises:
        FileError: this installation of lorry came without them.
    """
    found = sorted((_HERE / "loras").glob("*.safetensors"))
    if not found:
        raise FileError(
            f"There are no adapters in {_HERE / 'loras'}: expected `*.safetensors` files. {_REINSTALL}"
        )
    return {path.stem: path for path in found}


def lora_file(name: str) -> Path:
    """Return the file of the shipped adapter `name`.

    Raises:
        AdapterNotFoundError: lorry ships none of that name.
        FileError: this installation of lorry came without its adapters.
    """
    files = lora_files()
    if name not in files:
        raise AdapterNotFoundError(
            f"lorry ships no adapter {name!r}: it has {', '.join(files)}.{did_you_mean(name, files)}"
        )
    return files[name]


_REINSTALL = "Install lorry again, from a complete checkout or wheel."
