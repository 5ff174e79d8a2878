"""A contract for import-linter: the modules of one package do not know each other."""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class SiblingsContract(Contract):
    """No child of `package` imports another, but for `shared` ones and those named with a leading underscore.

    Shared children import only shared ones, so that no two siblings meet through them. `gatherers` (a registry) and
    the package's own `__init__` may import every child, and no child imports those.
    """

    type_name = "siblings"

    package = fields.StringField()
    shared = fields.SetField(subfield=fields.StringField(), required=False)
    gatherers = fields.SetField(subfield=fields.StringField(), required=False)

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        package = str(self.package)
        shared: set[str] = self.shared or set()  # type: ignore[assignment]
        gatherers: set[str] = self.gatherers or set()  # type: ignore[assignment]

        def child(module: str) -> str:
            return module.removeprefix(package).split(".")[1] if module != package else ""

        def is_shared(name: str) -> bool:
            return name in shared or name.startswith("_")

        broken: list[str] = []
        modules = {package, *graph.find_descendants(package)} if package in graph.modules else set()
        for importer in sorted(modules):
            for imported in sorted(graph.find_modules_directly_imported_by(importer) & modules):
                source, target = child(importer), child(imported)
                if source in ("", target) or source in gatherers or is_shared(target):
                    continue
                broken.append(f"{importer} imports {imported}")
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["broken"]:
            output.print_error(f"- {line}", bold=False)
