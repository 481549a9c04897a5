"""What a set of nodes means: one state, whatever the order they came in.

With B the nodes that count and T the (key, id) pairs in their tombstones:

    live(k)  = { (priority of b, value of e) : b in B, e an element of b for k, (k, id of b) not in T }
    k is present where live(k) is not empty, and its value is that of the greatest pair

Values compare as unsigned bytes, a prefix before what it begins. So a removal takes away only what its author had
seen, an addition made beside it survives, and equal priorities are settled by the greater value on every replica.

`state_of` and `heads_of` are this definition, written down; the tables in `entries.py` and `state.py` get to the same
end step by step, and are tested against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ipfsreg.crdt.delta import MAX_PRIORITY, Delta, Node, multihash_of_id

PRIORITY_SLACK = 1 << 20
"""How far above its highest child a node's priority may lie.

A replica that is still catching up builds on few heads and yet must not write what is older than everything the others
have, so it takes the priority of what it has seen announced. The slack bounds how far a liar can lift the DAG."""


def values_by_key(delta: Delta) -> dict[str, bytes]:
    """What *delta* sets. Of several values for one key, which we never write ourselves, the greatest counts."""
    values: dict[str, bytes] = {}
    for element in delta.elements:
        if element.key not in values or element.value > values[element.key]:
            values[element.key] = element.value
    return values


def priority_fault(priority: int, highest_child: int) -> str | None:
    """Why a node may not have *priority* above children of which the highest has the height *highest_child*."""
    if not 1 <= priority <= MAX_PRIORITY:
        return f"priority {priority}, allowed are 1 to 2^48"
    if priority <= highest_child:
        return f"priority {priority} on top of a node of height {highest_child}"
    if priority > highest_child + 1 + PRIORITY_SLACK:
        return f"priority {priority}, {priority - highest_child} above the nodes it builds on"
    return None


def height_of(priority: int, highest_child: int) -> int:
    """The height at which a node counts: its priority, where that is possible, else one above its children.

    Everybody computes the same from the same nodes, so that a liar does not lift or lower those who build on it.
    """
    return highest_child + 1 if priority_fault(priority, highest_child) else priority


def heights_of(nodes: Mapping[bytes, Node]) -> dict[bytes, int]:
    """The height of each of *nodes*. What they link to and is not among them was no node, and counts 0."""
    heights: dict[bytes, int] = {}
    stack = list(nodes)
    while stack:
        node = nodes[stack[-1]]
        waiting = [link for link in node.links if link in nodes and link not in heights]
        if waiting:
            stack += waiting
        else:
            stack.pop()
            heights[node.multihash] = height_of(node.delta.priority, _highest(node, heights))
    return heights


def _highest(node: Node, heights: Mapping[bytes, int]) -> int:
    return max((heights.get(link, 0) for link in node.links), default=0)


def state_of(nodes: Iterable[Node]) -> dict[str, bytes]:
    """The names that *nodes*, and with them all that they build on, add up to."""
    by_multihash = {node.multihash: node for node in nodes}
    heights = heights_of(by_multihash)
    counting = [
        node
        for node in by_multihash.values()
        if node.fault is None and priority_fault(node.delta.priority, _highest(node, heights)) is None
    ]
    removed = {
        (tombstone.key, multihash_of_id(tombstone.id)) for node in counting for tombstone in node.delta.tombstones
    }
    best: dict[str, tuple[int, bytes]] = {}
    for node in counting:
        for key, value in values_by_key(node.delta).items():
            pair = (node.delta.priority, value)
            if (key, node.multihash) not in removed and pair > best.get(key, (0, b"")):
                best[key] = pair
    return {key: value for key, (_, value) in best.items()}


def heads_of(nodes: Sequence[Node]) -> set[bytes]:
    """The nodes that none of *nodes* links to."""
    return {node.multihash for node in nodes} - {link for node in nodes for link in node.links}
