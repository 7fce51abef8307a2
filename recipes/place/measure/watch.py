"""``Watch``: what a front door knows of a group by what it sent there and what came back."""

import asyncio
import dataclasses
import math
from collections.abc import Mapping

from blocks.sched.cluster_sim.generation import (
    EngineSettings,
    Load,
    Prediction,
    Standing,
    StepTime,
    predict,
)


@dataclasses.dataclass
class Sent:
    """A request on its way in a group.

    request: its number. prompt_len: its tokens. due_s: when its first token is wanted.
    tpot_s: seconds for every later one. num_computed: prompt tokens that steps have begun with.
    num_output: tokens that came back. first_s: when the first did.
    """

    request: int
    prompt_len: int
    due_s: float
    tpot_s: float
    num_computed: int = 0
    num_output: int = 0
    first_s: float = math.nan

    @property
    def num_tokens(self) -> int:
        return self.prompt_len + self.num_output

    @property
    def next_due_s(self) -> float:
        """When its next token is due, by the rule of ``EngineSettings(turns="due")``."""
        return self.first_s + self.num_output * self.tpot_s if self.num_output else self.due_s


class Known:
    """A model of a group, and what it was sent.

    last_step_s: for how long its last step kept the others waiting, by its profile.
    turn: number of the group's last step that was its.
    """

    def __init__(self, step_time: StepTime, num_blocks: int) -> None:
        self.step_time, self.num_blocks = step_time, num_blocks
        self.sent: dict[int, Sent] = {}
        self.last_step_s, self.turn = 0.0, 0
        self.num_finished, self.output_sum = 0, 0


class Watch:
    """Follows a group's steps by their results, one step at a time.

    When tokens come back, a step is over, and the group is taken to begin the next one by the rules
    that it has: whose turn it is, decodes before prompts, first come first served. How long that
    takes is the profile's word. What it believes serves ``predict`` alone.

    Args:
        models: of the group, with step times by their profiles and their cache blocks.
        settings: of the engines, which take turns by what is due (``overlap=False``).
        gap_s: seconds between two steps of the group.
        loop: its clock counts.
    """

    def __init__(
        self,
        models: Mapping[str, tuple[StepTime, int]],
        settings: EngineSettings,
        gap_s: float,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.models = {model: Known(*known) for model, known in models.items()}
        self._settings, self._gap_s, self._loop = settings, gap_s, loop
        self._clock_s, self._told_s = -math.inf, 0.0
        self._stepping: Known | None = None
        self._members: dict[int, int] = {}
        self._turn = 0
        self._is_planned = self._is_settling = False

    def predict(self, model: str, prompt_len: int) -> Prediction:
        """What one more request would see."""
        known, now_s = self.models[model], self._loop.time()
        ends_s = self._told_s if self._stepping is not None else now_s
        if self._stepping is not known:
            ends_s = now_s
        busy_s = max(0.0, self._clock_s - now_s, ends_s - now_s)
        others = [one for one in self.models.values() if one is not known and one.sent]
        others_s = sum((one.last_step_s for one in others), 0.0)
        return predict(
            self._stands(known),
            known.step_time,
            self._settings,
            prompt_len,
            busy_s=busy_s,
            others_s=others_s,
        )

    def send(self, model: str, sent: Sent) -> None:
        """A request is on its way."""
        self.models[model].sent[sent.request] = sent
        self._plan()

    def came(self, model: str, request: int, over: bool) -> None:
        """A token came back; ``over`` if it was the last."""
        known, now_s = self.models[model], self._loop.time()
        sent = known.sent[request]
        if not sent.num_output:
            sent.first_s = now_s
        sent.num_output += 1
        sent.num_computed = sent.prompt_len
        if over:
            del known.sent[request]
            known.num_finished += 1
            known.output_sum += sent.num_output
        if not self._is_settling:  # once for all tokens of a step
            self._is_settling = True
            self._loop.call_soon(self._settle)

    def _settle(self) -> None:
        self._is_settling = False
        self._stepping, self._members = None, {}
        self._clock_s = self._loop.time() + self._gap_s
        self._plan()

    def _plan(self) -> None:
        if self._stepping is not None or self._is_settling or self._is_planned:
            return
        self._is_planned = True
        if self._clock_s > self._loop.time():
            self._loop.call_at(self._clock_s, self._begin)
        else:
            self._loop.call_soon(self._begin)

    def _begin(self) -> None:
        self._is_planned = False
        ready = [known for known in self.models.values() if known.sent]
        if self._stepping is not None or not ready:
            return
        rule = self._settings.turns == "due" and len(ready) > 1
        self._stepping = known = min(
            ready, key=lambda one: (_due_s(one) if rule else 0.0, one.turn)
        )
        self._turn += 1
        known.turn = self._turn
        load = self._compose(known)
        stage_s = known.step_time(load)
        known.last_step_s = self._settings.holds_s(stage_s)
        at_s = self._loop.time()
        for seconds in stage_s:
            at_s += seconds
        self._told_s, self._clock_s = at_s, at_s + self._gap_s

    def _compose(self, known: Known) -> Load:
        """What the step holds: a token for every decode, then prompts while the budget lasts."""
        left, num_prompt, num_decodes, context_len = self._settings.token_budget, 0, 0, 0
        chunks: list[tuple[int, int]] = []
        for sent in known.sent.values():
            if sent.num_output:
                num_decodes, context_len = num_decodes + 1, context_len + sent.num_tokens
                self._members[sent.request] = 0
        left -= num_decodes
        for sent in known.sent.values():
            count = min(left, sent.prompt_len - sent.num_computed)
            if sent.num_output or count <= 0 or len(self._members) >= self._settings.max_num_seqs:
                continue
            if sent.num_computed:
                chunks.append((sent.num_computed, count))
            sent.num_computed += count
            self._members[sent.request] = count
            left, num_prompt = left - count, num_prompt + count
        return Load(num_prompt, tuple(chunks), num_decodes, context_len)

    def _stands(self, known: Known) -> Standing:
        """As ``standing`` counts it: prompts in the step under way count as computed."""
        size = self._settings.block_size
        num_prompt = num_decodes = context_len = live_tokens = waiting_blocks = held = 0
        running: list[tuple[int, int]] = []
        for sent in known.sent.values():
            live_tokens += sent.num_tokens
            num_prompt += sent.prompt_len - sent.num_computed
            blocks = -(-sent.num_tokens // size)
            if sent.num_computed:
                held += blocks
                running.append((sent.num_output, blocks))
            else:
                waiting_blocks += blocks
            if sent.num_computed == sent.prompt_len:
                num_decodes, context_len = num_decodes + 1, context_len + sent.num_tokens
        mean = known.output_sum / known.num_finished if known.num_finished else 1.0
        free = known.num_blocks - held
        num_live = len(known.sent)
        return Standing(
            num_prompt,
            num_decodes,
            context_len,
            num_live,
            live_tokens,
            waiting_blocks,
            tuple(running),
            free,
            mean,
        )


def _due_s(known: Known) -> float:
    return min(sent.next_due_s for sent in known.sent.values())
