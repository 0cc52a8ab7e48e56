"""Suites that are tasks of another program: frozen as the others are."""

from typing import Any

from django.db import IntegrityError, transaction

from webapp.accounts.models import Actor, Role
from webapp.core.dispatch import BUILD_SUITE, send_task
from webapp.core.errors import UserError
from webapp.core.events import project_group, publish
from webapp.datasets.models import DatasetVersion
from webapp.evals.checks import check_task, check_version
from webapp.evals.models import EvalSuite


def create_task_suite(
    *,
    actor: Actor,
    name: str,
    task: str,
    rows: str = "",
    dataset_version: DatasetVersion | None = None,
    is_chat: bool = False,
) -> EvalSuite:
    """Freeze a task of lm-eval and its rows: given as JSON lines, or every row of a version.

    Its templates run in lm-eval itself, as code would: they are an owner's to give.
    """
    if actor.role != Role.OWNER:
        raise UserError("Only an owner of the project may add a task of lm-eval.", field="task")
    name = name.strip()
    if not name:
        raise UserError("A suite needs a name.", field="name")
    spec: dict[str, Any] = {"rows": rows} if rows else {}
    check_version(dataset_version, spec)
    found = check_task(task, rows)
    try:
        with transaction.atomic():
            suite = EvalSuite.objects.create(
                project=actor.project,
                name=name,
                kind=EvalSuite.Kind.LM_EVAL,
                dataset_version=dataset_version,
                spec={"source": "lm_eval", "task": task, "is_chat": is_chat, **spec},
                graders=[{"name": metric} for metric in found.metrics],
                sampling=found.sampling,
            )
    except IntegrityError:
        raise UserError(f"There is a suite named {name} already.", field="name") from None
    send_task(BUILD_SUITE, suite.pk)
    publish(project_group(suite.project_id), "evals")
    return suite
