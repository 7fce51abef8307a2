"""Where the ranks of a model meet: a file of this machine, or a store that some process serves."""

import datetime
import os
import socket
import uuid

import torch
import torch.distributed as dist
from torch import Tensor

from blocks._checks import fail
from blocks.sharding import (
    DistributedGroup,
    Group,
    axis_groups,
    make_device_mesh,
    sum_in_order,
)
from recipes.serve.parallel.rank_spec import RankSpec

FEW_BYTES = 1 << 16
LOOPBACK = ("127.", "localhost", "::1")
SLACK_S = 60.0
"""That ranks wait longer for one another than the engine does, which is to say who is missing."""


def join(spec: RankSpec) -> dict[str, Group]:
    """Meet the other ranks; the groups of the pipeline and tensor axes this rank is in.

    On a CPU sums are made in rank order, so that a row has the same bits in any batch.
    """
    kind, _, place = spec.rendezvous.partition("://")
    if kind == "file":
        store: dist.Store = dist.FileStore(place, spec.layout.num_ranks)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a file means: all on this machine
    elif kind == "tcp":
        where, _, name = place.partition("/")
        host, _, port = where.rpartition(":")
        if host.startswith(LOOPBACK):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        wait = datetime.timedelta(seconds=spec.timeout_s)
        store = dist.PrefixStore(name, dist.TCPStore(host, int(port), timeout=wait))
    else:
        raise fail("rendezvous", "file:///path or tcp://host:port/name", spec.rendezvous)
    if spec.device == "cuda":
        torch.cuda.set_device(spec.device_index)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if spec.device == "cuda" else "gloo",
        store=store,
        rank=spec.rank,
        world_size=spec.layout.num_ranks,
        timeout=datetime.timedelta(seconds=2 * spec.timeout_s + SLACK_S),
    )
    mesh = make_device_mesh(spec.layout.mesh, spec.device)
    if spec.device != "cpu":
        return dict(axis_groups(mesh))
    return {name: RankOrderGroup(mesh.get_group(name)) for name in spec.layout.mesh.axes}


class RankOrderGroup(DistributedGroup):
    """Sums whose bits depend on the addends alone, in as few collectives as that takes.

    Two addends have one sum, whoever adds them. More are added in rank order: by every rank where
    they are few bytes, as in decoding, else each run of them by one rank.
    """

    def __init__(self, process_group: dist.ProcessGroup) -> None:
        size = dist.get_world_size(process_group)
        super().__init__(process_group, ordered=size > 2)

    def all_reduce(self, tensor: Tensor) -> Tensor:
        if self.ordered and tensor.nbytes <= FEW_BYTES:
            return sum_in_order(self.all_gather(tensor))
        return super().all_reduce(tensor)


def serve_store(host: str) -> tuple[dist.Store, str]:
    """A store at which ranks of other machines can meet, for as long as it is kept; and its place.

    It listens at ``host`` alone, where torch by itself would listen on every interface. It asks
    nobody for a key: keep ``host`` inside of a network of your own.
    """
    sock = socket.create_server((host, 0))
    port = sock.getsockname()[1]
    store = dist.TCPStore(
        host, port, is_master=True, wait_for_workers=False, master_listen_fd=sock.detach()
    )
    return store, f"tcp://{host}:{port}/{uuid.uuid4().hex}"
