"""Numbers, times and sizes read the same on every page."""

from datetime import UTC, datetime, timedelta

import pytest
from django.utils.timezone import now

from webapp.core.templatetags.hone import (
    ago,
    compact,
    count,
    digits,
    doubt,
    duration,
    exact,
    percent,
    rate,
    server,
    short,
    size,
    speed,
    trail,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0.84, "0.8 s"), (192, "3 m 12 s"), (3600, "1 h"), (93_784, "1 d 2 h")],  # noqa: RUF001
)
def test_durations_have_their_two_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.693147, "0.6931"),
        (2.5, "2.500"),
        (1234.4, "1234"),
        (0.0000123456, "1.235e-5"),
        (0.0, "0"),
        (float("nan"), "not finite"),
    ],
)
def test_losses_have_four_significant_digits(value: float, text: str) -> None:
    assert digits(value) == text


@pytest.mark.parametrize(("value", "text"), [(1e-4, "1e-4"), (2.5e-5, "2.5e-5"), (0.01, "0.01")])
def test_learning_rates_are_powers_of_ten(value: float, text: str) -> None:
    assert rate(value) == text


def test_a_device_speed_is_told_in_its_own_unit_and_an_unmeasured_one_not_at_all() -> None:
    assert [speed(1.5e11), speed(9.9e14), speed(0)] == ["150 GFLOP/s", "990.0 TFLOP/s", "–"]  # noqa: RUF001


def test_sizes_are_binary_and_counts_are_grouped() -> None:
    assert [size(512), size(1536), size(3 * 2**30)] == ["512 B", "1.5 KiB", "3.0 GiB"]
    assert [count(12345), compact(134_515_008), compact(1200)] == ["12,345", "135M", "1.2k"]
    assert [percent(0.425), percent(1.0)] == ["42.5 %", "100 %"]


def test_a_time_is_relative_and_exact_on_hover() -> None:
    written = str(ago(now() - timedelta(minutes=3, seconds=5)))
    assert ">3 min ago</time>" in written
    assert 'title="' in written
    assert exact(datetime(2026, 11, 21, 9, 5, 7, tzinfo=UTC)) == "21 Nov 2026, 09:05:07 UTC"


def test_a_digest_is_cut_and_whole_on_hover() -> None:
    assert str(short("ab" * 32)) == (
        f'<span class="mono" title="{"ab" * 32}">{("ab" * 32)[:12]}</span>'
    )


def test_a_sparkline_needs_two_points() -> None:
    assert trail([1.0]) == ""
    assert trail([1.0, float("nan"), 0.0]) == "0.0,2.0 72.0,22.0"
    assert trail([1.0, 1.7e308, -1.7e308, 0.0]) == "0.0,2.0 72.0,22.0"


def test_an_unlikely_token_is_shaded_darker() -> None:
    assert [doubt(None), doubt(-0.1), doubt(-1.0), doubt(-5.0)] == [0, 0, 2, 4]


def test_a_server_is_called_by_its_name_and_its_start_stands_on_hover() -> None:
    assert server("sampler-a/3f2c") == '<span title="sampler-a/3f2c">sampler-a</span>'
