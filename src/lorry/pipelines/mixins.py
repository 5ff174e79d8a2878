"""The LoRA loader API that diffusers' users know, over lorry's own core."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from lorry.adapters import Adapter
from lorry.binding import LoadReport
from lorry.errors import FuseError, NothingAppliedError, StateError, did_you_mean
from lorry.names import CONDITIONER, DENOISER, DENOISERS, TEXT_ENCODERS
from lorry.patching import FuseLoss, FuseLosses, Originals, Undo, check_strength, exclusive, find_state
from lorry.pipelines.calls import alone, wrap_calls
from lorry.pipelines.components import (
    check_components,
    components_of,
    states_of,
    told_of_peft,
    unwrapped,
)
from lorry.pipelines.devices import usable_device
from lorry.pipelines.loading import check_loaded, collector_paused, load_adapter
from lorry.pipelines.parts import check_parts
from lorry.pipelines.preloading import Preloaded
from lorry.pipelines.preparing import prepare
from lorry.pipelines.reading import Source, as_state_dict, configuration_of, read_source, with_prefix
from lorry.pipelines.saving import Layers, SaveFunction, saved_by, write_layers
from lorry.pipelines.strengths import for_component, per_adapter, strength_for
from lorry.pipelines.tokens import adapters_with_tokens, drop_tokens

Names = str | Sequence[str]


class LoraLoaderMixin:
    """Loads LoRA-type adapters into a pipeline with a `unet` or a `transformer` and up to three text encoders.

    Stands in front of a diffusers pipeline (`class MyPipeline(lorry.LoraLoaderMixin, StableDiffusionPipeline)`), or is
    given to a pipeline that exists by `lorry.attach(pipeline)`. Every method does the whole of what it says, or raises
    one of `lorry.errors` and leaves the pipeline as it was.
    """

    unet_name: ClassVar[str] = "unet"
    transformer_name: ClassVar[str] = "transformer"
    text_encoder_name: ClassVar[str] = "text_encoder"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        wrap_calls(cls)

    # --- load and save ----------------------------------------------------------------------------------------

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: Source | Preloaded,
        adapter_name: str | None = None,
        **kwargs: Any,
    ) -> LoadReport:
        """Read an adapter and put it into the denoiser and the text encoders; it becomes the one active adapter.

        Args:
            pretrained_model_name_or_path_or_dict: a Hub model id, a local directory, a local file, a state dict, or
                what `lorry.preload` has begun to read.
            adapter_name: what to call it; `default_{i}` when None, i the number of adapters already loaded.
            kwargs: those of `lora_state_dict`, and
                `strict` (True): refuse a file of which any tensor has no place; when false, the rest is loaded;
                `hotswap` (False): put it in the place of the adapter of that name;
                `denoisers` (None): of a pipeline with two (Wan 2.2), the name or names of those that get the file. When
                None, the one whose noise the file's name or title says (`high_noise`: `transformer`, `low_noise`:
                `transformer_2`), else the first;
                `load_into_transformer_2` (False): the same as `denoisers="transformer_2"`;
                `load_into_transformer_ref` (False): the same as `denoisers="transformer_ref"` (MiniMax-H3).

        Returns:
            The load report, which accounts for every key of the file. It is logged, too.

        Raises:
            FileError: the file cannot be had or read.
            FormatError: its names are not understood.
            BindingError: it does not fit this pipeline.
            DuplicateAdapterError: the name is taken.
        """
        strict, hotswap = kwargs.pop("strict", True), kwargs.pop("hotswap", False)
        denoisers = _listed(kwargs.pop("denoisers", None) or [])
        for other in ("transformer_2", "transformer_ref"):
            if kwargs.pop(f"load_into_{other}", False):
                denoisers = [other]
        given, adapter = pretrained_model_name_or_path_or_dict, None
        try:
            with collector_paused():
                adapter = _read(given, kwargs)
            owned = given.owned if isinstance(given, Preloaded) else not isinstance(given, Mapping)
            models, how = components_of(self), {"strict": strict, "hotswap": hotswap, "owned": owned}
            with exclusive(models.values()), collector_paused():
                return load_adapter(adapter, models, adapter_name, **how, denoisers=denoisers, pipeline=self)
        except BaseException as error:
            if isinstance(given, Preloaded) and adapter is not None:
                given.put_back(adapter)
            error.add_note(f"while loading {_described(given)} into {type(self).__name__}")
            raise

    @classmethod
    def lora_state_dict(
        cls, pretrained_model_name_or_path_or_dict: Source, **kwargs: Any
    ) -> tuple[dict[str, Tensor], dict[str, float] | None]:
        """Read an adapter into a dict of tensors under today's diffusers names, and its alphas.

        Args:
            pretrained_model_name_or_path_or_dict: a Hub model id, a local directory, a local file, or a state dict.
            kwargs: `weight_name`, `use_safetensors`, `cache_dir`, `force_download` (False), `resume_download` (False),
                `proxies`, `local_files_only` (False), `token` (str or bool), `revision` ("main"), `subfolder` (""),
                `low_cpu_mem_usage` (accepted; nothing is initialised either way), `mirror`, and `unet_config`, which
                tells what flattened and original (SGM) block names mean.

        Returns:
            `(state_dict, network_alphas)`: tensors under `unet.….lora_A.weight`, floats under `unet.….alpha` (None
            where every strength is 1). With `return_lora_metadata=True`, the adapter's configuration
            (`{"unet.r": 4, …}`) out of the file's header as a third value; None where it has none.

        Raises:
            FileError, FormatError: the file cannot be had, read or understood.
        """
        adapter = read_source(pretrained_model_name_or_path_or_dict, **kwargs)
        found = as_state_dict(adapter, _denoiser_of(cls), kwargs.get("unet_config"))
        if not kwargs.get("return_lora_metadata"):
            return found
        return (*found, configuration_of(adapter))  # type: ignore[return-value]

    @classmethod
    def load_lora_into_unet(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        unet: nn.Module,
        low_cpu_mem_usage: bool | None = None,
        adapter_name: str | None = None,
        _pipeline: object = None,
        metadata: Mapping[str, Any] | None = None,
        hotswap: bool = False,
    ) -> LoadReport:
        """Load what a state dict has for a UNet into it; keys may be bare or prefixed by `unet.`.

        Raises:
            NothingAppliedError: the state dict has nothing for a UNet.
        """
        return _load_into("unet", unet, state_dict, network_alphas, adapter_name, metadata, hotswap)

    @classmethod
    def load_lora_into_transformer(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        transformer: nn.Module,
        low_cpu_mem_usage: bool | None = None,
        adapter_name: str | None = None,
        _pipeline: object = None,
        metadata: Mapping[str, Any] | None = None,
        hotswap: bool = False,
    ) -> LoadReport:
        """Load what a state dict has for a transformer into it; keys may be bare or prefixed by `transformer.`.

        Raises:
            NothingAppliedError: the state dict has nothing for a transformer.
        """
        return _load_into(
            "transformer", transformer, state_dict, network_alphas, adapter_name, metadata, hotswap
        )

    @classmethod
    def load_lora_into_text_conditioner(
        cls,
        state_dict: Mapping[str, Tensor],
        text_conditioner: nn.Module,
        adapter_name: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        _pipeline: object = None,
        low_cpu_mem_usage: bool | None = None,
        hotswap: bool = False,
    ) -> LoadReport:
        """Load what a state dict has for Anima's model between text encoder and transformer into it.

        Raises:
            NothingAppliedError: the state dict has nothing for it.
        """
        return _load_into(CONDITIONER, text_conditioner, state_dict, None, adapter_name, metadata, hotswap)

    @classmethod
    def load_lora_into_text_encoder(
        cls,
        state_dict: Mapping[str, Tensor],
        network_alphas: Mapping[str, float] | None,
        text_encoder: nn.Module,
        prefix: str | None = None,
        lora_scale: float = 1.0,
        low_cpu_mem_usage: bool | None = None,
        adapter_name: str | None = None,
        _pipeline: object = None,
        metadata: Mapping[str, Any] | None = None,
        hotswap: bool = False,
    ) -> LoadReport:
        """Load what a state dict has for a text encoder, under `prefix` (`text_encoder` when None), into it.

        Args:
            lora_scale: its strength: scales the adapter's output before it is added to a layer's own.

        Raises:
            NothingAppliedError: the state dict has nothing under `prefix`.
        """
        name = cls.text_encoder_name if prefix is None else prefix
        if name not in TEXT_ENCODERS:
            state_dict, network_alphas, metadata = (
                with_prefix(given or {}, name, TEXT_ENCODERS[0])
                for given in (state_dict, network_alphas, metadata)
            )
            name = TEXT_ENCODERS[0]
        return _load_into(
            name,
            text_encoder,
            state_dict,
            network_alphas,
            adapter_name,
            metadata,
            hotswap,
            check_strength(lora_scale, "`lora_scale`"),
        )

    @classmethod
    def save_lora_weights(
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Layers = None,
        text_encoder_lora_layers: Layers = None,
        transformer_lora_layers: Layers = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: SaveFunction | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        transformer_lora_adapter_metadata: Mapping[str, Any] | None = None,
        *,
        text_encoder_2_lora_layers: Layers = None,
        text_encoder_3_lora_layers: Layers = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_3_lora_adapter_metadata: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> None:
        """Write adapter layers to `save_directory`, as today's diffusers reads them.

        Args:
            save_directory: made when it is not there.
            unet_lora_layers: a dict of modules or of tensors by name; the others likewise.
            is_main_process: on other than the main process nothing is written.
            weight_name: `pytorch_lora_weights.safetensors` when None, or `.bin` when not `safe_serialization`.
            save_function: called with (tensors, path) in place of the writer, for distributed training.
            safe_serialization: write safetensors, not a pickle.
            unet_lora_adapter_metadata: the adapter's configuration, kept in the file's header; the others likewise.
            others: the same for other components, `transformer_2_lora_layers` or `prior_lora_adapter_metadata`.

        Raises:
            StateError: there is nothing to save, or `save_directory` is a file.
            TypeError: an argument that nothing is known of.
        """
        layers = {
            "unet": unet_lora_layers,
            "transformer": transformer_lora_layers,
            "text_encoder": text_encoder_lora_layers,
            "text_encoder_2": text_encoder_2_lora_layers,
            "text_encoder_3": text_encoder_3_lora_layers,
        }
        metadata = {
            "unet": unet_lora_adapter_metadata,
            "transformer": transformer_lora_adapter_metadata,
            "text_encoder": text_encoder_lora_adapter_metadata,
            "text_encoder_2": text_encoder_2_lora_adapter_metadata,
            "text_encoder_3": text_encoder_3_lora_adapter_metadata,
        }
        for name, value in others.items():
            component, kind = saved_by(name)
            {"layers": layers, "adapter_metadata": metadata}[kind][component] = value
        write_layers(
            save_directory, layers, metadata, is_main_process, weight_name, save_function, safe_serialization
        )

    @alone
    def unload_lora_weights(
        self, reset_to_overwritten_params: bool = True, *, keep_fused: bool = False
    ) -> None:
        """Make the pipeline as if no adapter had ever been loaded: fused ones are taken out by their saved bits.

        Those that diffusers' own loader or `unet.add_adapter` has put in by PEFT go too.

        Args:
            reset_to_overwritten_params: accepted for diffusers' sake: lorry always puts back what was there.
            keep_fused: leave fused weights as they are, for good, and let their originals go.

        Raises:
            FuseError: adapters were fused without keeping originals, and not `keep_fused`.
            StateError: there are PEFT's, and diffusers has no loader for this pipeline.
        """
        with Undo() as undo:
            for state in states_of(self).values():
                state.clear(undo, keep_fused=keep_fused)
            drop_tokens(self, adapters_with_tokens(self), undo)
        if told_of_peft(components_of(self)):
            self._unload_of_peft()

    def _unload_of_peft(self) -> None:
        """Take out what diffusers' own loader or `unet.add_adapter` has put in, by diffusers' own method."""
        unload = getattr(super(), "unload_lora_weights", None)
        if unload is None:
            raise StateError(
                f"diffusers cannot take PEFT's adapters out of `{type(self).__name__}`, whose models carry some: call "
                "`unload_lora()` of each model that does."
            )
        unload()

    # --- which act, and how strongly --------------------------------------------------------------------------

    @alone
    def set_adapters(self, adapter_names: Names, adapter_weights: Any = None) -> None:
        """Make these adapters, and only these, active, each at its weight.

        Args:
            adapter_names: one name or several.
            adapter_weights: one for all or a list of one for each; None is 1.0. Each is a number, a `lorry.Strengths`
                (by component, kind of layer, part of a path, and step), a tag out of `lorry.parse_prompt`, or a dict
                per component, whose values are numbers or (for a UNet) dicts per block, block index and attention:
                `{"unet": {"down": 0.5, "up": {"block_0": [0.1, 0.2, 0.3]}}}`.

        Raises:
            UnknownAdapterError: a name is loaded nowhere.
            StateError: the weights do not fit the names or the model.
        """
        names = _listed(adapter_names)
        models = components_of(self)
        check_loaded(names, models)
        weights = per_adapter(names, adapter_weights)
        check_parts(weights, models)
        wanted = {}
        for component, model in models.items():
            if (state := find_state(model)) is not None:
                chosen = [for_component(weight, component, models) for weight in weights]
                wanted[state] = {
                    n: strength_for(w, component, state.model) for n, w in zip(names, chosen, strict=True)
                }
        with Undo() as undo:
            for state, strengths in wanted.items():
                state.set_active(strengths, undo)

    @alone
    def set_adapters_for_text_encoder(
        self, adapter_names: Names, text_encoder: nn.Module | None = None, text_encoder_weights: Any = None
    ) -> None:
        """Make these adapters, and only these, active on one text encoder (`self.text_encoder` when None).

        Raises:
            UnknownAdapterError: a name is not loaded on it.
            StateError: the weights do not fit the names.
        """
        encoder = self._text_encoder(text_encoder)
        names = _listed(adapter_names)
        check_loaded(names, {"text_encoder": encoder})
        weights = per_adapter(names, text_encoder_weights)
        component = next((n for n, m in components_of(self).items() if m is encoder), self.text_encoder_name)
        strengths = {
            name: strength_for(weight, component, encoder)
            for name, weight in zip(names, weights, strict=True)
        }
        state = find_state(encoder)
        if state is not None:
            with Undo() as undo:
                state.set_active(strengths, undo)

    def disable_lora(self) -> None:
        """Turn all adapters off; `enable_lora` brings them back as they were set."""
        self._set_enabled(False)

    def enable_lora(self) -> None:
        """Turn the adapters on again, with the names and weights that were set."""
        self._set_enabled(True)

    @alone
    def _set_enabled(self, enabled: bool) -> None:
        with Undo() as undo:
            for state in states_of(self).values():
                state.set_enabled(enabled, undo)

    @alone
    def disable_lora_for_text_encoder(self, text_encoder: nn.Module | None = None) -> None:
        """Turn all adapters of one text encoder off (of `self.text_encoder` when None)."""
        _set_enabled_on(self._text_encoder(text_encoder), False)

    @alone
    def enable_lora_for_text_encoder(self, text_encoder: nn.Module | None = None) -> None:
        """Turn the adapters of one text encoder on again (of `self.text_encoder` when None)."""
        _set_enabled_on(self._text_encoder(text_encoder), True)

    def _text_encoder(self, given: nn.Module | None) -> nn.Module:
        encoder = unwrapped(given if given is not None else getattr(self, self.text_encoder_name, None))
        if encoder is None:
            raise ValueError("This pipeline has no text encoder of its own: pass `text_encoder`.")
        return encoder

    @alone
    def delete_adapters(self, adapter_names: Names) -> None:
        """Remove adapters from every component, unfusing them where they are fused; their memory is freed.

        Raises:
            UnknownAdapterError: a name is loaded nowhere; none is removed.
        """
        names = _listed(adapter_names)
        check_loaded(names, components_of(self))
        with Undo() as undo:
            for state in states_of(self).values():
                state.remove(names, undo)
            drop_tokens(self, names, undo)

    def get_active_adapters(self) -> list[str]:
        """Return the names of the active adapters, e.g. `["toy"]`."""
        return list(dict.fromkeys(name for state in states_of(self).values() for name in state.active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """Return the loaded adapters by component, e.g. `{"unet": ["toy", "pixel"], "text_encoder": ["pixel"]}`."""
        return {
            component: list(state.adapters) for component, state in states_of(self).items() if state.adapters
        }

    @alone
    def set_lora_device(self, adapter_names: Names, device: torch.device | str | int) -> None:
        """Move adapters' weights to a device, e.g. to park them on the CPU.

        An active adapter that is parked goes on acting, from a copy where its layers are; park inactive ones to free
        memory.

        Raises:
            UnknownAdapterError: a name is loaded nowhere.
            StateError: this machine has no such device.
        """
        names, place = _listed(adapter_names), usable_device(device)
        check_loaded(names, components_of(self))
        with Undo() as undo:
            for state in states_of(self).values():
                state.park(names, place, undo)

    # --- fuse and unfuse --------------------------------------------------------------------------------------

    @alone
    def fuse_lora(
        self,
        fuse_unet: bool | Iterable[str] = True,
        fuse_text_encoder: bool = True,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Names | None = None,
        *,
        components: Iterable[str] | None = None,
        fuse_transformer: bool | None = None,
        originals: Originals = "device",
        lossy: bool = False,
    ) -> FuseLosses:
        """Add adapters into their layers' own weights, from the saved originals in one rounding.

        Args:
            fuse_unet: fuse the denoiser (`unet` or `transformer`). A list is read as `components`.
            fuse_text_encoder: fuse the text encoders.
            lora_scale: their strength, times the weights set.
            safe_fusing: look for NaN and infinite values first, and where there are any, fuse nothing.
            adapter_names: which; all active ones when None.
            components: which components, by name; goes before the `fuse_…` arguments.
            fuse_transformer: the same as `fuse_unet`.
            originals: where the original weights are kept for `unfuse_lora`: "device" (beside the fused ones; unfusing
                swaps pointers), "cpu", "disk" (a temporary file), or "none" (no memory, and no way back). Of quantized
                weights: "device" or "none".
            lossy: where a weight is quantized, add to the dequantized one and quantize the sum again, by the library
                that quantized it. What that would lose, `lorry.fuse_support(pipeline, adapter_name)` says beforehand.

        Returns:
            What was lost by quantizing again, by layer and in all; false where nothing was.

        Raises:
            FuseError: nothing is active, an adapter is fused already, a weight cannot take a delta without loss (and
                not `lossy`, or it cannot be quantized again), or `safe_fusing` found values that are not finite.
                Nothing was fused.
            UnknownAdapterError: a name is loaded nowhere.
        """
        if originals not in get_args(Originals):
            known = get_args(Originals)
            raise StateError(
                f"`originals`: expected one of {', '.join(map(repr, known))}, got {originals!r}."
                + did_you_mean(str(originals), known)
            )
        scale = check_strength(lora_scale, "`lora_scale`")
        chosen = self._chosen(components, fuse_unet, fuse_text_encoder, fuse_transformer)
        states = states_of(self, chosen)
        names = None if adapter_names is None else _listed(adapter_names)
        if names is not None:
            check_loaded(names, components_of(self))
        fusable = {
            component: [name for name in (state.active if names is None else names) if name in state.adapters]
            for component, state in states.items()
        }
        if not any(fusable.values()):
            named = f"of {', '.join(names)} is loaded" if names else "is named"
            which = "is active" if names is None else named
            raise FuseError(
                f"There is nothing to fuse: no adapter {which} on {', '.join(chosen)}."
                + told_of_peft(components_of(self))
            )
        if all(name in states[component].fused for component, found in fusable.items() for name in found):
            raise FuseError(
                "There is nothing to fuse: all of it is fused already. Call `unfuse_lora()` first."
            )
        lost: dict[str, FuseLoss] = {}
        with Undo() as undo:
            for component, state in states.items():
                here = state.fuse(undo, names, scale, safe=safe_fusing, originals=originals, lossy=lossy)
                lost |= {f"{component}.{name}": one for name, one in here.items()}
        return FuseLosses(lost)

    @alone
    def unfuse_lora(
        self,
        unfuse_unet: bool | Iterable[str] = True,
        unfuse_text_encoder: bool = True,
        *,
        components: Iterable[str] | None = None,
        unfuse_transformer: bool | None = None,
    ) -> None:
        """Undo `fuse_lora`: the weights are, bit for bit, what they were. The arguments are those of `fuse_lora`.

        Raises:
            FuseError: the adapters were fused without keeping originals.
        """
        with Undo() as undo:
            for state in states_of(
                self, self._chosen(components, unfuse_unet, unfuse_text_encoder, unfuse_transformer)
            ).values():
                state.unfuse(undo)

    def _chosen(
        self,
        components: Iterable[str] | None,
        denoisers: bool | Iterable[str],
        text_encoders: bool,
        transformer: bool | None,
    ) -> list[str]:
        if not isinstance(text_encoders, bool):
            raise StateError(
                f"Whether text encoders are meant: expected True or False, got {text_encoders!r}. "
                "Pass `components` and `lora_scale` by name."
            )
        if components is None and not isinstance(denoisers, bool):
            components = denoisers
        if components is not None:
            return check_components(self, [components] if isinstance(components, str) else components)
        with_denoiser = denoisers if transformer is None else transformer
        known = components_of(self)
        return [name for name in known if (text_encoders if name in TEXT_ENCODERS else with_denoiser)]

    @property
    def fused_loras(self) -> set[str]:
        """The names of the adapters that are fused in any component."""
        return {name for state in states_of(self).values() for name in state.fused}

    @property
    def num_fused_loras(self) -> int:
        """How many adapters are fused."""
        return len(self.fused_loras)

    @property
    def lora_scale(self) -> float:
        """The strength that the running call asked for; 1.0 outside a call."""
        return getattr(self, "_lora_scale", 1.0)

    def enable_lora_hotswap(self, target_rank: int = 128, check_compiled: str = "error") -> None:
        """Prepare every component for `torch.compile`, by slots of `target_rank`: see `lorry.prepare`.

        Without it, `load_lora_weights(…, hotswap=True)` works as well, and compiled models recompile when the joined
        rank or the set of targets changes.

        Args:
            target_rank: of the slots; must be at least 1. Adapters of a higher rank act through copies of weights.
            check_compiled: "error", "warn" or "ignore"; nothing is checked. A model that is compiled already compiles
                once more.

        Raises:
            ValueError: an argument has none of these values.
            StateError: a layer cannot carry adapters.
        """
        if target_rank < 1 or check_compiled not in ("error", "warn", "ignore"):
            raise ValueError(
                f"Expected a rank of at least 1 and 'error', 'warn' or 'ignore'; got {target_rank}, {check_compiled!r}."
            )
        prepare(self, target_rank)


class StableDiffusionXLLoraLoaderMixin(LoraLoaderMixin):
    """The same for SDXL, with two text encoders."""

    @classmethod
    def save_lora_weights(  # type: ignore[override]
        cls,
        save_directory: str | os.PathLike[str],
        unet_lora_layers: Layers = None,
        text_encoder_lora_layers: Layers = None,
        text_encoder_2_lora_layers: Layers = None,
        is_main_process: bool = True,
        weight_name: str | None = None,
        save_function: SaveFunction | None = None,
        safe_serialization: bool = True,
        unet_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_lora_adapter_metadata: Mapping[str, Any] | None = None,
        text_encoder_2_lora_adapter_metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Write adapter layers to `save_directory`; see `LoraLoaderMixin.save_lora_weights`.

        Raises:
            StateError: there is nothing to save, or `save_directory` is a file.
        """
        super().save_lora_weights(
            save_directory,
            unet_lora_layers,
            text_encoder_lora_layers,
            text_encoder_2_lora_layers=text_encoder_2_lora_layers,
            is_main_process=is_main_process,
            weight_name=weight_name,
            save_function=save_function,
            safe_serialization=safe_serialization,
            unet_lora_adapter_metadata=unet_lora_adapter_metadata,
            text_encoder_lora_adapter_metadata=text_encoder_lora_adapter_metadata,
            text_encoder_2_lora_adapter_metadata=text_encoder_2_lora_adapter_metadata,
        )


def _listed(names: Names) -> list[str]:
    if isinstance(names, str):
        return [names]
    listed: list[Any] = list(names) if isinstance(names, Iterable) else [names]
    if not all(isinstance(name, str) for name in listed):
        raise StateError(f"Expected the name of an adapter or a list of names, got {names!r}.")
    return listed


def _read(source: Source | Preloaded, where: Mapping[str, Any]) -> Adapter:
    if not isinstance(source, Preloaded):
        return read_source(source, early=True, **where)
    if where:
        raise TypeError(f"{next(iter(where))!r} says where a file is: give it to `lorry.preload`.")
    return source.take()


def _described(source: Source | Preloaded) -> str:
    if isinstance(source, Mapping):
        return f"a state dict of {len(source)} tensors"
    return str(source) if isinstance(source, (str, os.PathLike, Preloaded)) else f"a {type(source).__name__}"


def _denoiser_of(cls: type) -> str:
    places = inspect.signature(cls.__init__).parameters
    return next((name for name in DENOISERS if name in places), DENOISERS[0])


def _set_enabled_on(encoder: nn.Module, enabled: bool) -> None:
    state = find_state(encoder)
    if state is not None:
        with Undo() as undo:
            state.set_enabled(enabled, undo)


def _load_into(
    component: str,
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    alphas: Mapping[str, float] | None,
    name: str | None,
    metadata: Mapping[str, Any] | None,
    hotswap: bool,
    strength: float = 1.0,
) -> LoadReport:
    whole = read_source(state_dict, alphas, metadata)
    adapter = whole.only(component, DENOISER if component in DENOISERS else component)
    if not (adapter.entries or adapter.embeddings or adapter.unknown):
        raise NothingAppliedError(
            f"The state dict has nothing for the {component}: its {whole.key_count} keys are for "
            f"{' and '.join(whole.components)}. `load_lora_weights` puts each part of it where it belongs."
        )
    models = {component: unwrapped(model)}
    with exclusive(models.values()):
        return load_adapter(adapter, models, name, strength=strength, hotswap=hotswap)
