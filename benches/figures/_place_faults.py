"""Figures of a real service under faults: on processes of this machine, and on Ray."""

import asyncio
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benches.figures.row import Measured, Row
from recipes.place.front import Launcher
from recipes.place.group import fork_group
from recipes.place.ray import RayCluster
from tests.place.faults import NUM_FAULTS, children, every_fault, layout, pid_of
from tests.place.ray_nodes import processes, ray_nodes
from tests.place.real_service import Answers, real_service, save_models

COMMAND = "python -m benches.figures --area place"
FAULTS = (
    "a group killed, all killed at once, a load that fails, a node lost and replaced, a rank of "
    "two killed"
)
TARGET = "all survived, no request without an answer, no wrong token, two rounds"


def rows() -> Iterator[Row]:
    for where, measure, nightly in (
        ("processes of this machine", _local, False),
        ("Ray (three nodes on this machine)", _ray, True),
    ):
        yield Row(
            f"a service asked all the time, on {where}: {FAULTS}",
            TARGET,
            COMMAND + " --nightly" * nightly,
            measure,
            nightly=nightly,
        )


def _local() -> Measured:
    lost: list[int] = []

    async def run(answers: Answers, folders: dict[str, Path]) -> None:
        launcher = Launcher(fork_group, lost_devices=lambda: lost)
        places = layout((0, 1), (2,))
        async with (
            real_service(places, folders, num_devices=3, launcher=launcher) as service,
            service.asked(into=answers),
        ):
            await every_fault(
                service, answers, (0, 1), (2,), folders["b"],
                go=lambda: lost.extend((0, 1)), back=lost.clear,
                ranks=lambda: children(pid_of(service.live(0, 1))),
            )  # fmt: skip

    return _told(run)


def _ray() -> Measured:
    with ray_nodes(2, 1) as nodes, RayCluster(nodes.address, num_devices=3) as cluster:
        by_size = sorted(cluster.nodes().items(), key=lambda one: -len(one[1]))
        (first, pair), (_, alone) = by_size
        launcher = Launcher(cluster.start_group, cluster.host, lambda: cluster.lost_devices)

        async def run(answers: Answers, folders: dict[str, Path]) -> None:
            async with (
                real_service(
                    layout(pair, alone), folders, num_devices=3, launcher=launcher
                ) as service,
                service.asked(into=answers),
            ):
                await every_fault(
                    service, answers, pair, alone, folders["b"],
                    go=lambda: nodes.remove(first), back=lambda: nodes.add(2),
                    ranks=lambda: processes("ray::RankActor"),
                )  # fmt: skip

        return _told(run)


def _told(run) -> Measured:
    answers, why = Answers(), ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            asyncio.run(run(answers, save_models(Path(folder))))
        except (AssertionError, TimeoutError) as error:
            why = f"; then {str(error)[:80] or type(error).__name__}"
    right, told = sum(answers.right.values()), len(answers.told)
    text = (
        f"{answers.survived} of {NUM_FAULTS} faults survived; {answers.asked:,} requests: "
        f"{right:,} with the tokens of one process, {told} told of a loss, {len(answers.wrong)} "
        f"otherwise, {answers.asked - answers.answered} without an answer{why}"
    )
    whole = answers.survived == NUM_FAULTS and right + told == answers.asked
    return Measured(text, whole and not why)
