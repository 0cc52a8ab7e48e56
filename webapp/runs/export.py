"""A run as the REST call and the SDK program that do the same."""

import json
from dataclasses import dataclass
from typing import Any

from webapp.core.curl import JSON, KEY
from webapp.datasets.models import DatasetVersion
from webapp.runs.methods import find_method
from webapp.runs.scripts import Program


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`script` is empty where no program on the SDK does the same."""

    curl: str
    script: str


def export_run(  # noqa: PLR0913 - the settings of a run, by name
    *, url: str, name: str, base_model: str, version: DatasetVersion | None,
    config: dict[str, Any], recipe: str = "sft", parent_id: str = "", with_optimizer: bool = False,
) -> Export:  # fmt: skip
    body: dict[str, Any] = {"name": name, "recipe": recipe, "base_model": base_model}
    if version is not None:
        body["dataset_version"] = version.pk
    body["config"] = config
    if parent_id:
        body |= {"parent": parent_id, "with_optimizer": with_optimizer}
    written = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    curl = f"curl {url}/rest/runs \\\n  {KEY} \\\n  {JSON} \\\n  -d '{written}'"
    program = Program(
        url=url,
        base_model=base_model,
        filename=version.filename if version is not None else "",
        config=config,
    )
    is_full = config.get("rank") == 0
    script = "" if is_full else find_method(recipe).script(program)
    return Export(curl=curl, script=script)
