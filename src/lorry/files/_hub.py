"""Files of the Hugging Face Hub, through huggingface_hub."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lorry.errors import AdapterNotFoundError
from lorry.files._choice import choose_weights, missing


@final
@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the Hub, and how to reach it."""

    repo_id: str
    revision: str
    subfolder: str
    cache_dir: str | None
    force_download: bool
    local_files_only: bool
    token: str | bool | None

    @property
    def where(self) -> str:
        """What messages call it."""
        inside = f", folder {self.subfolder!r}" if self.subfolder else ""
        return f"The repository {self.repo_id!r} ({self.revision}{inside})"

    def get(self, weight_name: str) -> Path:
        """Return the cached copy of a file, downloaded where it must be.

        Raises:
            AdapterNotFoundError: there is no such repository, revision or file, or it cannot be reached.
        """
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        with self._explained():
            try:
                return self._download(weight_name)
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError as error:
                raise missing(weight_name, self.names(), self.where) from error

    def find(self, name: str) -> Path | None:
        """Return the cached copy of a file, or None where the repository has none."""
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return self._download(name)
        except EntryNotFoundError:
            return None

    def choose(self, use_safetensors: bool | None) -> str:
        """Return the name of the one file that is an adapter.

        Raises:
            AdapterNotFoundError: there is none, or more than one, or the repository cannot be reached.
        """
        with self._explained():
            names = self.names()
        return choose_weights(names, use_safetensors, self.where)

    def names(self) -> list[str]:
        """The files of its folder; those in the cache where nothing may be downloaded."""
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        inside = [name.removeprefix(prefix) for name in self._all_names() if name.startswith(prefix)]
        return [name for name in inside if "/" not in name]

    def _all_names(self) -> Iterable[str]:
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.constants import HF_HUB_OFFLINE

        if not self.local_files_only and not HF_HUB_OFFLINE:
            siblings = HfApi().model_info(self.repo_id, revision=self.revision, token=self.token).siblings
            return [sibling.rfilename for sibling in siblings or []]
        cached = snapshot_download(
            self.repo_id, revision=self.revision, cache_dir=self.cache_dir, local_files_only=True
        )
        return [path.relative_to(cached).as_posix() for path in Path(cached).rglob("*") if path.is_file()]

    def _download(self, name: str) -> Path:
        from huggingface_hub import hf_hub_download

        path = hf_hub_download(
            self.repo_id,
            name,
            subfolder=self.subfolder or None,
            revision=self.revision,
            cache_dir=self.cache_dir,
            force_download=self.force_download,
            local_files_only=self.local_files_only,
            token=self.token,
            library_name="lorry",
        )
        return Path(str(path))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError

        try:
            yield
        except AdapterNotFoundError:
            raise
        except (OSError, EntryNotFoundError, HFValidationError, HTTPError) as error:
            raise AdapterNotFoundError(f"{self.where} cannot be had: {self._next_step(error)}") from error

    def _next_step(self, error: Exception) -> str:
        from huggingface_hub.errors import (
            GatedRepoError,
            HFValidationError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        match error:
            case GatedRepoError():
                return (
                    "access to it must be asked for on its page; then pass `token=`, or run `hf auth login`."
                )
            case RepositoryNotFoundError():
                return (
                    "there is neither such a repository on the Hub nor such a folder or file here. Check the spelling; "
                    "for a private one pass `token=`, or run `hf auth login`."
                )
            case RevisionNotFoundError():
                return f"it has no revision {self.revision!r}."
            case LocalEntryNotFoundError() | OfflineModeIsEnabled() if self.local_files_only:
                return "it is not in the cache, and `local_files_only=True` allows no download."
            case LocalEntryNotFoundError() | OfflineModeIsEnabled():
                return "it is not in the cache, and the Hub cannot be reached."
            case HFValidationError():
                return "this is neither a path that exists here nor a name that a repository can have."
            case _:
                return f"{type(error).__name__}: {error}"
