"""Which cached block holds the keys and values of a known run of leading tokens.

Contents have a name, the sha256 of their prefix's name and their own tokens, so equal prefixes get
equal names in every process. The name only finds candidates: a hit also compares the tokens and
the identity of the verified parent, so even a hash that collides all the time never gives a wrong
block.
"""

import hashlib
from array import array
from collections.abc import Callable, Sequence

from blocks._checks import check_count, fail


def sha256(data: bytes) -> bytes:
    """The digest used to name prefixes."""
    return hashlib.sha256(data).digest()


_BYTES = array("q").itemsize


class Prefix:
    """A run of full blocks from position 0 in one namespace, known by its last block.

    parent: the prefix one block shorter; None for the empty prefix of a namespace.
    tokens: this block's tokens as bytes, eight each; of the empty prefix, the namespace.
    digest: the name: digest of the parent's name and ``tokens``.
    block_ids: blocks with these contents, oldest first; several when computed twice, none when all
        were evicted but a longer prefix is still cached.
    num_children: prefixes one block longer in the index.
    attached: whether it is in the index, that is, has blocks or children.
    """

    __slots__ = ("attached", "block_ids", "digest", "num_children", "parent", "tokens", "twin")

    def __init__(self, parent: "Prefix | None", tokens: bytes, digest: bytes) -> None:
        self.parent = parent
        self.tokens = tokens
        self.digest = digest
        self.block_ids: list[int] = []
        self.num_children = 0
        self.attached = False
        self.twin: Prefix | None = None  # next in the index with the same digest


class PrefixCache:
    """Index from leading tokens to the blocks that hold their keys and values.

    Only full blocks are indexed. Blocks with equal contents are kept side by side, never merged, so
    block tables never change under a sequence. It owns no block: whoever does calls `forget` when
    the contents are about to go.

    Invariants:
        1. Each indexed block belongs to exactly one prefix, and that prefix lists it once.
        2. A prefix is in the index exactly when it has blocks or longer prefixes in the index, and
           is found there under its digest.
        3. ``num_children`` counts the indexed prefixes whose parent it is; parents are indexed.
        4. A digest names its prefix: it is the digest of the parent's digest and the tokens.

    A look-up costs one digest per block that hits, none when it repeats the look-up before it.

    Args:
        block_size: tokens per block.
        digest: names prefixes; tests pass a short one to force collisions.
    """

    __slots__ = (
        "_digest",
        "_index",
        "_last_match",
        "_owner",
        "block_size",
        "num_hit_tokens",
        "num_query_tokens",
    )

    def __init__(self, block_size: int, *, digest: Callable[[bytes], bytes] = sha256) -> None:
        check_count("block_size", block_size)
        self.block_size = block_size
        self.num_query_tokens = 0
        self.num_hit_tokens = 0
        self._digest = digest
        self._index: dict[bytes, Prefix] = {}
        self._owner: dict[int, Prefix] = {}
        self._last_match: list[Prefix] = []

    def __len__(self) -> int:
        """Number of indexed blocks."""
        return len(self._owner)

    def __contains__(self, block_id: int) -> bool:
        return block_id in self._owner

    def match(self, tokens: Sequence[int], namespace: str = "") -> list[Prefix]:
        """The longest cached run of full blocks that ``tokens`` begins with. Pure look-up.

        Returns:
            The prefixes of one, two, ... blocks; ``[p.block_ids[0] for p in ...]`` are blocks that
            hold the contents.
        """
        size = self.block_size
        limit = len(tokens) // size
        parent = self._find(None, _name_bytes(namespace)) if limit else None
        if parent is None:
            return []
        guesses = self._last_match
        guessing = bool(guesses) and guesses[0].parent is parent
        found: list[Prefix] = []
        width = _BYTES * size
        data = _pack(tokens[:size])  # the rest only if the first block hits
        for index in range(limit):
            if index == 1:
                data = _pack(tokens[: limit * size])
            block = data[index * width : (index + 1) * width]
            # A guess that was right so far has the right parent: only its blocks may have gone.
            if guessing and index < len(guesses) and guesses[index].tokens == block:
                node = guesses[index]
                if not node.attached:
                    guessing = False
                    node = self._find(parent, block)
            else:
                guessing = False
                node = self._find(parent, block)
            if node is None or not node.block_ids:
                break
            found.append(node)
            parent = node
        self._last_match = found
        return found

    def insert(
        self,
        parent: Prefix | None,
        tokens: Sequence[int],
        block_ids: Sequence[int],
        namespace: str = "",
    ) -> Prefix:
        """Index blocks that follow ``parent`` and hold ``tokens``.

        Args:
            parent: what precedes, as returned by `match` or `insert`; None at position 0.
            tokens: ``block_size`` for each block.
            block_ids: at least one.
            namespace: looked at only when ``parent`` is None.

        Returns:
            The prefix that ends with the last block, for the next insert. It is not attached, and
            nothing was indexed, when the parent's own contents were forgotten meanwhile: what
            follows could never be found.

        Raises:
            ValueError: not full blocks, a token that is no 64-bit integer, or a block that is
                indexed already; nothing is indexed.
        """
        owner, width = self._owner, _BYTES * self.block_size
        self._check_new(block_ids, tokens)
        data = _pack(tokens)
        if parent is None:
            parent = self._get_or_add(None, _name_bytes(namespace))
        elif not parent.attached:
            return Prefix(parent, data[-width:], b"")
        for index, block_id in enumerate(block_ids):
            parent = self._get_or_add(parent, data[index * width : (index + 1) * width])
            parent.block_ids.append(block_id)
            owner[block_id] = parent
        return parent

    def prefix_of(self, block_id: int, tokens: Sequence[int]) -> Prefix | None:
        """The prefix that ends with this block, if it is indexed as holding ``tokens``."""
        node = self._owner.get(block_id)
        return node if node is not None and node.tokens == _pack(tokens) else None

    def forget(self, block_id: int) -> None:
        """Take a block out of the index, if it is there; its contents are gone or invalid."""
        node = self._owner.pop(block_id, None)
        if node is None:
            return
        node.block_ids.remove(block_id)
        while node is not None and not node.block_ids and not node.num_children:
            self._detach(node)
            node = node.parent
            if node is not None:
                node.num_children -= 1

    def record(self, num_query_tokens: int, num_hit_tokens: int) -> None:
        """Count one admitted look-up: tokens asked for, and tokens served from the cache."""
        self.num_query_tokens += num_query_tokens
        self.num_hit_tokens += num_hit_tokens

    def check_invariants(self) -> None:
        """Assert the invariants of the class. O(indexed prefixes)."""
        nodes = [node for head in self._index.values() for node in _twins(head)]
        children: dict[int, int] = {}
        for node in nodes:
            if node.parent is not None:
                children[id(node.parent)] = children.get(id(node.parent), 0) + 1
        for node in nodes:
            assert node.attached, f"2: {node.tokens!r} is in the index but not attached"
            assert node.block_ids or node.num_children, f"2: {node.tokens!r} holds nothing"
            assert node in _twins(self._index[node.digest]), f"2: {node.digest!r} not found"
            assert node.num_children == children.get(id(node), 0), (
                f"3: num_children is {node.num_children}, counted {children.get(id(node), 0)}"
            )
            assert node.parent is None or node.parent.attached, "3: a parent left the index"
            assert node.digest == self._name(node.parent, node.tokens), "4: digest differs"
            for block_id in node.block_ids:
                assert self._owner.get(block_id) is node, f"1: block {block_id} belongs elsewhere"
        listed = sum(len(node.block_ids) for node in nodes)
        assert listed == len(self._owner), f"1: {listed} blocks listed, {len(self._owner)} owned"

    def _check_new(self, block_ids: Sequence[int], tokens: Sequence[int]) -> None:
        if not block_ids:
            raise fail("block_ids", "at least one block", block_ids)
        if len(tokens) != len(block_ids) * self.block_size:
            expected = f"full blocks, {len(block_ids)} of {self.block_size}"
            raise fail("tokens", expected, f"{len(tokens)} tokens")
        for block_id in block_ids:
            if block_id in self._owner:
                raise fail("block id", "a block not indexed yet", block_id, "forget it first")
        if len(block_ids) > 1 and len(set(block_ids)) < len(block_ids):
            raise fail("block_ids", "each block once", block_ids)

    def _name(self, parent: Prefix | None, data: bytes) -> bytes:
        return self._digest((b"namespace:" if parent is None else parent.digest) + data)

    def _find(self, parent: Prefix | None, data: bytes) -> Prefix | None:
        node = self._index.get(self._name(parent, data))
        while node is not None and (node.parent is not parent or node.tokens != data):
            node = node.twin
        return node

    def _get_or_add(self, parent: Prefix | None, data: bytes) -> Prefix:
        digest = self._name(parent, data)
        head = node = self._index.get(digest)
        while node is not None:
            if node.parent is parent and node.tokens == data:
                return node
            node = node.twin
        node = Prefix(parent, data, digest)
        node.attached = True
        node.twin = head
        self._index[digest] = node
        if parent is not None:
            parent.num_children += 1
        return node

    def _detach(self, node: Prefix) -> None:
        node.attached = False
        head = self._index[node.digest]
        if head is not node:
            while head.twin is not node:
                assert head.twin is not None, "2: an attached prefix is not in the index"
                head = head.twin
            head.twin = node.twin
        elif node.twin is not None:
            self._index[node.digest] = node.twin
        else:
            del self._index[node.digest]
        node.twin = None


def _pack(tokens: Sequence[int]) -> bytes:
    try:
        return array("q", tokens).tobytes()
    except (TypeError, OverflowError) as error:
        raise fail("tokens", "64-bit integers", list(tokens[:8]), str(error)) from None


def _name_bytes(namespace: str) -> bytes:
    return namespace.encode(errors="surrogatepass")  # clients send what they like


def _twins(node: Prefix | None) -> list[Prefix]:
    found = []
    while node is not None:
        found.append(node)
        node = node.twin
    return found
