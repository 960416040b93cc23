"""The graph in the form that ONNX Runtime runs fastest: the same numbers from nodes that it treats better.

It fuses a residual sum with the norm after it into one node of its own, which takes several times as long as the two
(ONNX Runtime 1.32 on a processor): of `Sum` nodes it does not. And it knows GELU as `x (1 + erf) / 2`, multiplied from
the left to the right, where torch's exporter halves first.
"""

from __future__ import annotations

from typing import Any


def rewrite_(graph: Any) -> None:
    """Change the nodes of a graph of `onnx_ir` in place."""
    for node in graph:
        if node.op_type == "Add" and any(use.node.op_type == "LayerNormalization" for use in node.outputs[0].uses()):
            node.op_type = "Sum"
        if node.op_type == "Erf":
            _halve_last_(node)


def _halve_last_(erf: Any) -> None:
    """`x * (1 / 2 * (1 + erf))` becomes `(x * (1 + erf)) * 1 / 2`, where that is what follows an `Erf` node."""
    found = [erf]
    for kind in ("Add", "Mul", "Mul"):
        uses = found[-1].outputs[0].uses()
        if len(uses) != 1 or uses[0].node.op_type != kind:
            return
        found.append(uses[0].node)
    one_more, halved, whole = found[1:]
    (half, place), (x, other) = (_beside(node, before) for node, before in ((halved, one_more), (whole, halved)))
    if half.const_value is not None and half.const_value.size == 1 and x.const_value is None:
        halved.replace_input_with(place, x)
        whole.replace_input_with(other, half)


def _beside(node: Any, before: Any) -> tuple[Any, int]:
    """Of a node with two inputs the one that `before` does not give, and its place."""
    place = 1 if node.inputs[0] is before.outputs[0] else 0
    return node.inputs[place], place
