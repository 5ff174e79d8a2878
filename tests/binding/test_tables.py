"""The tables of original names: what the script writes is what lies there, and it holds for models of full depth."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import single_file_utils
from scripts.names.generate import CHECKPOINTS, build, table_of
from scripts.names.patterns import patterns
from scripts.names.recording import record

from lorry.adapters import Adapter, Entry
from lorry.binding import ModuleIndex, bind, in_names_of_model, in_original_names, weight_shape
from lorry.binding.draft import equal
from lorry.binding.tables import FOLDER, Piece, find_model, original_names
from lorry.dialects import get_dialect, read_adapter
from lorry.files import TensorFile
from lorry.names import Target
from models import random_delta, tiny_flux_transformer

pytestmark = pytest.mark.filterwarnings("ignore:.* is deprecated and will be removed:FutureWarning:diffusers")
BY_MODEL = {checkpoint.model: checkpoint for checkpoint in CHECKPOINTS}


@pytest.mark.parametrize("name", BY_MODEL)
def test_each_table_is_what_the_conversion_code_says(name: str) -> None:
    written = json.loads((FOLDER / f"{name}.json").read_text("utf-8"))
    assert written == table_of(BY_MODEL[name]), "run `python -m scripts.names.generate`"


def test_there_is_no_table_without_a_checkpoint() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == BY_MODEL.keys()


@pytest.mark.parametrize("name", BY_MODEL)
def test_every_original_name_of_a_table_is_found_dotted_and_flattened(name: str) -> None:
    index = ModuleIndex(build(BY_MODEL[name]))
    for original, pieces in original_names(index.model, index.modules).items():
        dotted = Target("transformer", original)
        dotted = replace(dotted, original=index.is_exchanged(dotted))
        places = index.find(dotted)
        assert places is not None
        assert places == index.find(replace(dotted, path=original.replace(".", "_"), flat=True)), original
        assert {place.path for place in places} == {piece.path for piece in pieces}
        assert all(weight_shape(index.modules[place.path]) is not None for place in places), original


@pytest.mark.parametrize("name", [name for name, c in BY_MODEL.items() if c.also or c.older or c.spelt])
def test_other_spellings_mean_the_same_modules(name: str) -> None:
    index = ModuleIndex(build(BY_MODEL[name]))
    also = original_names(index.model, index.modules, "also")
    assert also
    for spelling, pieces in also.items():
        places = index.find(Target("transformer", spelling))
        assert places is not None
        assert places == index.find(Target("transformer", spelling.replace(".", "_"), flat=True)), spelling
        originals = [original for original, row in index.original.items() if row == pieces]
        same = [pieces[0].path] if len(pieces) == 1 else []
        names = [Target("transformer", name) for name in (*originals, *same)]
        assert any(index.find(target) == places for target in names), spelling


@pytest.mark.parametrize("name", [c.model for c in CHECKPOINTS if c.typed or c.also])
def test_a_lora_of_all_layers_goes_into_the_original_names_and_back(name: str) -> None:
    models = {"transformer": build(BY_MODEL[name])}
    shapes = {path: weight_shape(module) for path, module in models["transformer"].named_modules()}
    entries = tuple(
        Entry(Target("transformer", path), random_delta(shape, number, 2), ())
        for number, (path, shape) in enumerate(shapes.items())
        if path and shape is not None and len(shape) in (2, 4)
    )
    adapter = Adapter(entries, "test")
    for dialect in ("kohya", "comfyui"):
        file = get_dialect(dialect).write(in_original_names(adapter, models))
        again = in_names_of_model(read_adapter(file), models)
        found = {str(entry.target): entry.delta for entry in again.entries}
        assert found.keys() == {str(entry.target) for entry in entries}
        for entry in entries:
            assert equal(entry.delta, found[str(entry.target)]), entry.target


def test_the_names_of_full_depth_models_are_converted_as_diffusers_does() -> None:
    with torch.device("meta"):
        model = diffusers.FluxTransformer2DModel(guidance_embeds=True)
    names = original_names(model, dict(model.named_modules()))
    checkpoint: dict[str, torch.Tensor] = {}
    for number, (original, pieces) in enumerate(names.items()):
        rows = sum((weight_shape(model.get_submodule(p.path)) or (0,))[0] // p.of for p in pieces)
        tagged = number * 100_000 + torch.arange(rows)
        norm = original.endswith("_norm")
        checkpoint |= (
            {f"{original}.scale": tagged}
            if norm
            else {f"{original}.weight": tagged, f"{original}.bias": tagged}
        )
    expected = {key: tensor.clone() for key, tensor in checkpoint.items()}
    converted: dict[str, Any] = single_file_utils.convert_flux_transformer_checkpoint_to_diffusers(checkpoint)
    assert not checkpoint.keys() - {key for key in checkpoint if key.endswith(".bias")}
    index = ModuleIndex(model)
    for original in names:
        key = f"{original}.scale" if original.endswith("_norm") else f"{original}.weight"
        for place in index.find(Target("transformer", original)) or ():
            spans = place.rows or ((0, expected[key].shape[0]),)
            rows = torch.cat([expected[key][first:last] for first, last in spans])
            assert torch.equal(converted[f"{place.path}.weight"], rows), original


def test_a_checkpoint_is_told_for_a_model_and_not_for_its_variant() -> None:
    with torch.device("meta"):
        wan = ModuleIndex(diffusers.WanTransformer3DModel(num_layers=2))
    found = find_model(wan.original)
    assert found is not None
    assert found[0] in ("WanTransformer3DModel", "ChronoEditTransformer3DModel")  # of the same names
    assert {name: pieces for name, pieces in found[1].items() if name in wan.original} == dict(wan.original)


ATTENTION = "layers.0.self_attn.{}"
BLOCK = "transformer_blocks.1.attn1.{}"
TRAINED: list[tuple[str, str, tuple[int, int], list[str]]] = [
    (
        "OmniGenTransformer2DModel",
        "base_model.model.llm.layers.0.self_attn.qkv_proj.lora_{}.weight",
        (9216, 3072),
        [ATTENTION.format(f"to_{part}") for part in "qkv"],
    ),
    (
        "EasyAnimateTransformer3DModel",
        "lora_unet__transformer_blocks_1_attn2_to_q.lora_{}.weight",
        (3072, 3072),
        [BLOCK.format("add_q_proj")],
    ),
    (
        "EasyAnimateTransformer3DModel",
        "lora_unet__transformer_blocks_1_attn1_to_q.lora_{}.weight",
        (3072, 3072),
        [BLOCK.format("to_q")],
    ),
    (
        "Cosmos3OmniTransformer",
        "base_model.model.language_model.model.layers.0.self_attn.k_proj_moe_gen.lora_{}.weight",
        (1024, 4096),
        [ATTENTION.format("add_k_proj")],
    ),
    (
        "PRXTransformer2DModel",
        "diffusion_model.blocks.1.img_qkv_proj.lora_{}.weight",
        (5376, 1792),
        ["blocks.1.attention.img_qkv_proj"],
    ),
    *(
        (
            f"JoyImage{kind}Transformer3DModel",
            "double_blocks.0.txt_attn_qkv.lora_{}.default.weight",
            (9216, 3072),
            ["double_blocks.0.attn.txt_attn_qkv"],
        )
        for kind in ("Edit", "EditPlus")
    ),
]
"""A key that the trainer of a model writes, the shape of its layer, and the layers of diffusers that it is."""


@pytest.mark.parametrize(("name", "key", "shape", "paths"), TRAINED)
def test_what_a_models_own_trainer_writes_lands_on_its_layers(
    name: str, key: str, shape: tuple[int, int], paths: list[str]
) -> None:
    index = ModuleIndex(build(BY_MODEL[name]))
    down, up = ("down", "up") if key.startswith("lora_unet") else ("A", "B")
    tensors = {key.format(down): torch.ones(2, shape[1]), key.format(up): torch.ones(shape[0], 2)}
    (entry,) = read_adapter(TensorFile(tensors)).entries
    places = index.find(entry.target)
    assert places is not None
    assert [place.path for place in places] == paths
    report = bind(read_adapter(TensorFile(tensors)), {"transformer": index.model}).report
    assert (report.applied, report.unknown, report.mismatched) == (2, (), ())


def test_names_that_are_few_or_that_other_models_have_tell_no_checkpoint() -> None:
    layers = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
    for names in (
        ["t_embedder.mlp.0", "t_embedder.mlp.2"],
        [f"transformer_blocks.0.attn2.{layer}" for layer in layers],
        ["double_blocks.0.img_attn_qkv"],
        ["of.no.model"],
    ):
        assert find_model(names) is None, names


def test_a_checkpoint_that_lacks_what_its_table_has_is_not_told_for_one_of_fewer_names() -> None:
    for model, lacking in (
        ("LTX2VideoTransformer3DModel", "prompt_"),
        ("FluxTransformer2DModel", "guidance_in"),
    ):
        table = json.loads((FOLDER / f"{model}.json").read_text("utf-8"))["names"]
        found = find_model(name.replace("*", "0") for name in table if lacking not in name)
        assert found is not None
        assert found[0] == model


def test_a_model_without_a_table_has_no_original_names() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert original_names(model, ["0"]) == {}


def test_a_subclass_has_the_names_of_its_class() -> None:
    class Mine(type(tiny_flux_transformer())):
        """Somebody's own."""

    model = tiny_flux_transformer()
    names = original_names(model, dict(model.named_modules()))
    model.__class__ = Mine
    assert names
    assert original_names(model, dict(model.named_modules())) == names


# --- what the script refuses ----------------------------------------------------------------------------------------


def test_a_name_that_lands_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match=r"made_up lands on made_up\.weight, which the model does not have"):
        record(["made_up"], {}, lambda tensors: tensors, {"other.weight"})


def test_rows_that_are_lost_are_refused() -> None:
    def half(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"a.weight": tensors["a.weight"].chunk(2)[1]}

    with pytest.raises(ValueError, match="a: rows 0 to 6 are lost"):
        record(["a"], {}, half, {"a.weight"})


def test_a_module_of_the_model_that_no_name_reaches_is_refused() -> None:
    flux = BY_MODEL["FluxTransformer2DModel"]
    short = replace(flux, config={**flux.config, "num_layers": 3})
    with pytest.raises(ValueError, match=r"no original name reaches .*transformer_blocks\.2"):
        table_of(short)


def test_a_name_that_is_not_converted_is_refused() -> None:
    sd3 = BY_MODEL["SD3Transformer2DModel"]
    with pytest.raises(ValueError, match=r"made\.up is not converted"):
        table_of(replace(sd3, names=f"{sd3.names} made.up"))


def test_a_typed_row_must_be_of_modules_of_the_model() -> None:
    image = BY_MODEL["HunyuanImageTransformer2DModel"]
    with pytest.raises(ValueError, match=r"\['nowhere'\] are no modules of it"):
        table_of(replace(image, typed=f"{image.typed}\n made.up -> nowhere"))


def test_blocks_become_patterns_and_the_last_one_may_differ() -> None:
    landed = {f"blocks.{i}.a.0": (Piece(f"layers.{i}.b"),) for i in range(3)}
    landed |= {f"blocks.{i}.c": (Piece(f"layers.{i}.c"),) for i in range(2)} | {
        "blocks.2.c": (Piece("layers.2.c", 1, 2), Piece("layers.2.c", 0, 2)),
        "embed.0": (Piece("embedder"),),
        "last.1": (Piece("end.2-1.1"),),
        "same": (Piece("same"),),
    }
    assert patterns(landed) == {
        "blocks.*.a.0": "layers.*.b",
        "blocks.*.c": "layers.*.c",
        "blocks.$.c": "layers.$.c[1/2] + layers.$.c[0/2]",
        "embed.0": "embedder",
        "last.1": "end.2-1.1",
    }
    with pytest.raises(ValueError, match=r"blocks\.\*\.c: the blocks \[0, 2\] follow no rule"):
        patterns({name: row for name, row in landed.items() if name != "blocks.1.c"})


@pytest.mark.parametrize(
    ("form", "name"),
    [("learnable", "blocks.block0.blocks.0.block.attn.to_q.0"), (None, "blocks.0.self_attn.q_proj")],
)
def test_each_form_of_cosmos_has_its_own_checkpoints_names_written_and_both_read(
    form: str | None, name: str
) -> None:
    with torch.device("meta"):
        model = diffusers.CosmosTransformer3DModel(num_layers=1, extra_pos_embed_type=form)
    models = {"transformer": model}
    tensors = {
        f"transformer.transformer_blocks.0.attn1.to_q.lora_{side}.weight": torch.randn(shape)
        for side, shape in (("A", (2, 4096)), ("B", (4096, 2)))
    }
    adapter = in_original_names(read_adapter(TensorFile(tensors)), models)
    assert {str(entry.target.path) for entry in adapter.entries} == {name}
    assert get_dialect("comfyui").write(adapter).tensors.keys() == {
        f"diffusion_model.{name}.lora_{end}" for end in ("up.weight", "down.weight")
    }
    index = ModuleIndex(model)
    for spelling in ("blocks.block0.blocks.0.block.attn.to_q.0", "blocks.0.self_attn.q_proj"):
        assert index.find_path(Target("transformer", spelling)) == "transformer_blocks.0.attn1.to_q"
