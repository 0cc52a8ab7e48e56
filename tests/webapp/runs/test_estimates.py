"""How long a run will take, before it begins."""

import json
from pathlib import Path

import pytest

from tests.webapp.cast import make_actor, make_base_model, make_run
from webapp.datasets.models import Dataset, DatasetVersion, Preview
from webapp.fleet.models import BaseModel, Worker
from webapp.runs.estimates import estimate_seconds, estimate_tokens
from webapp.runs.models import Run

pytestmark = pytest.mark.django_db


@pytest.fixture
def base_model() -> BaseModel:
    model = make_base_model()
    BaseModel.objects.filter(pk=model.pk).update(num_parameters=1_000_000)
    return BaseModel.objects.get(pk=model.pk)


def test_nothing_is_said_where_nothing_is_known(base_model: BaseModel) -> None:
    assert estimate_seconds(base_model=base_model, num_tokens_per_step=100, steps=10) is None


def test_a_new_model_is_estimated_from_the_workers_speed(base_model: BaseModel) -> None:
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, flops=8e9)
    estimate = estimate_seconds(base_model=base_model, num_tokens_per_step=100, steps=10)
    assert estimate is not None
    # 4e6 operations a token and 8e9 a second: 0.05 s a step, 0.1 s at half of the speed
    assert estimate.seconds == pytest.approx(10 * (0.1 + 0.05))
    assert estimate.tokens_per_second == pytest.approx(1000 / 1.5)
    assert "measured speed" in estimate.basis


def test_of_a_mixture_only_the_experts_that_a_token_meets_take_time(
    base_model: BaseModel, tmp_path: Path
) -> None:
    """Those of a model that is published with 30.5 billion weights, 3.3 of which a token meets."""
    config = {
        "model_type": "qwen3_moe",
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
    }
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, flops=8e9)
    speeds = []
    for path in (base_model.path, str(tmp_path)):
        BaseModel.objects.filter(pk=base_model.pk).update(path=path, num_parameters=30_500_000_000)
        base_model.refresh_from_db()
        estimate = estimate_seconds(base_model=base_model, num_tokens_per_step=100, steps=10)
        assert estimate is not None
        speeds.append(estimate.tokens_per_second)
        (tmp_path / "config.json").write_text(json.dumps(config))
    assert speeds[1] / speeds[0] == pytest.approx(30.5 / 3.3, rel=0.03)


def test_what_was_only_computed_is_said_as_a_range(base_model: BaseModel) -> None:
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, flops=8e9)
    estimate = estimate_seconds(base_model=base_model, num_tokens_per_step=100, steps=10)
    assert estimate is not None
    assert estimate.is_wide
    assert estimate.least_seconds < estimate.seconds < estimate.most_seconds
    assert 2 < estimate.most_seconds / estimate.least_seconds < 4


def test_small_steps_on_a_fast_device_cost_their_overhead(base_model: BaseModel) -> None:
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, flops=1e15)
    estimate = estimate_seconds(base_model=base_model, num_tokens_per_step=100, steps=10)
    assert estimate is not None
    assert estimate.seconds == pytest.approx(0.5, rel=0.01)


def test_earlier_runs_that_differ_make_a_range_and_a_single_one_does_not(
    base_model: BaseModel,
) -> None:
    actor = make_actor()
    estimates = []
    for number, speed in enumerate((200.0, 300.0)):
        run = make_run(actor, base_model, model_seq_id=number)
        Run.objects.filter(pk=run.pk).update(tokens_per_second=speed)
        estimate = estimate_seconds(base_model=base_model, num_tokens_per_step=60, steps=10)
        assert estimate is not None
        estimates.append(estimate)
    single, both = estimates
    assert not single.is_wide
    assert both.is_wide
    assert (both.least_seconds, both.most_seconds) == (2.0, 3.0)
    assert both.seconds == pytest.approx(2.4)


def test_earlier_runs_of_the_model_count_more_than_arithmetic(base_model: BaseModel) -> None:
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, flops=8e9)
    run = make_run(make_actor(), base_model)
    Run.objects.filter(pk=run.pk).update(tokens_per_second=250.0)
    estimate = estimate_seconds(base_model=base_model, num_tokens_per_step=100, steps=10)
    assert estimate is not None
    assert (estimate.tokens_per_second, estimate.seconds) == (250.0, 4.0)
    assert "earlier runs" in estimate.basis


def test_tokens_of_a_row_are_counted_in_a_preview_or_guessed_from_its_length(
    base_model: BaseModel,
) -> None:
    actor = make_actor()
    version = DatasetVersion.objects.create(
        project=actor.project,
        dataset=Dataset.objects.create(project=actor.project, name="words"),
        number=1,
        num_rows=10,
        size_bytes=4400,
    )
    assert estimate_tokens(version, base_model) == 100.0
    Preview.objects.create(version=version, base_model=base_model, stats={"mean_tokens": 64.5})
    assert estimate_tokens(version, base_model) == 64.5
