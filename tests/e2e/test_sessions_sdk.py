"""What an SDK client holds open, waits for and reads about its account: the real SDK and CLI."""

import pytest

from tests.e2e.live import Live

pytestmark = pytest.mark.e2e


def test_hundreds_of_samples_come_by_one_poller_also_to_copies_of_the_client(live: Live) -> None:
    told = live.run("many_samples.py")
    assert (told["num_answers"], told["num_ids"], told["same"]) == (300, 300, True)
    sampler, seq_id, _ = told["session"].split("/")
    assert seq_id == "0"
    first, second = told["copies"]
    assert first == [f"{sampler}/1000000000/0", "20"]
    assert second == [f"{sampler}/2000000000/0", "20"]
    assert told["num_late"] > 0
    session = f"SamplingSession.objects.get(pk={sampler!r}).calls"
    assert int(live.manage(f"print({session}.filter(status='cancelled').count())")) > 0
    assert live.manage(f"print({session}.filter(status__in=('queued', 'running')).count())") == "0"


def test_the_sdk_exchanges_its_key_for_a_token_and_works_by_it(live: Live) -> None:
    told = live.run("account.py")
    assert told["user"].startswith("hone:user:")
    assert told["organization"].startswith("tml:organization:prj-")
    assert told["email"] is None
    assert told["loss"] > 0
    assert told["num_sequences"] == 2
