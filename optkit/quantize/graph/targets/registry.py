"""The int8 targets by name: optkit's own, and those of other packages (entry points ``optkit.int8_targets``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from optkit.core.errors import UserError
from optkit.core.plugins import Plugins
from optkit.core.source_digest import code_of_module

if TYPE_CHECKING:
    from optkit.quantize.graph.targets.target import Int8Target

BUNDLED = {
    "inductor": "optkit.quantize.graph.targets.inductor:TARGET",
    "onnxruntime": "optkit.quantize.graph.targets.onnxruntime:TARGET",
    "openvino": "optkit.quantize.graph.targets.openvino:TARGET",
}
DYNAMIC = ("inductor", "onnxruntime")  # those of them that know activations scaled at every call
KEY, MADE_BY = "target", "target_made_by"
TARGET_KEYS = (KEY, MADE_BY)  # of a surgery


def _unfit(name: str, found: object) -> str | None:
    from optkit.quantize.graph.targets.target import Int8Target

    if not isinstance(found, Int8Target):
        return "it is no optkit.quantize.Int8Target"
    return None if found.name == name else f"it is named '{found.name}'"


INT8_TARGETS: Plugins[Int8Target] = Plugins("optkit.int8_targets", "int8 target", BUNDLED, _unfit)


def find_target(target: str | Int8Target, *, dynamic: bool = False) -> Int8Target:
    """The target of a name; one that is given already stays.

    Args:
        target: a name of `INT8_TARGETS`.
        dynamic: for activations that are scaled at every call.

    Raises:
        UserError: no package offers it, its package is broken, or its engine has no such kernels.
    """
    from optkit.quantize.graph.targets.target import Int8Target

    found = target if isinstance(target, Int8Target) else INT8_TARGETS.find(target, KEY)
    if dynamic and not found.dynamic:
        message = f"{found.engine} has no int8 kernels for activations that are scaled at every call"
        raise UserError(message, key=KEY, value=found.name, fix=f"quantize/static, or one of: {', '.join(_dynamic())}")
    return found


def check_target(name: str, *, dynamic: bool = False) -> None:
    """Raises UserError for a name that `find_target` would refuse; a target of optkit's own is not imported for it."""
    INT8_TARGETS.check(name, KEY)
    if dynamic and name not in DYNAMIC:
        find_target(name, dynamic=True)


def saved_target(surgery: Mapping[str, Any]) -> Int8Target:
    """The target that a saved variant was made for, with the rules that it was made by.

    Args:
        surgery: of a variant; `made_by` says what it holds of a target of another package.

    Raises:
        UserError: the target is not installed, or no longer knows these rules.
    """
    name, made_by = surgery.get(KEY, "inductor"), surgery.get(MADE_BY, {})
    package, revision = made_by.get("package"), made_by.get("revision")
    found = INT8_TARGETS.find(name, KEY, package)
    if revision is None or revision == found.revision:
        return found
    if revision not in found.earlier:
        message = f"revision {revision} of the int8 target '{name}' is not known to {INT8_TARGETS.source(name)}"
        raise UserError(message, key=KEY, value=name, fix=f"install {made_by.get('source')}, which made the variant")
    return found.earlier[revision]


def made_by(name: str) -> dict[str, Any]:
    """What a variant for a target must hold besides its name: nothing for one of optkit's own; JSON."""
    if name in BUNDLED:
        return {}
    target, package, source = INT8_TARGETS[name], INT8_TARGETS.package(name), INT8_TARGETS.source(name)
    return {MADE_BY: {"package": package, "source": source, "revision": target.revision}}


def code_of_target(name: str) -> tuple[str | None, str] | None:
    """What stands for the code of a target in the key of a variant."""
    return code_of_module(INT8_TARGETS.module(name))


def _dynamic() -> list[str]:
    """The names of the targets whose engines have such kernels; those that cannot be imported are left out."""
    found = []
    for name in INT8_TARGETS:
        try:
            found += [name] if INT8_TARGETS[name].dynamic else []
        except UserError:
            continue
    return found
