"""The page of a running service and the records behind it."""

from recipes.serve.page.live_page import live_page, page_headers
from recipes.serve.page.observe import Observer
from recipes.serve.page.recent_events import RecentEvents
from recipes.serve.page.recent_requests import RecentRequests, percentiles
from recipes.serve.page.server_state import server_state
from recipes.serve.page.state import (
    ClusterState,
    EventView,
    GroupView,
    History,
    ModelOnGroup,
    ModelView,
    Percentiles,
)

__all__ = [
    "ClusterState",
    "EventView",
    "GroupView",
    "History",
    "ModelOnGroup",
    "ModelView",
    "Observer",
    "Percentiles",
    "RecentEvents",
    "RecentRequests",
    "live_page",
    "page_headers",
    "percentiles",
    "server_state",
]
