"""Read the code for the API reference: what griffe does not know by itself.

An extension of griffe, named in zensical.toml. The fields of a msgspec struct are the arguments
it is made with, and the section ``Example:`` of a docstring is code, not an admonition.
"""

from __future__ import annotations

from collections.abc import Iterator

import griffe

__all__ = ["Reference"]


class Reference(griffe.Extension):
    """Give structs their signature, and examples their section. Lives as long as a build."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename the section `Example` to the one that griffe knows."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")

    def on_package(self, *, pkg: griffe.Module, **_: object) -> None:
        """Add the constructor of each struct that has no secrets: all its fields are public."""
        for cls in _classes(pkg):
            lineage = [*reversed(cls.mro()), cls]
            fields = {name: field for known in lineage for name, field in _fields(known)}
            if fields and not any(name.startswith("_") for name in fields) and _is_struct(lineage[0]):
                kind = griffe.ParameterKind.keyword_only
                parameters = [
                    griffe.Parameter(name, annotation=field.annotation, kind=kind, default=field.value)
                    for name, field in fields.items()
                ]
                first = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
                cls.set_member(
                    "__init__", griffe.Function("__init__", parameters=griffe.Parameters(first, *parameters))
                )


def _classes(module: griffe.Module) -> Iterator[griffe.Class]:
    for member in module.members.values():
        if isinstance(member, griffe.Module):
            yield from _classes(member)
        elif isinstance(member, griffe.Class) and "__init__" not in member.members:
            yield member


def _is_struct(root: griffe.Class) -> bool:
    return any(str(base) in {"msgspec.Struct", "Struct"} for base in root.bases)


def _fields(cls: griffe.Class) -> Iterator[tuple[str, griffe.Attribute]]:
    for name, member in cls.members.items():
        if isinstance(member, griffe.Attribute) and "property" not in member.labels and member.annotation is not None:
            yield name, member
