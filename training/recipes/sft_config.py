"""The settings of a supervised fine-tuning run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from training.data.examples import Overlong
from training.recipes.config import SHARED_CHECKS, RecipeConfig
from training.recipes.fields import Check, one_of

OVERLONG: Mapping[str, Check] = {"overlong": one_of(("truncate", "drop"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class SftConfig(RecipeConfig):
    """It learns to write what the assistant writes in each row."""

    CHECKS: ClassVar[Mapping[str, Check]] = {**SHARED_CHECKS, **OVERLONG}
    TITLE: ClassVar[str] = "SFT"

    overlong: Overlong = "truncate"
