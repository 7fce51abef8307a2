"""What the block manager means, in lists and dictionaries: slow, obvious, the oracle of the tests.

No links, no hashes, no incremental counts. Everything is searched for.
"""

import dataclasses


class NaivePool:
    """Blocks with owners, and free blocks in the order of reuse."""

    def __init__(self, num_blocks: int) -> None:
        self.refs = dict.fromkeys(range(1, num_blocks), 0)
        self.findable: set[int] = set()
        self.order = list(range(1, num_blocks))
        self.evicted: list[int] = []

    def allocate(self, count: int) -> list[int]:
        taken, self.order = self.order[:count], self.order[count:]
        for block in taken:
            self.refs[block] = 1
            if block in self.findable:
                self.findable.remove(block)
                self.evicted.append(block)
        return taken

    def retain(self, blocks: list[int]) -> None:
        for block in blocks:
            if block in self.order:
                self.order.remove(block)
            self.refs[block] += 1

    def release(self, blocks: list[int]) -> None:
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                at = len(self.order) if block in self.findable else 0
                self.order.insert(at, block)

    def forget(self, block: int) -> None:
        if block in self.findable:
            self.findable.remove(block)
            if block in self.order:
                self.order.remove(block)
                self.order.insert(0, block)


@dataclasses.dataclass
class Node:
    """Blocks with the contents of one key. ``serial`` tells it from a node of that key before."""

    serial: int
    blocks: list[int]


Key = tuple[str, tuple[int, ...]]
Handle = tuple[Key, int]


class NaivePrefixes:
    """Blocks by namespace and all tokens up to their end."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.nodes: dict[Key, Node] = {}
        self.serial = 0

    def match(self, tokens: list[int], namespace: str) -> list[list[int]]:
        found = []
        for stop in range(self.block_size, len(tokens) + 1, self.block_size):
            node = self.nodes.get((namespace, tuple(tokens[:stop])))
            if node is None or not node.blocks:
                break
            found.append(node.blocks)
        return found

    def handle(self, key: Key) -> Handle:
        return key, self.nodes[key].serial

    def is_attached(self, handle: Handle) -> bool:
        key, serial = handle
        return key in self.nodes and self.nodes[key].serial == serial

    def insert(self, parent: Handle | None, tokens: list[int], block: int, namespace: str):
        key = (namespace, tuple(tokens)) if parent is None else _longer(parent[0], tokens)
        if parent is not None and not self.is_attached(parent):
            return key, -1
        if key not in self.nodes:
            self.serial += 1
            self.nodes[key] = Node(self.serial, [])
        self.nodes[key].blocks.append(block)
        return self.handle(key)

    def forget(self, block: int) -> None:
        for node in self.nodes.values():
            if block in node.blocks:
                node.blocks.remove(block)
        kept = [key for key, node in self.nodes.items() if node.blocks]
        self.nodes = {
            key: node
            for key, node in self.nodes.items()
            if any(key[0] == k[0] and key[1] == k[1][: len(key[1])] for k in kept)
        }

    def blocks(self) -> set[int]:
        return {block for node in self.nodes.values() for block in node.blocks}


def _longer(key: Key, tokens: list[int]) -> Key:
    return key[0], (*key[1], *tokens)


@dataclasses.dataclass
class NaiveTable:
    blocks: list[int]
    num_tokens: int
    namespace: str
    num_committed: int
    prefix: Handle | None

    def copy(self) -> "NaiveTable":
        return dataclasses.replace(self, blocks=list(self.blocks))


class NaiveManager:
    """Tables over a `NaivePool` and `NaivePrefixes`."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = NaivePool(num_blocks)
        self.prefixes = NaivePrefixes(block_size)
        self.tables: dict[int, NaiveTable] = {}
        self.copies: list[tuple[int, int]] = []

    def match(self, tokens: list[int], namespace: str) -> list[list[int]]:
        usable = (len(tokens) - 1) // self.block_size
        return self.prefixes.match(tokens, namespace)[: max(usable, 0)]

    def allocate(self, number: int, tokens: list[int], num_tokens: int, namespace: str):
        hits = [blocks[0] for blocks in self.match(tokens, namespace)]
        num_new = max(0, -(-num_tokens // self.block_size) - len(hits))
        if num_new > len(set(self.pool.order) - set(hits)):
            return None
        self.pool.retain(hits)
        cached = len(hits) * self.block_size
        prefix = self.prefixes.handle((namespace, tuple(tokens[:cached]))) if hits else None
        blocks = hits + self._take(num_new)
        covered = max(num_tokens, cached)
        self.tables[number] = NaiveTable(blocks, covered, namespace, len(hits), prefix)
        return cached

    def append(self, number: int, num_tokens: int) -> bool:
        table = self.tables[number]
        if num_tokens <= table.num_tokens:
            return True
        partial = table.num_tokens % self.block_size > 0
        must_copy = partial and self.pool.refs[table.blocks[-1]] > 1
        num_new = -(-num_tokens // self.block_size) - len(table.blocks)
        if num_new + must_copy > len(self.pool.order):
            return False
        if must_copy:
            shared = table.blocks.pop()
            table.blocks += self._take(1)
            self.copies.append((shared, table.blocks[-1]))
            self.pool.release([shared])
        table.blocks += self._take(num_new)
        table.num_tokens = num_tokens
        return True

    def commit(self, number: int, tokens: list[int], num_tokens: int) -> None:
        table, size = self.tables[number], self.block_size
        for index in range(table.num_committed, num_tokens // size):
            block = table.blocks[index]
            block_tokens = tokens[index * size : (index + 1) * size]
            table.prefix = self.prefixes.insert(table.prefix, block_tokens, block, table.namespace)
            if self.prefixes.is_attached(table.prefix):
                self.pool.findable.add(block)
            table.num_committed = index + 1

    def fork(self, parent: int, child: int) -> None:
        self.tables[child] = self.tables[parent].copy()
        self.pool.retain(self.tables[child].blocks)

    def free(self, number: int, num_valid: int | None = None) -> None:
        table = self.tables.pop(number)
        if num_valid is not None:
            for block in reversed(table.blocks[num_valid // self.block_size :]):
                self.prefixes.forget(block)
                self.pool.forget(block)
        self.pool.release(table.blocks)

    def _take(self, count: int) -> list[int]:
        taken = self.pool.allocate(count)
        for block in taken:
            self.prefixes.forget(block)
        return taken
