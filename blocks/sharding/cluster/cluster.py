"""``Cluster``: nodes of devices and the links between them, as data. Needs no torch."""

import dataclasses
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from blocks._checks import check, check_count, fail, reading
from blocks.sharding.cluster.device_kind import DeviceKind
from blocks.sharding.cluster.link import Link
from blocks.sharding.cluster.wiring import Lanes, check_lanes, rings

VERSION = 1
MAX_DEVICES = 1_000_000
"""Of a cluster that is made larger."""


class Node(NamedTuple):
    """A machine of the cluster.

    kind: name of the kind its devices are of.
    num_devices: how many there are.
    link: name of the link that joins them.
    cores: processor cores that the devices are ranks on, where they are no accelerators: more
        ranks at work than cores take turns. None for accelerators.
    lanes: of the link between each two devices; empty where all are joined alike.
    """

    kind: str
    num_devices: int
    link: str
    cores: int | None = None
    lanes: Lanes = ()


class SlowPair(NamedTuple):
    """Two nodes that are joined by another link than the rest; their indices, and its name."""

    first: int
    second: int
    link: str


@dataclasses.dataclass(frozen=True)
class Cluster:
    """What a plan runs on. Devices are numbered node by node: the ranks of a ``Mesh``.

    name: of the cluster.
    kinds, links: those that the nodes name.
    nodes: see ``Node``; they may be of different kinds and sizes.
    between: name of the link that joins the nodes; empty where there is one node.
    pairs: nodes that are joined otherwise.

    >>> from blocks.sharding.cluster import bundled_cluster
    >>> cluster = bundled_cluster("8xH100", num_nodes=2)
    >>> cluster.num_devices, cluster.node_of(11), cluster.kind_of(11).name
    (16, 1, 'H100-SXM5-80GB')
    >>> cluster.link_of((0, 11)).name
    '8 x InfiniBand NDR 400 Gb/s'
    """

    name: str
    kinds: tuple[DeviceKind, ...]
    links: tuple[Link, ...]
    nodes: tuple[Node, ...]
    between: str = ""
    pairs: tuple[SlowPair, ...] = ()

    def __post_init__(self) -> None:
        check(bool(self.nodes), "nodes", "at least one", "none")
        for what, named in (("kinds", self.kinds), ("links", self.links)):
            names = [one.name for one in named]
            check(len(set(names)) == len(names), what, "different names", names)
        for node in self.nodes:
            check_count(f"num_devices of {node}", node.num_devices)
            if node.cores is not None:
                check_count(f"cores of {node}", node.cores)
            check_lanes(node.lanes, node.num_devices)
            self.kind(node.kind)
            self.link(node.link)
        if len(self.nodes) > 1:
            self.link(self.between)
        for pair in self.pairs:
            ok = 0 <= pair.first < pair.second < len(self.nodes)
            check(ok, "pair", f"two nodes of {len(self.nodes)}, the lower one first", pair)
            self.link(pair.link)

    def kind(self, name: str) -> DeviceKind:
        """The kind of this name."""
        found = {kind.name: kind for kind in self.kinds}
        check(name in found, "kind", f"one of {sorted(found)}", repr(name))
        return found[name]

    def link(self, name: str) -> Link:
        """The link of this name."""
        found = {link.name: link for link in self.links}
        check(name in found, "link", f"one of {sorted(found)}", repr(name))
        return found[name]

    @functools.cached_property
    def _firsts(self) -> tuple[int, ...]:
        """The first device of every node, and the number of all."""
        return tuple(itertools.accumulate((n.num_devices for n in self.nodes), initial=0))

    @functools.cached_property
    def _nodes_of(self) -> tuple[int, ...]:
        """For every device its node."""
        each = ((at,) * node.num_devices for at, node in enumerate(self.nodes))
        return tuple(itertools.chain.from_iterable(each))

    @property
    def num_devices(self) -> int:
        return self._firsts[-1]

    def devices_of(self, node: int) -> range:
        """The devices of a node."""
        check(0 <= node < len(self.nodes), "node", f"below {len(self.nodes)}", node)
        return range(self._firsts[node], self._firsts[node + 1])

    def node_of(self, device: int) -> int:
        """Which node a device is in."""
        hint = "a larger cluster: resized(num_nodes=...)"
        check(0 <= device < self.num_devices, "device", f"below {self.num_devices}", device, hint)
        return self._nodes_of[device]

    def kind_of(self, device: int) -> DeviceKind:
        """What kind a device is of."""
        return self.kind(self.nodes[self.node_of(device)].kind)

    def link_of(self, devices: Sequence[int]) -> Link:
        """The link a group of devices is joined by: the slowest of those between its nodes, or
        the one inside of their node, with the lanes that the group has of it."""
        nodes = sorted({self.node_of(device) for device in devices})
        if len(nodes) == 1:
            first = self._firsts[nodes[0]]
            return self._inside(nodes[0], tuple(sorted({device - first for device in devices})))
        other = {(pair.first, pair.second): pair.link for pair in self.pairs}
        names = {other.get(two, self.between) for two in itertools.combinations(nodes, 2)}
        return min((self.link(name) for name in sorted(names)), key=lambda link: link.bytes_per_s)

    def _inside(self, node: int, devices: tuple[int, ...]) -> Link:
        """The link between devices of one node, numbered there."""
        key = self.nodes[node].link, self.nodes[node].lanes, devices
        if key not in self._parts:
            link = self.link(key[0])
            wired = key[1] and len(devices) > 1
            self._parts[key] = link.part(rings(key[1], devices)) if wired else link
        return self._parts[key]

    @functools.cached_property
    def _parts(self) -> dict[tuple[str, Lanes, tuple[int, ...]], Link]:
        """Links of groups met before."""
        return {}

    def resized(self, *, num_nodes: int | None = None, num_devices: int | None = None) -> "Cluster":
        """The same with more or fewer nodes, or devices in each, all like the first node.

        Ranks on processor cores share the memory of their node: more of them have less each.

        Raises:
            ValueError: several nodes where no link between nodes is known; more than
            ``MAX_DEVICES``.
        """
        count = len(self.nodes) if num_nodes is None else num_nodes
        check_count("num_nodes", count)
        each = self.nodes[0].num_devices if num_devices is None else num_devices
        check_count("num_devices", each)
        wanted = f"at most {MAX_DEVICES:,} devices in all"
        check(count * each <= MAX_DEVICES, "num_nodes", wanted, f"{count} nodes of {each}")
        if count > 1 and not self.between:
            raise fail("num_nodes", "1: no link between nodes is known", count, "set between")
        node = self.nodes[0]
        kinds = self.kinds
        if num_devices is not None:
            if node.cores is not None:
                kind = self.kind(node.kind)
                memory_bytes = kind.memory_bytes * node.num_devices // num_devices
                shared = dataclasses.replace(kind, memory_bytes=memory_bytes)
                kinds = tuple(shared if kind.name == node.kind else kind for kind in self.kinds)
            if num_devices > node.num_devices and node.lanes:
                hint = "the wiring of more is not known"
                raise fail("num_devices", f"{node.num_devices} or fewer", num_devices, hint)
            lanes = tuple(row[:num_devices] for row in node.lanes[:num_devices])
            node = node._replace(num_devices=num_devices, lanes=lanes)
        return dataclasses.replace(self, kinds=kinds, nodes=(node,) * count, pairs=())

    def fingerprint(self) -> str:
        """12 hexadecimal digits that change with any of the data."""
        text = json.dumps(self.to_json(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """Plain data; ``from_json`` reads it back. Equal nodes in a row are counted."""
        runs = [(len(list(run)), node) for node, run in itertools.groupby(self.nodes)]
        return {
            "version": VERSION,
            "name": self.name,
            "kinds": [kind.to_json() for kind in self.kinds],
            "links": [link.to_json() for link in self.links],
            "nodes": [{"count": count, **_plain(node)} for count, node in runs],
            "between": self.between,
            "pairs": [pair._asdict() for pair in self.pairs],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Cluster":
        """
        Raises:
            ValueError: data that is no cluster, or of another version.
        """
        keys = ["version", *(field.name for field in dataclasses.fields(cls))]
        with reading("cluster", data, keys):
            check(data["version"] == VERSION, "cluster version", VERSION, data["version"])
            nodes: list[Node] = []
            for node in data["nodes"]:
                plain = {key: value for key, value in node.items() if key != "count"}
                lanes = tuple(map(tuple, plain.pop("lanes", ())))
                nodes += [Node(**plain, lanes=lanes)] * node["count"]
            return cls(
                data["name"],
                tuple(DeviceKind.from_json(kind) for kind in data["kinds"]),
                tuple(Link.from_json(link) for link in data["links"]),
                tuple(nodes),
                data["between"],
                tuple(SlowPair(**pair) for pair in data["pairs"]),
            )

    def save(self, path: str | Path) -> None:
        """Write the cluster file: JSON, a list of numbers a line."""
        text = json.dumps(self.to_json(), indent=1)
        numbers = r"\[\s+([-+.\de]+(?:,\s+[-+.\de]+)*)\s+\]"
        rows = re.sub(numbers, lambda found: f"[{' '.join(found[1].split())}]", text)
        Path(path).write_text(rows + "\n")

    @classmethod
    def load(cls, path: str | Path) -> "Cluster":
        """Read a cluster file.

        Raises:
            ValueError: a file that is no JSON, or no cluster.
        """
        try:
            data = json.loads(Path(path).read_text())
        except ValueError as error:  # no text, or none of JSON
            raise fail(f"cluster file {path}", "JSON", error) from error
        return cls.from_json(data)


def _plain(node: Node) -> dict[str, Any]:
    """Without lanes where there are none, as in files from before there were any."""
    plain = node._asdict()
    return plain if node.lanes else {key: plain[key] for key in plain if key != "lanes"}
