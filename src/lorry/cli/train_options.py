"""`lorry train`: an option for each setting of a run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import typer

from lorry.training.settings import kinds_of_settings, setting_fields

_SECTIONS: Final = {
    "run": "The run",
    "adapter": "The adapter",
    "data": "The pictures",
    "optimiser": "The optimiser",
    "loss": "The loss",
    "watch": "Watching",
}


def with_settings(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command that takes `given` an option for each setting, all of them not given by default.

    What a setting means stands once, in `Settings`; this makes `--caption-dropout` of `caption_dropout`.
    """
    own = dict(inspect.signature(command, eval_str=True).parameters)
    own.pop("given")
    options = [
        _parameter(one.name, one.metadata, one.default) for one in setting_fields() if one.name != "data"
    ]

    def called(**arguments: Any) -> Any:
        passed = {name: arguments[name] for name in own}
        chosen = {one.name: arguments[one.name] for one in options}
        return command(given={name: v for name, v in chosen.items() if v not in (None, [])}, **passed)

    parameters = [*own.values(), *options]
    called.__name__, called.__doc__ = command.__name__, command.__doc__
    called.__signature__ = inspect.Signature(parameters)
    called.__annotations__ = {one.name: one.annotation for one in parameters}
    return called


def _parameter(name: str, metadata: Mapping[str, Any], default: Any) -> inspect.Parameter:
    kind, flag = kinds_of_settings()[name], f"--{name.replace('_', '-')}"
    shown = (
        ""
        if default in (None, "", ())
        else f" [{str(default).lower() if default in (True, False) else default}]"
    )
    option: dict[str, Any] = {
        "help": metadata["help"] + shown,
        "rich_help_panel": _SECTIONS[metadata["section"]],
    }
    flags, words = [flag], None
    if kind is bool:
        flags = [f"{flag}/--no-{flag.removeprefix('--')}"]
    elif get_origin(kind) is Literal:
        words, kind = "|".join(get_args(kind)), str
    elif get_origin(kind) is tuple:
        kind, flags = list[str], [flag.removesuffix("s")]
    else:
        kind = next((one for one in get_args(kind) if one is not type(None)), kind)
    if words is not None:
        option["metavar"] = words
    annotation = Annotated[kind | None, typer.Option(*flags, show_default=False, **option)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
