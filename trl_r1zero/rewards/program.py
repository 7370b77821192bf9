"""A formula tree as a postfix program, so that no evaluator recurses.

A sum of a thousand terms is a tree a thousand levels deep; as a program it is a list. Each step is
a tuple: ("int", n), ("float", literal), ("symbol", name), ("constant", name) push a value;
("neg",), ("call", name) replace the top; ("add",), ("sub",), ("mul",), ("div",), ("pow",) replace
the two on top.
"""

from .formula import Node

__all__ = ["Step", "compile_tree"]

Step = tuple
_BINARY = frozenset({"add", "sub", "mul", "div", "pow"})


def compile_tree(tree: Node) -> list[Step]:
    """Steps that leave the value of `tree` on an empty stack, operands first."""
    steps: list[Step] = []
    pending: list[Node] = [tree]
    # Right-to-left preorder, reversed, is left-to-right postorder.
    while pending:
        node = pending.pop()
        kind = node[0]
        if kind in _BINARY:
            steps.append((kind,))
            pending += (node[1], node[2])
        elif kind == "neg":
            steps.append((kind,))
            pending.append(node[1])
        elif kind == "call":
            steps.append((kind, node[1]))
            pending.append(node[2])
        else:
            steps.append(node)
    steps.reverse()
    return steps
