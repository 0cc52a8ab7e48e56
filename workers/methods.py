"""Who drives which recipe's runs. What a person sees of each is in `webapp.runs.methods`."""

from collections.abc import Mapping
from typing import Any

from workers.distillation import Distillation
from workers.dpo import Dpo
from workers.drives import Drive
from workers.on_policy import OnPolicyDistillation
from workers.reward_model import RewardModel
from workers.rl import Rl
from workers.self_play import SelfPlay
from workers.sft import Sft

DRIVES: Mapping[str, type[Drive[Any]]] = {
    "sft": Sft,
    "dpo": Dpo,
    "reward_model": RewardModel,
    "rl": Rl,
    "self_play": SelfPlay,
    "on_policy_distillation": OnPolicyDistillation,
    "off_policy_distillation": Distillation,
    "prompt_distillation": Distillation,
}
