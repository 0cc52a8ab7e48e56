"""Completions of a run's pinned prompts, as its page shows them."""

from typing import Any

from webapp.core.events import publish, run_group
from webapp.runs.models import Run, Sample


def record_sample(run: Run, *, step: int, prompt_index: int, **columns: Any) -> Sample:
    """A step that is sampled again, after a restart, replaces what was there."""
    sample, _ = Sample.objects.update_or_create(
        run=run, step=step, prompt_index=prompt_index, defaults=columns
    )
    publish(run_group(run.pk), "samples")
    return sample
