"""Workers come and go by name; a name may be taken over by another process."""

import pytest

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
