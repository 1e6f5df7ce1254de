"""What the compiler answers: instructions, and the maps that they want."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from tracer.engine.map_creation import Shape

Answer = dict[str, Any]
"""The compiler's answer (see compiler.py) as it comes out of JSON."""


@dataclass(frozen=True, slots=True)
class MapDescription:
    """A map that a source declares.

    Attributes:
        number: By which instructions name it.
        shape: What the kernel must know to make it.
        key: C type of its keys as BCC describes it; None where there are none.
        leaf: That of its values.
    """

    number: int
    shape: Shape
    key: Any
    leaf: Any


@dataclass(frozen=True, slots=True)
class Compiled:
    """What came of a source.

    Attributes:
        functions: Instructions of each program; maps are named by `number`.
        maps: Every map by name, one that others hold before those.
    """

    functions: dict[str, bytes]
    maps: dict[str, MapDescription]

    @classmethod
    def of(cls, answer: Answer) -> Compiled:
        """Read an answer.

        Raises:
            AttributeError, KeyError, TypeError, ValueError: It is not one.
        """
        functions = {name: base64.b64decode(text) for name, text in answer["functions"].items()}
        maps = {
            each["name"]: MapDescription(
                each["number"], Shape(**each["shape"]), each["key"], each["leaf"]
            )
            for each in answer["maps"]
        }
        return cls(functions, dict(sorted(maps.items(), key=lambda it: it[1].shape.holds_maps)))
