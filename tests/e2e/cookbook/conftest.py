"""The stock cookbook beside a live installation, and one run that others go on from."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.cookbook.cookbook import Cookbook, Outcome
from tests.e2e.cookbook.hub import CHAT, make_boxed_chats, write_rows
from tests.e2e.live import Live


@pytest.fixture(scope="session")
def cookbook(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cookbook]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as api:
        started = Cookbook(live, api, tmp_path_factory.mktemp("cookbook"))
        yield started
        started.stop()


@pytest.fixture(scope="session")
def boxed_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_rows(tmp_path_factory.mktemp("rows") / "boxed.jsonl", make_boxed_chats())


@pytest.fixture(scope="session")
def boxed(cookbook: Cookbook, boxed_rows: Path) -> Outcome:
    """Chat SFT on a local file: sums, answered the way the environments of mathematics read."""
    return cookbook.train(
        "tinker_cookbook.recipes.chat_sl.train",
        f"model_name={CHAT}",
        f"dataset={boxed_rows}",
        "train_on_what=last_assistant_message",
        "batch_size=20",
        "num_epochs=4",
        "lora_rank=16",
        "learning_rate=3e-3",
        "save_every=8",
        "eval_every=0",
    )
