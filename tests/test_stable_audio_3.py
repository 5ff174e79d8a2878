"""Stable Audio 3's own adapters, of every kind that its trainer has, held against its formulas in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import lorry
from lorry.dialects import get_dialect, read_adapter
from lorry.errors import FormatError, UnsupportedAdapterError
from lorry.files import TensorFile, read_adapter_file, write_safetensors
from lorry.names import Target
from lorry.workflows.convert import convert_file
from walks import check_same_file, check_there_and_back, models_of, walk

RANK, ALPHA = 4, 3.0
QKV = (0, 3, 1, 4, 2)
"""Where the model's fifths of a fused self-attention, two of q, two of k and v, are in the trainer's."""
BLOCK, OWN = "model.transformer.layers.1", "transformer_blocks.1"
LAYERS = {
    f"{BLOCK}.self_attn.to_qkv": ("transformer", f"{OWN}.self_attn.to_qkv"),
    f"{BLOCK}.self_attn.to_out": ("transformer", f"{OWN}.self_attn.to_out"),
    f"{BLOCK}.cross_attn.to_kv": ("transformer", f"{OWN}.cross_attn.to_kv"),
    f"{BLOCK}.ff.ff.0.proj": ("transformer", f"{OWN}.ff.proj_in"),
    f"{BLOCK}.ff.ff.2": ("transformer", f"{OWN}.ff.proj_out"),
    f"{BLOCK}.to_local_embed.0": ("transformer", f"{OWN}.to_local_embed.0"),
    "model.to_cond_embed.2": ("transformer", "to_cond_embed.2"),
    "model.transformer.global_cond_embedder.0": ("transformer", "global_cond_embedder.0"),
    "model.transformer.project_in": ("transformer", "proj_in"),
    "model.preprocess_conv": ("transformer", "preprocess_conv"),
    "conditioners.seconds_total.embedder.embedding.1": ("duration_embedder", "linear"),
}
"""Of the trainer: the component and the module that it is in diffusers."""
KINDS = ("lora", "dora-rows", "dora-cols", "bora")
CARRIERS = {"diffusers", "peft", "dotted-kohya", "stable-audio"}
"""The dialects that have a name for what embeds the duration."""


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def pipeline(differential: bool = True) -> Any:
    torch.manual_seed(0)
    transformer = diffusers.StableAudio3DiTModel(
        io_channels=8,
        embed_dim=32,
        depth=2,
        num_heads=4,
        cond_token_dim=16,
        ff_mult=2.0,
        global_cond_dim=16,
        local_add_cond_dim=9,
        timestep_features_dim=8,
        num_memory_tokens=2,
        use_differential_attention=differential,
    )
    with torch.no_grad():
        for parameter in transformer.parameters():
            parameter.copy_(torch.randn_like(parameter) / 4)  # some are zeros, which have no singular vectors
    embedder = diffusers.pipelines.stable_audio_3.modeling_stable_audio_3.StableAudio3DurationEmbedder(16, 8)
    absent: dict[str, Any] = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    pipe = diffusers.StableAudio3Pipeline(
        **absent,
        duration_embedder=embedder,
        transformer=transformer,
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
    )
    return lorry.attach(pipe)


def in_order(weight: Tensor, path: str, order: tuple[int, ...]) -> Tensor:
    """The rows of a fused self-attention in another order, those of other layers as they are."""
    if not path.endswith("to_qkv") or weight.shape[0] != 5 * weight.shape[1]:
        return weight
    parts = weight.chunk(5)
    return torch.cat([parts[i] for i in order])


def to_trainer(weight: Tensor, path: str) -> Tensor:
    return in_order(weight, path, tuple(QKV.index(i) for i in range(5)))


def parts_of(kind: str, weight: Tensor) -> dict[str, Tensor]:
    """What the trainer saves of one layer."""
    rows, columns = weight.flatten(1).shape
    rank = min(RANK, rows, columns)
    made = {"M_xs": noise(rank, rank)} if kind.endswith("xs") else {}
    made |= {} if made else {"lora_A": noise(rank, columns), "lora_B": noise(rows, rank) / 4}
    lengths = {"dora-rows": ("magnitude", rows), "dora-cols": ("magnitude", columns)}
    if kind.startswith("bora"):
        return made | {"magnitude_r": noise(rows).abs() + 1, "magnitude_c": noise(columns).abs() + 1}
    if (found := lengths.get(kind.removesuffix("-xs"))) is not None:
        return made | {found[0]: noise(found[1]).abs() + 1}
    return made


def changed(kind: str, parts: Mapping[str, Tensor], weight: Tensor) -> Tensor:
    """What the trainer's parametrization makes of a weight, in float64."""
    parts = {name: part.double() for name, part in parts.items()}
    plain = weight.detach().double().flatten(1)
    if "M_xs" in parts:
        rank = parts["M_xs"].shape[0]
        u, _, vh = torch.linalg.svd(plain, full_matrices=False)
        signs = torch.stack([column[column.abs().argmax()].sign() for column in u.T])
        delta = (u * signs)[:, :rank] @ parts["M_xs"] @ (vh.T * signs)[:, :rank].T
    else:
        delta = parts["lora_B"] @ parts["lora_A"]
    new = plain + ALPHA / RANK * delta
    if kind.startswith("dora"):
        axis = 0 if "cols" in kind else 1
        new = new / new.norm(dim=axis, keepdim=True) * parts["magnitude"].unsqueeze(axis)
    if kind.startswith("bora"):
        new = new / new.norm(dim=1, keepdim=True) * parts["magnitude_r"][:, None]
        new = new / new.norm(dim=0, keepdim=True) * parts["magnitude_c"][None]
    return new.reshape(weight.shape)


def config(kind: str, **changes: object) -> dict[str, str]:
    said = {
        "rank": RANK,
        "alpha": ALPHA,
        "adapter_type": kind,
        "dropout": 0.0,
        "include": None,
        "exclude": None,
    }
    return {"lora_config": json.dumps(said | changes)}


def made(pipe: Any, kind: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A file's tensors, and what they change in the pipeline."""
    tensors, changes = dict[str, Tensor](), {"transformer": dict[str, Tensor](), "duration_embedder": {}}
    for layer, (component, path) in LAYERS.items():
        weight = getattr(pipe, component).get_submodule(path).weight.detach()
        theirs = to_trainer(weight, path)
        parts = parts_of(kind, theirs)
        tensors |= {f"{layer}.parametrizations.weight.0.{name}": part for name, part in parts.items()}
        difference = changed(kind, parts, theirs) - theirs.double()
        changes[component][f"{path}.weight"] = in_order(difference, path, QKV)
    return tensors, changes


@pytest.mark.parametrize("differential", [True, False])
@pytest.mark.parametrize("kind", [*KINDS, *(f"{kind}-xs" for kind in KINDS)])
def test_every_kind_of_the_trainer_does_what_its_formula_says(
    kind: str, differential: bool, tmp_path: Path
) -> None:
    pipe = pipeline(differential)
    tensors, changes = made(pipe, kind)
    source = write_safetensors(tmp_path / "in.safetensors", tensors, config(kind))
    report = walk(pipe, source, changes)
    assert (report.dialect, report.applied, report.key_count) == ("stable-audio", len(tensors), len(tensors))
    assert {one.scale_sources for one in report.components} == {("metadata",)}
    back = tmp_path / "back.safetensors"
    convert_file(source, back, "stable-audio", lambda _: models_of(pipe))
    check_same_file(source, back)
    assert read_adapter_file(back).metadata["lora_config"] == config(kind)["lora_config"]
    if kind in ("lora", "dora-rows"):
        assert check_there_and_back(source, "stable-audio", tmp_path, models_of(pipe)) == CARRIERS


@pytest.mark.parametrize("differential", [True, False])
@pytest.mark.parametrize(
    ("kind", "less"), [("lora", set[str]()), ("dora-rows", set[str]()), ("dora-cols", {"diffusers", "peft"})]
)
def test_layers_of_the_transformer_go_into_every_dialect_that_has_the_family(
    kind: str, less: set[str], differential: bool, tmp_path: Path
) -> None:
    pipe = pipeline(differential)
    tensors = {key: tensor for key, tensor in made(pipe, kind)[0].items() if key.startswith("model.")}
    source = write_safetensors(tmp_path / "in.safetensors", tensors, config(kind))
    expected = CARRIERS | {"kohya", "comfyui", "lycoris", "onetrainer"}
    assert check_there_and_back(source, "stable-audio", tmp_path, models_of(pipe)) == expected - less


def test_its_checkpoints_say_the_same_beside_the_weights(tmp_path: Path) -> None:
    pipe = pipeline()
    tensors, changes = made(pipe, "dora-cols")
    said = json.loads(config("dora-cols")["lora_config"])
    torch.save({"state_dict": tensors, "lora_config": said}, tmp_path / "step=500.ckpt")
    assert walk(pipe, tmp_path / "step=500.ckpt", changes).dialect == "stable-audio"


STEM = f"{BLOCK}.self_attn.to_out.parametrizations.weight.0"
SQUARE = {f"{STEM}.lora_A": noise(RANK, 8), f"{STEM}.lora_B": noise(8, RANK), f"{STEM}.magnitude": noise(8)}


@pytest.mark.parametrize(
    ("kind", "magnitude", "of_columns"),
    [
        ("dora", noise(8), False),
        ("dora", noise(1, 8), True),
        ("dora", noise(8, 1), False),
        ("dora-cols", noise(8), True),
        ("dora-rows", noise(8), False),
    ],
)
def test_what_a_magnitude_is_of_the_text_tells_or_an_older_shape(
    kind: str, magnitude: Tensor, of_columns: bool
) -> None:
    (entry,) = read_adapter(TensorFile(SQUARE | {f"{STEM}.magnitude": magnitude}, config(kind))).entries
    assert entry.delta.on_input is of_columns  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("rows", "columns", "of_columns"), [(8, 6, False), (6, 8, True)])
def test_without_the_text_shapes_tell_and_the_strength_is_one(
    rows: int, columns: int, of_columns: bool
) -> None:
    factors = {f"{STEM}.lora_A": noise(RANK, columns), f"{STEM}.lora_B": noise(rows, RANK)}
    (entry,) = read_adapter(TensorFile(factors | {f"{STEM}.magnitude": noise(8)})).entries
    assert entry.target == Target("transformer", "layers.1.self_attn.to_out")
    assert (entry.delta.rank_scale, entry.scale_source) == (1.0, "rank")
    assert entry.delta.on_input is of_columns  # pyright: ignore[reportAttributeAccessIssue]


def text(**changes: object) -> Callable[[], TensorFile]:
    return lambda: TensorFile(SQUARE, config("dora-rows", **changes))


DAMAGED: Mapping[str, tuple[Callable[[], TensorFile], str]] = {
    "no text": (lambda: TensorFile(SQUARE), r"nothing says whether the magnitude is of rows or of columns"),
    "no JSON": (lambda: TensorFile(SQUARE, {"lora_config": "{"}), r"the metadata `lora_config` is no JSON"),
    "no object": (lambda: TensorFile(SQUARE, {"lora_config": "[1]"}), r"is no JSON object"),
    "another rank": (text(rank=8), r"`lora_config` says rank 8, and this layer's is 4"),
    "no strength": (
        text(alpha=0),
        r"`alpha` of `lora_config`: expected an alpha that is finite and not zero, got 0",
    ),
    "two adapters": (
        lambda: TensorFile(SQUARE | {f"{BLOCK}.ff.ff.2.parametrizations.weight.1.lora_A": noise(4, 8)}),
        r"holds 2 adapters at once",
    ),
    "whole numbers": (
        lambda: TensorFile({key: tensor.int() for key, tensor in SQUARE.items()}, config("dora-rows")),
        r"expected floating-point numbers in `lora_A`",
    ),
    "a magnitude of another layer": (
        lambda: TensorFile(SQUARE | {f"{STEM}.magnitude": noise(7)}, config("dora-rows")),
        r"expected 8 numbers for the rows",
    ),
    "a core that is no square": (
        lambda: TensorFile({f"{STEM}.M_xs": noise(RANK, 5)}, config("lora-xs")),
        r"a LoRA-XS of core \(4, 5\) has no meaning: expected a square matrix",
    ),
    "a magnitude of other columns": (
        lambda: TensorFile(
            {key: tensor for key, tensor in SQUARE.items() if "lora" in key}
            | {f"{STEM}.magnitude_r": noise(8), f"{STEM}.magnitude_c": noise(7)},
            config("bora"),
        ),
        r"a BoRA over LoRA of rows \(8,\), columns \(7,\) has no meaning",
    ),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_file_that_contradicts_itself_is_refused(what: str) -> None:
    make, match = DAMAGED[what]
    with pytest.raises(FormatError, match=match):
        read_adapter(make())


@pytest.mark.parametrize("missing", ["lora_A", "lora_B"])
def test_what_is_no_whole_layer_is_unknown(missing: str) -> None:
    left = {key: tensor for key, tensor in SQUARE.items() if not key.endswith(missing)}
    adapter = read_adapter(TensorFile(left, config("dora-rows")))
    assert (adapter.entries, adapter.unknown) == ((), tuple(sorted(left)))


@pytest.mark.parametrize(
    ("kind", "family"), [("lora-xs", "LoRA-XS"), ("bora", "BoRA"), ("dora-rows-xs", "LoRA-XS")]
)
def test_what_others_have_no_names_for_is_refused_by_name(kind: str, family: str, tmp_path: Path) -> None:
    pipe = pipeline()
    source = write_safetensors(tmp_path / "in.safetensors", made(pipe, kind)[0], config(kind))
    with pytest.raises(UnsupportedAdapterError, match=family):
        convert_file(source, tmp_path / "out.safetensors", "diffusers", lambda _: models_of(pipe))


def test_a_core_of_more_singular_vectors_than_a_layer_has_does_not_fit_it() -> None:
    pipe = pipeline()
    stem = "model.preprocess_conv.parametrizations.weight.0"
    file = TensorFile({f"{stem}.M_xs": noise(9, 9)}, config("lora-xs", rank=9))
    with pytest.raises(lorry.errors.BindingError, match="preprocess_conv"):
        lorry.binding.bind(read_adapter(file), models_of(pipe))


def test_a_text_that_is_not_true_of_the_layers_is_written_anew_and_all_else_of_it_stays() -> None:
    adapter = read_adapter(TensorFile(SQUARE, config("dora-rows", dropout=0.1)))
    entry = adapter.entries[0]
    delta: Any = entry.delta
    doubled = replace(entry, delta=replace(delta, inner=replace(delta.inner, alpha=2 * ALPHA)))
    file = get_dialect("stable-audio").write(replace(adapter, entries=(doubled,)))
    assert json.loads(file.metadata["lora_config"]) == json.loads(
        config("dora-rows", dropout=0.1, alpha=2 * ALPHA)["lora_config"]
    )
    assert read_adapter(file).entries[0].delta.rank_scale == 2 * ALPHA / RANK


def lora(layer: str, rank: int, block: str = "layers.0", alpha: float | None = None) -> dict[str, Tensor]:
    """A LoRA in a file of another dialect."""
    stem = f"transformer.{block}.{layer}"
    made = {f"{stem}.lora_down.weight": noise(rank, 8), f"{stem}.lora_up.weight": noise(8, rank)}
    return made if alpha is None else made | {f"{stem}.alpha": torch.tensor(alpha)}


TWO: Mapping[str, tuple[dict[str, Tensor], str]] = {
    "two ranks": (
        lora("self_attn.to_out", 4) | lora("ff.ff.2", 2),
        r"layers.0.self_attn.to_out \(its rank is 4",
    ),
    "two alphas": (
        lora("self_attn.to_out", 4, alpha=2.0) | lora("ff.ff.2", 4),
        r"layers.0.self_attn.to_out \(its alpha is 2.0, and one text says 4",
    ),
    "another model's layer": (lora("attn1.to_q", 4, "mid_block"), r"\(no name for this layer\)"),
}


@pytest.mark.parametrize("what", TWO)
def test_what_one_text_cannot_say_of_all_layers_is_refused(what: str) -> None:
    tensors, match = TWO[what]
    with pytest.raises(UnsupportedAdapterError, match=match):
        get_dialect("stable-audio").write(read_adapter(TensorFile(tensors, source="x.safetensors")))


def test_other_models_have_no_names_in_it(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "in.safetensors", lora("self_attn.to_out", 4))
    with pytest.raises(UnsupportedAdapterError, match="are for a StableAudio3DiTModel"):
        convert_file(
            source, tmp_path / "out.safetensors", "stable-audio", lambda _: {"unet": torch.nn.Linear(1, 1)}
        )


def test_words_go_with_it_to_another_dialect_and_back(tmp_path: Path) -> None:
    pipe = pipeline()
    words = {"modelspec.title": "Zuzu", "trigger_word": "zuzu"}
    tensors = {key: tensor for key, tensor in made(pipe, "lora")[0].items() if key.startswith("model.")}
    source = write_safetensors(tmp_path / "in.safetensors", tensors, config("lora") | words)
    for to in ("kohya", "peft", "diffusers"):
        there, back = (
            tmp_path / f"{to}{'' if to == 'peft' else '.safetensors'}",
            tmp_path / f"{to} back.safetensors",
        )
        convert_file(source, there, to, lambda _: models_of(pipe))
        convert_file(there, back, "stable-audio", lambda _: models_of(pipe))
        check_same_file(source, back)
        assert words.items() <= read_adapter_file(back).metadata.items()
        assert (
            json.loads(read_adapter_file(back).metadata["lora_config"]).items()
            >= {"rank": RANK, "alpha": ALPHA}.items()
        )
