"""How a user of the Fireworks SDK comes in: a URL, a key, and models by their names."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.live import ROOT, Live
from webapp.accounts.services import spell_for_fireworks

PYTHON = ROOT / ".venv-fireworks" / "bin" / "python"
TINY = ROOT / "tests" / "assets" / "tiny-chatml-1m"
# What the documentation's programs ask for, here the tiny model: by its name and by its tokenizer.
ASKED = "Qwen/Qwen3-8B"
OFFER = """
from webapp.fleet.models import BaseModel
from webapp.fleet.services import add_base_model
add_base_model(path=BaseModel.objects.get(names__name='tiny-chatml-1m').path, names=['{name}'])
"""

Begin = Callable[..., Any]


@pytest.fixture(scope="session")
def hub(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of the hub that holds one model's files under the name that is asked for."""
    live.manage(OFFER.format(name=ASKED))
    hub = tmp_path_factory.mktemp("hub")
    model = hub / f"models--{ASKED.replace('/', '--')}"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("local")
    (model / "snapshots").mkdir()
    (model / "snapshots" / "local").symlink_to(TINY)
    return hub


@pytest.fixture(scope="session")
def environment(live: Live, hub: Path) -> dict[str, str]:
    return {
        "FIREWORKS_API_KEY": spell_for_fireworks(live.api_key),
        "FIREWORKS_BASE_URL": live.url,
        "HF_HUB_CACHE": str(hub),
    }


@pytest.fixture
def run(live: Live, environment: dict[str, str]) -> Begin:
    """A script of a user, to its end: what it reports."""

    def run_script(script: str, *arguments: str) -> Any:
        name = f"firetitan/{script}"
        return live.run(name, *arguments, python=PYTHON, **environment)

    return run_script


@pytest.fixture
def api(live: Live) -> Iterator[httpx.Client]:
    headers = {"X-API-Key": live.api_key}
    with httpx.Client(base_url=live.url, headers=headers, timeout=60) as client:
        yield client
