"""Versions made of versions: rows through filters, and onto one side of a split."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings

from training.data.filters import Count, Sieve, choose_side
from training.data.previews import count_tokens
from training.data.rows import Row
from training.data.tokenizer import ChatTokenizer
from training.data.validate import Report, Written, read_normalised, validate, write_rows
from training.errors import InvalidInput
from webapp.datasets.models import DatasetVersion
from webapp.fleet.models import BaseModel
from webapp.runs.row_losses import find_risen, find_unlearned

Specs = list[Mapping[str, Any]]


def is_derived(version: DatasetVersion) -> bool:
    return bool({"filters", "split"} & version.derivation.keys())


def derive(version: DatasetVersion) -> tuple[Report, Written]:
    """Its rows written beside where an upload would lie, and the report of them."""
    origin = version.derived_from
    if origin is None:
        raise InvalidInput("the version that it is made of was deleted")
    target: Path = settings.HONE_HOME / version.upload_path
    target.parent.mkdir(parents=True, exist_ok=True)
    sieve = make_sieve(origin, version.derivation.get("filters", []))
    kept: Iterable[Row] = sieve.keep(read(origin))
    if split := version.derivation.get("split"):
        choose = make_chooser(origin, split)
        kept = (row for row in kept if choose(row) == version.split)
    try:
        written = write_rows(kept, target)
    except InvalidInput as error:
        if sieve.num_rows:
            raise InvalidInput(f"no row is left of {sieve.num_rows:,}: {error}") from error
        raise
    return validate(target, "jsonl", version.kind), written


def read(version: DatasetVersion) -> Iterable[Row]:
    return read_normalised(settings.HONE_HOME / version.rows_path)


def make_chooser(version: DatasetVersion, split: Mapping[str, Any]) -> partial[str]:
    return partial(
        choose_side,
        share=split["held_out_share"],
        seed=split["seed"],
        by_prompt=split["by_prompt"],
        num_splits=version.num_splits,
    )


def make_sieve(version: DatasetVersion, filters: Specs) -> Sieve:
    """With what filters have to know beyond the row: a run's losses, a model's tokens."""
    sieve = Sieve(
        filters=filters,
        lost={
            place: find_lost(version, spec)
            for place, spec in enumerate(filters)
            if spec["filter"] == "losses"
        },
        count_tokens={
            spec["base_model"]: make_count(spec["base_model"], version.kind)
            for spec in filters
            if spec.get("unit") == "tokens"
        },
    )
    sieve.find_lost(partial(read, version))
    return sieve


def find_lost(version: DatasetVersion, spec: Mapping[str, Any]) -> frozenset[int]:
    run = version.runs.filter(pk=spec["run"]).first()
    if run is None:
        raise InvalidInput(f"the run {spec['run']} was deleted")
    find = find_unlearned if spec["which"] == "never_learnt" else find_risen
    return frozenset(find(run))


def make_count(base_model_id: str, kind: str) -> Count:
    base_model = BaseModel.objects.filter(pk=base_model_id).first()
    if base_model is None:
        raise InvalidInput(f"the base model {base_model_id} is not offered any more")
    tokenizer = ChatTokenizer.load(base_model.path)
    return partial(count_tokens, tokenizer=tokenizer, kind=kind)
