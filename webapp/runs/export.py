"""A run as the REST call and the SDK program that do the same."""

import json
from dataclasses import dataclass
from typing import Any

from webapp.core.curl import JSON, KEY
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.methods import find_method
from webapp.runs.scripts import Program
from webapp.runs.services import read_recipe
from webapp.runs.teachers import name_for_program


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """`script` is empty where no program on the SDK does the same."""

    curl: str
    script: str


def export_run(  # noqa: PLR0913 - the settings of a run, by name
    *, url: str, name: str, base_model: BaseModel, version: DatasetVersion | None,
    config: dict[str, Any], recipe: str = "sft", parent: Any = None, with_optimizer: bool = False,
    grid: dict[str, list[Any]] | None = None,
) -> Export:  # fmt: skip
    body: dict[str, Any] = {"name": name, "recipe": recipe, "base_model": base_model.name}
    if version is not None:
        body["dataset_version"] = version.pk
    body["config"] = config
    if parent is not None:
        body |= {"parent": parent.pk, "with_optimizer": with_optimizer}
    if grid:
        body["grid"] = grid
    door = "sweeps" if grid else "runs"
    written = json.dumps(body, indent=2, ensure_ascii=False).replace("'", "'\\''")
    curl = f"curl {url}/rest/{door} \\\n  {KEY} \\\n  {JSON} \\\n  -d '{written}'"
    read = read_recipe(config, recipe)
    if read.is_full:
        return Export(curl=curl, script="")
    program = Program(
        url=url,
        base_model=base_model.name,
        context_tokens=base_model.context_tokens,
        version_id=version.pk if version is not None else "",
        config=read,
        parent_path=parent.tinker_path if parent is not None else "",
        with_optimizer=with_optimizer,
        teacher=name_for_program(str(config.get("teacher") or "")),
    )
    return Export(curl=curl, script=find_method(recipe).script(program))
