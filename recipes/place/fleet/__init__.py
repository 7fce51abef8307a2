"""What to do with a cluster of groups: decisions as functions and small states, without processes.

``reconcile`` finds the way from what is there to what is desired; ``Fleet`` keeps what is there,
``Router`` finds the shortest queue, and ``Desk`` follows every request. Needs no torch.
"""

from recipes.place.fleet.action import Action, Devices, Load, Replace, Start, Stop, Unload
from recipes.place.fleet.admit import admit
from recipes.place.fleet.backoff import Backoff
from recipes.place.fleet.capacity import Capacity
from recipes.place.fleet.desk import Ask, Desk, Nowhere, Part
from recipes.place.fleet.fleet import Fleet
from recipes.place.fleet.live_group import LiveGroup, LiveReplica
from recipes.place.fleet.observed import Hosted, Observed, ObservedGroup
from recipes.place.fleet.order import waits_for
from recipes.place.fleet.reconcile import reconcile
from recipes.place.fleet.repair import repair
from recipes.place.fleet.router import Refusal, Route, Router
from recipes.place.fleet.seat import Seat
from recipes.place.fleet.slo import Slo

__all__ = [
    "Action",
    "Ask",
    "Backoff",
    "Capacity",
    "Desk",
    "Devices",
    "Fleet",
    "Hosted",
    "LiveGroup",
    "LiveReplica",
    "Load",
    "Nowhere",
    "Observed",
    "ObservedGroup",
    "Part",
    "Refusal",
    "Replace",
    "Route",
    "Router",
    "Seat",
    "Slo",
    "Start",
    "Stop",
    "Unload",
    "admit",
    "reconcile",
    "repair",
    "waits_for",
]
