"""The policy at work: rollouts by the engine, with everything kept as it was drawn.

A rollout's token ids are only ever appended to. What the environment says between two turns is rendered and appended as
well, so training sees, token for token, what the policy saw when it acted.

Shapes: T tokens, L layers, K experts a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ossia.engine.blocks import PAGE, num_blocks
from ossia.engine.engine import Engine
from ossia.engine.request import Drawn, Request, Sampling
from ossia.engine.scheduler import Chunk
from ossia.errors import DataError, HarmonyError, KernelError
from ossia.harmony import Conversation, from_openai, render_completion
from ossia.harmony.tokenizer import Tokenizer
from ossia.model.transformer import MixtureOfExperts, Transformer
from ossia.reply import Reply, Stream
from ossia.train.rl.environment import SOLVED, CheckedEpisode


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An episode to be played, and the random stream of the policy in it."""

    problem: int
    """Equal in those that are to be compared with one another."""
    episode: CheckedEpisode
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """An episode that was played."""

    problem: int
    token_ids: list[int]
    """All turns, prompts and answers, as the policy read and wrote them."""
    drawn: list[bool]
    """For each token whether the policy drew it."""
    logprobs: list[float]
    """Of each token that was drawn, in nats, by the distribution it was drawn from."""
    expert_ids: Tensor
    """int64 [L, T, K], -1 for the last token, which never went through the model, and where nothing was recorded."""
    reward: float
    turns: int
    cut: bool
    """Whether a turn reached its limit of tokens, or the episode that of tokens or turns."""
    reply: Reply
    """The last turn."""

    @property
    def solved(self) -> bool:
        """Whether the rewards came to those of a solved problem."""
        return self.reward >= SOLVED

    @property
    def length(self) -> int:
        """Tokens that were drawn."""
        return len(self.logprobs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Roller:
    """How rollouts are made."""

    tokenizer: Tokenizer
    max_tokens: int = 512
    """Of one turn."""
    max_turns: int = 8
    context: int = 2048
    """Tokens of an episode."""
    max_batch: int = 64
    """Episodes under way at a time."""
    temperature: float = 1.0
    """1: the policy as it is. Log-probabilities are those at 1, so training needs that."""

    def __call__(self, model: Transformer, attempts: Sequence[Attempt]) -> list[Rollout]:
        """Play the attempts, in their order.

        Raises DataError where an environment misbehaves or its prompt has no room, KernelError where the model fails.
        """
        plays = [_Play(attempt, self._prompt(attempt.episode)) for attempt in attempts]
        with Recorder(model) as recorder:
            engine = Engine(
                model,
                context=self.context,
                max_batch=self.max_batch,
                max_waiting=max(1, len(plays)),
                cache_tokens=self.max_batch * num_blocks(self.context) * PAGE,
                beside=self.max_batch * PAGE,  # Nobody waits for the next token.
                watch=recorder.hear,
            )
            running = {self._submit(engine, play): play for play in plays}
            while engine.has_work:
                for request, output in engine.step():
                    play = running[request]
                    play.extend(output.drawn)
                    if output.finish == "error":
                        raise KernelError(f"{play.attempt.episode.where}: {output.error}")
                    if output.finish is not None:
                        play.experts.append(recorder.take(request))
                        del running[request]
                        if self._turn_over(play):
                            running[self._submit(engine, play)] = play
        experts = _whole([play.token_ids for play in plays], [play.experts for play in plays], model)
        return [play.rollout(ids) for play, ids in zip(plays, experts, strict=True)]

    def _prompt(self, episode: CheckedEpisode) -> list[int]:
        asked = episode.prompt
        try:
            conversation = from_openai(asked.messages, tools=asked.tools or None, effort=asked.effort, date=asked.date)
            ids = render_completion(conversation, self.tokenizer)
        except HarmonyError as error:
            raise DataError(f"{episode.where}: {error}") from None
        if len(ids) >= self.context:
            raise DataError(
                f"{episode.where}: the prompt has {len(ids)} tokens, no room for an answer within --max-length "
                f"{self.context}: raise it"
            )
        return ids

    def _submit(self, engine: Engine, play: "_Play") -> int:
        sampling = Sampling(
            temperature=self.temperature,
            seed=(play.attempt.seed + play.turns) % 2**63,
            max_tokens=self.max_tokens,
            stop_ids=self.tokenizer.stop_ids,
            logprobs=0,
        )
        return engine.submit(Request(prompt=tuple(play.token_ids), sampling=sampling))

    def _turn_over(self, play: "_Play") -> bool:
        """Hand the turn to the environment; whether the policy has another."""
        reply = self._reply(play.token_ids[play.begin :])
        outcome = play.attempt.episode.step(reply)
        play.turns += 1
        play.reward += outcome.reward
        play.reply = reply
        play.cut = reply.finish_reason == "length"
        if outcome.done or play.cut:
            return False
        said = self._said(play, reply, outcome.messages)
        if play.turns == self.max_turns or len(play.token_ids) + len(said) >= self.context:
            play.cut = True
            return False
        play.hear(said)
        return True

    def _reply(self, turn: list[int]) -> Reply:
        stream = Stream(iter(turn), self.tokenizer, num_prompt_tokens=0)
        for _ in stream:
            pass
        reply = stream.reply()
        # Only what ended with the token for a call was called.
        return reply if turn[-1] == self.tokenizer.special["<|call|>"] else replace(reply, tool_calls=())

    def _said(self, play: "_Play", reply: Reply, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """What the environment says, to be appended: its messages, and the header of the next turn."""
        calls = [{"role": "assistant", "tool_calls": list(reply.tool_calls)}] if reply.tool_calls else []
        try:
            new = from_openai([*calls, *messages]).messages[len(reply.tool_calls) :]
            if any(message.role == "assistant" for message in new):
                raise HarmonyError("its messages speak as the assistant: give those of the user or of tools")
            return render_completion(Conversation(system=None, messages=new), self.tokenizer)
        except HarmonyError as error:
            raise DataError(f"{play.attempt.episode.where}: {error}") from None


@dataclass(slots=True)
class _Play:
    """An episode under way."""

    attempt: Attempt
    token_ids: list[int]
    drawn: list[bool] = field(init=False)
    begin: int = field(init=False)
    """Where the turn of the policy begins."""
    logprobs: list[float] = field(default_factory=list[float])
    experts: "list[Spans]" = field(default_factory=list["Spans"])
    reward: float = 0.0
    turns: int = 0
    cut: bool = False
    reply: Reply | None = None

    def __post_init__(self) -> None:
        self.begin = len(self.token_ids)
        self.drawn = [False] * self.begin

    def extend(self, drawn: Sequence[Drawn]) -> None:
        """What the policy drew."""
        for one in drawn:
            assert one.logprob is not None
            self.token_ids.append(one.token)
            self.drawn.append(True)
            self.logprobs.append(one.logprob)

    def hear(self, token_ids: Sequence[int]) -> None:
        """What the environment said."""
        self.token_ids += token_ids
        self.drawn += [False] * len(token_ids)
        self.begin = len(self.token_ids)

    def rollout(self, expert_ids: Tensor) -> Rollout:
        """As it ended."""
        assert self.reply is not None
        return Rollout(
            problem=self.attempt.problem,
            token_ids=self.token_ids,
            drawn=self.drawn,
            logprobs=self.logprobs,
            expert_ids=expert_ids,
            reward=self.reward,
            turns=self.turns,
            cut=self.cut,
            reply=self.reply,
        )


# -------------------------------------------------------------------- which experts did the work

Spans = list[tuple[int, np.ndarray]]
"""First position, and expert ids [T, L, K] from there on."""


class Recorder:
    """Hears the routers of a model while it is open, and keeps for each request which experts its tokens went to."""

    def __init__(self, model: Transformer) -> None:
        self._routers = [module.router for module in model.modules() if isinstance(module, MixtureOfExperts)]
        self._num_active = model.config.experts_per_token
        self._now: list[Tensor] = []
        self._spans: dict[int, Spans] = {}
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> "Recorder":
        self._handles = [router.register_forward_hook(self._choose) for router in self._routers]
        return self

    def __exit__(self, *_: object) -> None:
        while self._handles:
            self._handles.pop().remove()

    def _choose(self, _router: nn.Module, _inputs: Any, logits_TE: Tensor) -> None:
        self._now.append(logits_TE.topk(self._num_active, dim=-1).indices)

    def hear(self, chunks: Sequence[Chunk]) -> None:
        """These ran in the forward pass that just ended."""
        ids_TLK = torch.stack(self._now, dim=1).cpu().numpy()
        self._now.clear()
        row = 0
        for chunk in chunks:
            stop = row + chunk.stop - chunk.start
            self._spans.setdefault(chunk.job.id, []).append((chunk.start, ids_TLK[row:stop]))
            row = stop

    def take(self, request: int) -> Spans:
        """What was kept of a request, which is over."""
        return self._spans.pop(request)


def _whole(token_ids: Sequence[list[int]], spans: Sequence[Sequence[Spans]], model: Transformer) -> list[Tensor]:
    """Expert ids int64 [L, T, K] of each sequence.

    What one did not compute itself, because the engine remembered it of another that begins alike, is taken from there:
    with the same weights, the same beginning goes to the same experts.
    """
    shape = (model.config.num_hidden_layers, model.config.experts_per_token)
    found: list[np.ndarray] = []
    known: dict[int, np.ndarray] = {}
    keys: list[list[int]] = []
    for tokens, turns in zip(token_ids, spans, strict=True):
        ids_TLK = np.full((len(tokens), *shape), -1)
        for start, span in reversed([each for turn in turns for each in turn]):  # What came first stays: it acted.
            ids_TLK[start : start + len(span)] = span
        key, own = 0, list[int]()
        for token, ids_LK in zip(tokens, ids_TLK, strict=True):
            key = hash((key, token))
            own.append(key)
            if ids_LK[0, 0] >= 0:
                known.setdefault(key, ids_LK)
        found.append(ids_TLK)
        keys.append(own)
    for ids_TLK, own in zip(found, keys, strict=True):
        for position in np.flatnonzero(ids_TLK[:, 0, 0] < 0):
            if (ids_LK := known.get(own[position])) is not None:
                ids_TLK[position] = ids_LK
    return [torch.from_numpy(ids_TLK.transpose(1, 0, 2).copy()) for ids_TLK in found]
