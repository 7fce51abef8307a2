"""What a rank's process on Ray runs. A plain class, of which Ray makes an actor."""

import logging

from recipes.place.ray.interface import speak_at
from recipes.place.ray.library import ray_library
from recipes.serve.parallel import RankSpec, run_rank

log = logging.getLogger("recipes.place")


class RankActor:
    """A process that is one rank of one model, in the bundle of its device."""

    def run(self, spec: str) -> int:
        """Be the rank that the JSON of a ``RankSpec`` says; its exit code.

        As in a process of its own, an engine that is gone ends this process at once, and the actor
        with it.
        """
        rank = RankSpec.from_json(spec)
        if rank.rendezvous.startswith("tcp://"):  # the group spans nodes
            speak_at(ray_library().util.get_node_ip_address())
        try:
            run_rank(rank)
        except BaseException:
            log.exception("a rank failed")  # the engine has been told, and tells the world
            return 1
        return 0
