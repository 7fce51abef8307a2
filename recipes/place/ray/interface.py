"""Which network interface of this machine has an address."""

import fcntl
import os
import socket
import struct

SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def interface_of(address: str) -> str | None:
    """The name of the interface with an IPv4 address; None where there is none.

    >>> interface_of("127.0.0.1")
    'lo'
    """
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            asked = struct.pack("256s", name.encode()[:15])
            try:
                found = fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24]
            except OSError:  # it has none
                continue
        if socket.inet_ntoa(found) == address:
            return name
    return None


def speak_at(address: str) -> None:
    """Let torch.distributed use the interface of an address, which other machines know.

    By itself gloo takes the address that the machine's own name leads to, which in a container or
    by an /etc/hosts of a desktop is often one that no other machine can reach.
    """
    name = interface_of(address)
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
