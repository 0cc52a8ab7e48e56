"""Who drives which recipe's runs. What a person sees of each is in `webapp.runs.methods`."""

from collections.abc import Mapping
from typing import Any

from workers.dpo import Dpo
from workers.drives import Drive
from workers.reward_model import RewardModel
from workers.rl import Rl
from workers.sft import Sft

DRIVES: Mapping[str, type[Drive[Any]]] = {
    "sft": Sft,
    "dpo": Dpo,
    "reward_model": RewardModel,
    "rl": Rl,
}
