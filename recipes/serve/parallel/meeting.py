"""Where the ranks of a model meet: a file of this machine, or a store that some process serves."""

import datetime
import os
import socket
import uuid

import torch
import torch.distributed as dist

from blocks._checks import fail
from blocks.sharding import Group, axis_groups, make_device_mesh
from recipes.serve.parallel.rank_spec import RankSpec

LOOPBACK = ("127.", "localhost", "::1")


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
        timeout=datetime.timedelta(seconds=2 * spec.timeout_s),  # the engine is to notice first
    )
    groups = axis_groups(
        make_device_mesh(spec.layout.mesh, spec.device), ordered=spec.device == "cpu"
    )
    return dict(groups)


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
