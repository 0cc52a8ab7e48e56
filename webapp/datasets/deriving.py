"""Versions made of versions: filtered, split, and described by how they were made."""

from collections.abc import Mapping
from typing import Any

from training.row_filters import describe_filters
from webapp.accounts.models import Actor
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import UserError
from webapp.datasets.analyses import check_options
from webapp.datasets.imports import describe_source
from webapp.datasets.models import DatasetVersion
from webapp.datasets.records import Analysis
from webapp.datasets.services import check_name, insert_version

SPLITS = ("train", "held_out")


def derive_versions(
    *,
    actor: Actor,
    version: DatasetVersion,
    filters: Any = None,
    split: Mapping[str, Any] | None = None,
    name: str = "",
) -> list[DatasetVersion]:
    """One version of the rows that the filters keep, or two where they are split.

    They come next in the dataset of this name; without a name, in that of their origin.
    """
    check_can_write(actor, project_id=version.project_id)
    if version.status != DatasetVersion.Status.READY:
        raise UserError(f"{version} is not ready: others can be made of it once it is.")
    options = {"filters": [] if filters is None else filters, "split": split}
    made = check_options(actor, version, Analysis.Kind.FILTERS, options)
    if not made["filters"] and not made["split"]:
        raise UserError(
            "Set a filter or a split: without one the version would hold the same rows.",
            field="filters",
        )
    target = check_name(name or version.dataset.name)
    sides = SPLITS if made["split"] else ("",)
    return [_derive(actor, version, made, side, target) for side in sides]


def _derive(
    actor: Actor, version: DatasetVersion, made: Mapping[str, Any], side: str, name: str
) -> DatasetVersion:
    derived = DatasetVersion(
        project_id=version.project_id,
        filename=version.filename,
        format="jsonl",
        kind=version.kind,
        derived_from=version,
        derivation={key: value for key, value in made.items() if value},
        split=side,
        num_splits=version.num_splits + bool(side),
        created_by=actor.user,
    )
    derived.upload_path = f"uploads/{derived.pk}/rows.jsonl"
    insert_version(derived, name)
    return derived


def describe_derivation(version: DatasetVersion) -> list[str]:
    """How it was made of another version, a phrase each."""
    derivation = version.derivation
    phrases = describe_filters(derivation.get("filters", []))
    if source := derivation.get("import"):
        phrases.append(describe_source(source))
    if made := derivation.get("generation"):
        documents = ", ".join(made["documents"])
        phrases.append(
            f"{made['num_accepted']:,} of {made['num_pairs']:,} pairs that {made['target']} wrote"
            f" about {documents}"
        )
    if split := derivation.get("split"):
        share = split["held_out_share"]
        side = f"the {share:.4g} held out" if version.split == "held_out" else "all but the "
        if version.split != "held_out":
            side += f"{share:.4g} held out"
        by = "prompt" if split["by_prompt"] else "row"
        phrases.append(f"{side}, split by {by} with seed {split['seed']}")
    return phrases
