"""Workers come and go by name; a name may be taken over by another process."""

import pytest

from tests.webapp.cast import make_actor, sign_in
from webapp.fleet.models import Worker
from webapp.fleet.services import register_worker, remove_worker

pytestmark = pytest.mark.django_db


def test_a_worker_that_ends_leaves_the_row_of_the_one_that_took_its_name() -> None:
    about = {"name": "w1", "kind": Worker.Kind.GPU, "device": "2 CPU cores"}
    register_worker(**about, memory_bytes=1, flops=1.0, pid=1)
    register_worker(**about, memory_bytes=1, flops=1.0, pid=2)
    remove_worker(name="w1", pid=1)
    assert Worker.objects.get(name="w1").pid == 2
    remove_worker(name="w1", pid=2)
    assert not Worker.objects.exists()


def test_the_page_says_what_takes_a_workers_memory() -> None:
    parts = {"room": 5, "base_models": 4, "adapters": 3, "optimizers": 2, "paged": 1, "free": 6}
    memory = {key: value * 2**20 for key, value in parts.items()}
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU, holds={"memory": memory})
    Worker.objects.create(name="w2", kind=Worker.Kind.SAMPLER)
    page = sign_in(make_actor()).get("/settings/workers/")
    assert [worker.memory for worker in page.context["workers"]] == [list(memory.values()), []]
    text = page.content.decode()
    assert "Trained weights" in text  # of adapters and of whole models alike
    assert "6.0 MiB" in text


def test_a_page_of_workers_that_do_not_tell_their_memory_has_no_table_of_it() -> None:
    Worker.objects.create(name="w1", kind=Worker.Kind.GPU)
    page = sign_in(make_actor()).get("/settings/workers/")
    assert "Optimizer states" not in page.content.decode()
