"""Graph damage: connections of a scale-permuted network cut, as in the paper's ablation (Table 9).

A connection is the longer, the more blocks lie between parent and child in the order of the graph.
A cut leaves blocks that no output depends on any more; they go too (`prune`), so that what is left
can be built and trained, with fewer parameters than before.
"""

from collections.abc import Callable

from spinenet_jax.models.graph import Graph


def cut_short_range(graph: Graph) -> Graph:
    """Every block keeps only the more distant of its parents."""
    return prune(_with_parents(graph, '-short', lambda _, parents: (min(parents),)))


def cut_long_range(graph: Graph) -> Graph:
    """Every block keeps only the nearer of its parents."""
    return prune(_with_parents(graph, '-long', lambda _, parents: (max(parents),)))


def make_sequential(graph: Graph) -> Graph:
    """Every block's only parent is the node just before it: both ranges cut."""
    return prune(_with_parents(graph, '-sequential', lambda index, _: (index - 1,)))


DAMAGES = {
    'short-range': cut_short_range,
    'long-range': cut_long_range,
    'sequential': make_sequential,
}


def prune(graph: Graph) -> Graph:
    """The graph without the blocks that no output depends on, a stem's last ones included.

    An unused block that can be added to the output of its level is in use.
    """
    levels, kinds, outputs = graph.levels, graph.kinds, set(graph.outputs.values())
    added = {
        source
        for target, sources in graph.merges.items()
        for source in sources
        if source < target and kinds[source] == kinds[target]
    }
    first = len(graph.stem)
    used = outputs | added
    for index in reversed(range(first, len(levels))):
        if index in used:
            used.update(graph.blocks[index - first].parents)
    deepest = max((i for i in range(first) if i in used), default=0)
    kept = [i for i in range(len(levels)) if i <= deepest or (i >= first and i in used)]
    if len(kept) == len(levels):
        return graph
    number = {old: new for new, old in enumerate(kept)}
    blocks = (graph.blocks[i - first] for i in kept if i >= first)
    renumbered = tuple(b._replace(parents=tuple(number[p] for p in b.parents)) for b in blocks)
    # Merges follow from which blocks are used, so they can change with the blocks that are gone.
    return prune(graph._replace(blocks=renumbered, stem=graph.stem[: deepest + 1]))


def _with_parents(
    graph: Graph, suffix: str, choose: Callable[[int, tuple[int, ...]], tuple[int, ...]]
) -> Graph:
    """The graph with the parents that `choose` makes of a block's index and parents."""
    blocks = tuple(
        block._replace(parents=choose(index, block.parents))
        for index, block in enumerate(graph.blocks, len(graph.stem))
    )
    return graph._replace(name=graph.name + suffix, blocks=blocks)
