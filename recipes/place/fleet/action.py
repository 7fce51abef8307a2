"""What a keeper can do to a cluster, as plain data. Groups are named by their devices."""

from typing import NamedTuple

from blocks.sched.profile import Configuration

Devices = tuple[int, ...]


class Replace(NamedTuple):
    """The placement wants devices that are lost: make another one of those that remain."""

    devices: Devices

    def __str__(self) -> str:
        return f"replace the lost devices {_told(self.devices)}"


class Start(NamedTuple):
    """Start a group that hosts no model yet."""

    devices: Devices
    configuration: Configuration

    def __str__(self) -> str:
        return f"start a group of {self.configuration} on devices {_told(self.devices)}"


class Stop(NamedTuple):
    """End a group and with it its replicas; what they have taken is answered first."""

    devices: Devices

    def __str__(self) -> str:
        return f"stop the group on devices {_told(self.devices)}"


class Load(NamedTuple):
    """Load a model into a group, with room for ``kv_tokens`` tokens."""

    devices: Devices
    model: str
    kv_tokens: int

    def __str__(self) -> str:
        return f"load {self.model} on devices {_told(self.devices)}"


class Unload(NamedTuple):
    """Take a model from a group; what it has taken is answered first."""

    devices: Devices
    model: str

    def __str__(self) -> str:
        return f"unload {self.model} from devices {_told(self.devices)}"


Action = Replace | Start | Stop | Load | Unload


def _told(devices: Devices) -> str:
    return ",".join(map(str, devices))
