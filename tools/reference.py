"""Read the code for the API reference: what griffe does not know by itself.

An extension of griffe, named in zensical.toml. The fields of a msgspec struct are the arguments
it is made with, and the section ``Example:`` of a docstring is code, not an admonition.
"""

from __future__ import annotations

import griffe

__all__ = ["Reference"]


class Reference(griffe.Extension):
    """Give structs their signature, and examples their section. Lives as long as a build."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Rename the section `Example` to the one that griffe knows."""
        if obj.docstring is not None:
            obj.docstring.value = obj.docstring.value.replace("\nExample:\n", "\nExamples:\n")

    def on_class_members(self, *, cls: griffe.Class, **_: object) -> None:
        """Add the constructor of a struct that users make: one whose docstring names arguments."""
        if "__init__" in cls.members or cls.docstring is None or "\nArgs:\n" not in cls.docstring.value:
            return
        fields = [
            griffe.Parameter(
                name, annotation=member.annotation, kind=griffe.ParameterKind.keyword_only, default=member.value
            )
            for name, member in cls.members.items()
            if isinstance(member, griffe.Attribute)
        ]
        first = griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)
        made = griffe.Function("__init__", parameters=griffe.Parameters(first, *fields))
        cls.set_member("__init__", made)
