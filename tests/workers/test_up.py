"""What the launcher starts before Django's own processes."""

import os
from pathlib import Path

import pytest
from redis import AuthenticationError, BusyLoadingError, ConnectionError, Redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from workers.management.commands.up import Command
from workers.processes import Crew

PATIENCE = Retry(ConstantBackoff(0.05), 1200, (ConnectionError, BusyLoadingError))


def test_the_password_of_valkey_is_in_a_private_file_and_in_no_list_of_processes(
    tmp_path: Path,
) -> None:
    (tmp_path / "logs").mkdir()
    said: list[str] = []
    crew = Crew([], say=said.append)
    environment = {k: v for k, v in os.environ.items() if k != "REDIS_URL"}
    Command().start_valkey(crew, environment, tmp_path)
    try:
        url = environment["REDIS_URL"]
        with Redis.from_url(url, retry=PATIENCE) as known:
            assert known.ping()
            assert known.config_get("save") == {"save": ""}
        with (
            Redis(port=known.connection_pool.connection_kwargs["port"]) as unknown,
            pytest.raises(AuthenticationError),
        ):
            unknown.ping()
        password = url.partition("//:")[2].partition("@")[0]
        assert password not in " ".join(crew.processes[0].argv)
        assert (tmp_path / "valkey.conf").stat().st_mode & 0o777 == 0o600
    finally:
        crew.end()
