"""What the sandbox lets an answer's code do, and what it does not."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from training.errors import InvalidInput
from workers.sandbox import Job, Process, Sandbox
from workers.sandbox_batches import run_jobs

ADD = "def add(a, b):\n    return a + b"
SECRET = "41276"  # what the tests compare with, and the code must not find


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.stop()


def make_job(code: str, tests: Any, *, seconds: float = 20.0, **settings: Any) -> Job:
    program = isinstance(tests, list) and isinstance(tests[0], dict)
    private = {"tests": tests, "entry": "", "partial": False, **settings}
    public = {"code": code, "is_program": program}
    return Job(kind="unit_tests", public=public, private=private, seconds=seconds)


def run(sandbox: Sandbox, code: str, tests: Any, **settings: Any) -> dict[str, Any]:
    return sandbox.run(make_job(code, tests, **settings))


@pytest.mark.parametrize(
    ("code", "tests", "score"),
    [
        (ADD, "assert add(1, 2) == 3", 1.0),
        ("def add(a, b): return a - b", "assert add(1, 2) == 3", 0.0),
        (f"Sure:\n```python\n{ADD}\n```\nThat adds.", "assert add(1, 2) == 3", 1.0),
        ("def pairs(n): return [(i, {i: 'x'}) for i in range(n)]",
         "assert pairs(2) == [(0, {0: 'x'}), (1, {1: 'x'})]", 1.0),
        ("def f(): raise KeyError('x')",
         "try:\n    f()\nexcept KeyError:\n    pass\nelse:\n    raise AssertionError", 1.0),
        ("def sort_it(v): v.sort()", "v = [3, 1]\nsort_it(v)\nassert v == [1, 3]", 1.0),
        ("class Stack:\n    def __init__(self): self.v = []\n"
         "    def push(self, x): self.v.append(x)\n    def __len__(self): return len(self.v)",
         "s = Stack()\ns.push(1)\ns.push(2)\nassert len(s) == 2 and s.v == [1, 2]", 1.0),
        ("def count(n):\n    yield from range(n)", "assert list(count(3)) == [0, 1, 2]", 1.0),
        ("import math\ndef area(r): return math.pi * r ** 2",
         "assert abs(area(2.0) - 12.566) < 1e-2", 1.0),
        ("print(int(input()) * 2)", [{"input": "4", "output": "8\n"}], 1.0),
        ("print(1)", [{"input": "", "output": "2"}], 0.0),
        ("no python", "assert add(1, 2) == 3", 0.0),
        ("", "assert add(1, 2) == 3", 0.0),
    ],
)  # fmt: skip
def test_code_that_passes_its_tests_is_right(
    sandbox: Sandbox, code: str, tests: Any, score: float
) -> None:
    assert run(sandbox, code, tests)["score"] == score


def test_a_test_that_calls_the_entry_by_another_name_gets_it(sandbox: Sandbox) -> None:
    tests = "def check(candidate):\n    assert candidate(1, 2) == 3"
    assert run(sandbox, ADD, tests, entry="add")["score"] == 1.0
    assert run(sandbox, ADD.replace("+", "-"), tests, entry="add")["score"] == 0.0


def test_a_check_that_nothing_calls_is_the_rows_fault(sandbox: Sandbox) -> None:
    tests = "def check(candidate):\n    assert candidate(1, 2) == 3"
    assert "name the entry" in run(sandbox, ADD, tests)["error"]
    assert run(sandbox, ADD, f"{tests}\ncheck(add)")["score"] == 1.0


def test_code_that_names_things_as_its_tests_do_changes_nothing_of_them(sandbox: Sandbox) -> None:
    wrong = "def add(a, b): return 0\ndef check(it): pass\ndef abs(x): return 0"
    defines = "def check(candidate):\n    assert candidate(1, 2) == 3"
    assert run(sandbox, wrong, defines, entry="add")["score"] == 0.0
    assert run(sandbox, wrong, "assert abs(add(1, 2) - 3) < 1e-6")["score"] == 0.0
    assert run(sandbox, ADD, "assert abs(add(1, 2) - 3) < 1e-6")["score"] == 1.0
    own = "def sum(a, b): return a + b"
    assert run(sandbox, own, "assert sum(1, 2) == 3")["score"] == 1.0
    assert run(sandbox, own, "assert candidate(1, 2) == sum(1, 2)", entry="sum")["score"] == 1.0


def test_functions_that_pytest_would_find_are_called(sandbox: Sandbox) -> None:
    tests = (
        "def test_small():\n    assert add(1, 2) == 3\ndef test_next():\n    assert add(2, 2) == 4"
    )
    assert run(sandbox, ADD, tests)["score"] == 1.0
    assert run(sandbox, "def add(a, b): return 3", tests)["score"] == 0.0
    own = "def test_me(): raise ValueError\n" + ADD
    assert run(sandbox, own, "assert add(1, 2) == 3")["score"] == 1.0


def test_of_several_tests_each_may_count_for_itself(sandbox: Sandbox) -> None:
    tests = ["assert add(1, 2) == 3", "assert add(1, 2) == 4"]
    assert run(sandbox, ADD, tests)["score"] == 0.0
    assert run(sandbox, ADD, tests, partial=True)["score"] == 0.5


def test_every_program_starts_fresh_and_they_may_be_many(sandbox: Sandbox) -> None:
    tests = [{"input": str(n), "output": str(n + 1)} for n in range(20)]
    assert run(sandbox, "print(int(input()) + 1)", tests)["score"] == 1.0


@pytest.mark.parametrize(
    "tests", ["assert (", [], [1], {"a": 1}, [{"input": "1"}], "", ["", "assert True"]]
)
def test_tests_that_are_none_are_the_rows_fault_and_not_the_answers(
    sandbox: Sandbox, tests: Any
) -> None:
    job = Job(
        kind="unit_tests",
        public={"code": ADD, "is_program": False},
        private={"tests": tests, "entry": "", "partial": False},
    )
    assert "test" in sandbox.run(job)["error"]


FORGERIES = {
    "leaves at once": "import os\nos._exit(0)",
    "exits with success": "raise SystemExit(0)",
    "is equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\n"
        "def secret():\n    return Any()"
    ),
    "writes to everything that is open": (
        "import os\nfor fd in range(256):\n    try:\n"
        "        os.write(fd, b'{\"score\": 1.0}\\n')\n    except OSError:\n        pass\n"
        "def secret():\n    return 0"
    ),
    "reads its own memory": (
        "import gc, sys, re\ndef secret():\n    seen = []\n    frame = sys._getframe()\n"
        "    while frame:\n        seen.append(repr(frame.f_locals)); frame = frame.f_back\n"
        "    seen += [repr(each) for each in gc.get_objects() if isinstance(each, (dict, list))]\n"
        "    found = re.search(r'secret\\(\\) == (\\d+)', ' '.join(seen))\n"
        "    return int(found.group(1)) if found else 0"
    ),
    "rewrites what assert raises": (
        "import builtins\nbuiltins.AssertionError = type('Quiet', (BaseException,), {})\n"
        "builtins.exec = lambda *a: None\ndef secret():\n    return 0"
    ),
    "kills whoever began it": (
        "import os, signal\nfor pid in (os.getppid(), 1, -1):\n    try:\n"
        "        os.kill(pid, signal.SIGKILL)\n    except OSError:\n        pass\n"
        "def secret():\n    return 0"
    ),
    "looks into other processes": (
        "import glob\ndef secret():\n    for path in glob.glob('/proc/*/mem') or ['x']:\n"
        "        try:\n            open(path, 'rb').read(10)\n            return -1\n"
        "        except OSError:\n            pass\n    return 0"
    ),
}  # fmt: skip


@pytest.mark.parametrize("code", FORGERIES.values(), ids=list(FORGERIES))
def test_no_trick_passes_tests_and_the_next_answer_is_graded_as_ever(
    sandbox: Sandbox, code: str
) -> None:
    assert run(sandbox, code, f"assert secret() == {SECRET}")["score"] == 0.0
    assert run(sandbox, ADD, "assert add(1, 2) == 3")["score"] == 1.0


def test_what_code_signals_to_its_group_reaches_no_process_of_ours(sandbox: Sandbox) -> None:
    code = "import os\ndef group():\n    return os.getpgrp()"
    found = run(sandbox, code, "assert group() > 0")
    assert found["score"] == 1.0, found  # 0: one of outside


BOMBS = {
    "an endless loop": "while True:\n    pass",
    "a fork bomb": """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""",
    "children that leave": """
import os, time
for _ in range(2):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
time.sleep(600)
""",
    "a loop that nothing interrupts": """
import signal
for n in range(1, 32):
    try:
        signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    try:
        pass
    except BaseException:
        pass
""",
}


@pytest.mark.parametrize("code", BOMBS.values(), ids=list(BOMBS))
def test_what_does_not_end_is_ended_with_all_that_it_began(sandbox: Sandbox, code: str) -> None:
    before = count_sandboxed()
    assert run(sandbox, code, "assert True", seconds=1.0) == {"late": True}
    deadline = time.monotonic() + 60  # another sandbox of this machine may be at work
    while (left := count_sandboxed()) > before:
        assert time.monotonic() < deadline, f"{left} and not {before}"
        time.sleep(0.1)


def count_sandboxed() -> int:
    """Processes of the sandbox's own users, on the whole machine."""
    owners = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            owners.append(place.stat().st_uid)
        except OSError:
            continue
    return sum(uid == 62_000 for uid in owners)


def test_ten_gigabytes_are_not_to_be_had(sandbox: Sandbox) -> None:
    outcome = run(sandbox, "x = bytearray(10 << 30)\n" + ADD, "assert add(1, 2) == 3")
    assert outcome["score"] == 0.0
    assert "MemoryError" in outcome["note"]


def test_nothing_but_python_can_be_seen_and_only_an_empty_folder_written(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text("x")
    code = f"""
import os, pathlib, socket
def try_it(act):
    try:
        act()
    except OSError:
        return "refused"
    return "done"
def look():
    return {{
        "home": try_it(lambda: os.listdir({os.environ["HONE_HOME"]!r})),
        "own": try_it(lambda: open({str(tmp_path / "secret")!r}).read()),
        "passwords": try_it(lambda: open("/etc/shadow").read()),
        "processes": try_it(lambda: os.listdir("/proc/1")),
        "write": try_it(lambda: pathlib.Path("/usr/x").write_text("x")),
        "write python": try_it(lambda: pathlib.Path(os.__file__).write_text("x")),
        "network": try_it(lambda: socket.create_connection(("127.0.0.1", 8000), 2)),
        "names": try_it(lambda: socket.getaddrinfo("example.com", 80)),
        "become root": try_it(lambda: os.setuid(0)),
        "large file": try_it(lambda: pathlib.Path("large").write_bytes(b"x" * (2 << 20))),
        "small file": try_it(lambda: pathlib.Path("small").write_text("x")),
        "environment": sorted(os.environ),
        "folder": sorted(os.listdir(".")),
    }}
"""
    for refused in ("home", "own", "passwords", "processes", "write", "network"):
        again = run(sandbox, code, f"assert look()[{refused!r}] == 'refused'")
        assert again == {"score": 1.0, "note": ""}, refused
    rest = """
found = look()
for refused in ("write python", "names", "become root", "large file"):
    assert found[refused] == "refused", refused
assert found["small file"] == "done"
assert found["environment"] == ["TMPDIR"]
assert look()["folder"] == ["large", "small"]
"""
    assert run(sandbox, code, rest) == {"score": 1.0, "note": ""}
    # What one answer has written the next one does not see.
    assert run(sandbox, "import os\ndef f(): return os.listdir('.')", "assert f() == []") == {
        "score": 1.0,
        "note": "",
    }


def test_an_answer_that_hangs_takes_no_other_of_its_batch_with_it(sandbox: Sandbox) -> None:
    slow = {"type": "string", "pattern": "^(a+)+$"}
    jobs = [
        Job(kind="json_schema", private={"completion": completion, "schema": schema}, seconds=3.0)
        for completion, schema in (
            ("1", {"type": "integer"}),
            (json.dumps("a" * 64 + "!"), slow),
            ("1", {"type": "string"}),
        )
    ]
    first, second, third = run_jobs(sandbox, jobs, lambda: None)
    assert first == {"score": 1.0, "note": ""}
    assert second == {"late": True}
    assert third == {"score": 0.0, "note": "At $: 1 is not of type 'string'"}


def test_a_process_of_the_pool_that_was_killed_is_started_again(sandbox: Sandbox) -> None:
    job = Job(kind="math", private={"completion": "$2$", "target": "2"})
    assert sandbox.run(job)["score"] == 1.0
    process = sandbox.processes[0].process
    assert process is not None
    process.kill()
    process.wait()
    [lost] = sandbox.run_all([job], lambda: None)
    assert isinstance(lost, Exception)
    assert sandbox.run(job)["score"] == 1.0


def test_a_process_that_is_late_to_begin_is_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    process = Process(3)
    job = Job(kind="math", private={"completion": "$2$", "target": "2"})
    try:
        monkeypatch.setattr("workers.sandbox.START_SECONDS", 0.01)
        with pytest.raises(TimeoutError):
            process.run(job)
        monkeypatch.undo()
        assert process.run(job)["score"] == 1.0
    finally:
        process.stop()


def test_a_process_whose_owner_has_gone_ends(sandbox: Sandbox) -> None:
    process = Process(1)
    process.begin()
    assert process.process is not None
    assert process.channel is not None
    process.channel.close()
    assert process.process.wait(timeout=30) == 0
    process.channel = None
    process.stop()


def test_without_walls_code_is_not_run_unless_somebody_says_that_limits_will_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HONE_SANDBOX", "limits")
    process = Process(2)
    try:
        job = make_job(ADD, "assert add(1, 2) == 3")
        assert process.run(job)["score"] == 1.0
        assert process.missing == "HONE_SANDBOX=limits"
        assert process.run(make_job(BOMBS["children that leave"], "assert True", seconds=1.0)) == {
            "late": True
        }
        monkeypatch.delenv("HONE_SANDBOX")
        with pytest.raises(InvalidInput, match="cannot shut in an answer's code"):
            process.run(job)
    finally:
        process.stop()
