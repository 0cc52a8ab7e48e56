"""Drives self-play on a small game."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from training.recipes.policy import Ask
from training.recipes.self_play import Arena, SelfPlayConfig
from workers.policy import POLICY_SECONDS, PolicyDrive

FROZEN_SECONDS = 7 * 24 * 3600  # an opponent is asked again until the next one is frozen


@dataclass(slots=True, kw_only=True, eq=False)
class SelfPlay(PolicyDrive[SelfPlayConfig]):
    """Both sides are the run's own weights, of now or of a while ago."""

    arena: Arena = field(init=False)

    def prepare(self) -> str:
        self.tokenizer = self.load_tokenizer()
        self.arena = Arena(config=self.config, tokenizer=self.tokenizer)
        self.num_batches = self.config.count_batches(0)
        self.num_steps = self.num_batches * self.config.num_substeps
        games = self.config.batch_size * self.config.group_size
        return f"{games} games of {self.config.game} a batch in {self.num_steps} steps."

    def find_ask(self) -> Ask:
        return self.arena.ask

    def find_ttl(self, step: int) -> int:
        num_before = step // self.config.num_substeps + self.config.max_steps_off_policy
        is_frozen = num_before % self.config.frozen_every == 0  # of the batch that they answer
        is_opponent = self.config.opponent == "frozen" and is_frozen
        return FROZEN_SECONDS if is_opponent else POLICY_SECONDS

    def measure(self) -> Mapping[str, float]:
        return self.arena.measure(self.newest.result(), self.newest.step)
