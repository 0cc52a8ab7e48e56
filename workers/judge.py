"""Judges of a project: asked through the serving path, by the name of what is served."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from typing import Any

from training.errors import InvalidInput
from training.recipes.grading_judge import Heard
from webapp.accounts.models import Actor, Membership, Project, Role, User
from webapp.core.errors import UserError
from webapp.deployments.calls import submit_call
from webapp.deployments.models import SamplingCall
from webapp.openai.targets import Target, find_target
from webapp.runs.models import Run
from workers.remote import Ended, OperationFailed, RemoteFuture, Waiter

Status = SamplingCall.Status
Question = Sequence[Mapping[str, Any]]  # messages
KEY = "judge"
LIVE = (Status.QUEUED, Status.RUNNING)
FAILED = (Status.FAILED, Status.CANCELLED, Status.LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteJudge:
    """Greedy: the same weights judge the same answer the same. What was judged is not asked again,
    as long as its call is remembered.
    """

    project: Project
    target: Target
    run: Run | None
    waiter: Waiter
    keep_going: Callable[[], None]

    def ask_all(
        self, questions: Sequence[Question], *, max_tokens: int
    ) -> list[Callable[[], Heard]]:
        return [partial(self._hear, self._ask(each, max_tokens)) for each in questions]

    def _ask(self, question: Question, max_tokens: int) -> SamplingCall:
        payload = {
            "messages": list(question),
            "num_samples": 1,
            "params": {"max_tokens": max_tokens, "temperature": 0.0, "seed": 0},
            "prompt_logprobs": False,
        }
        key = self._make_key(payload)
        # One that failed is asked again.
        SamplingCall.objects.filter(replay_key=key, status__in=FAILED).update(replay_key=None)
        return SamplingCall.objects.filter(replay_key=key).first() or submit_call(
            project=self.project,
            purpose=SamplingCall.Purpose.JUDGE,
            base_model=self.target.base_model,
            checkpoint=self.target.checkpoint,
            payload=payload,
            about={"judge": self.name},
            run=self.run,
            replay_key=key,
        )

    @property
    def name(self) -> str:
        return self.target.checkpoint.pk if self.target.checkpoint else self.target.base_model.name

    def _make_key(self, payload: Mapping[str, Any]) -> str:
        weights = self.target.checkpoint or self.target.base_model
        parts = ["judge", self.project.pk, str(weights.pk), weights.digest, payload]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _hear(self, call: SamplingCall) -> Heard:
        future = RemoteFuture(
            request_id=call.request_id,
            look=lambda: _look(call),
            read=_read_text,
            waiter=self.waiter,
            keep_going=self.keep_going,
        )
        try:
            return Heard(text=future.result(), digest=self._find_digest(call))
        except OperationFailed as error:
            raise InvalidInput(f"the judge did not answer: {error}") from error

    def _find_digest(self, call: SamplingCall) -> str:
        """As the load of these weights proved it, where they were loaded."""
        weights = self.target.checkpoint or self.target.base_model
        return call.hot_load.digest if call.hot_load else weights.digest


def open_judge(
    name: str,
    *,
    project: Project,
    run: Run | None = None,
    waiter: Waiter,
    keep_going: Callable[[], None],
) -> RemoteJudge:
    """`name` as in the project: a deployment, a checkpoint or a base model. As a key of the project
    sees it: what else its owner may see is not everybody's here.
    """
    try:
        target = find_target(replace(act_for(project), key_id=KEY), name)
    except UserError as error:
        raise InvalidInput(f"the judge {name!r:.80}: {error}") from error
    return RemoteJudge(
        project=project, target=target, run=run, waiter=waiter, keep_going=keep_going
    )


def act_for(project: Project, user: User | None = None) -> Actor:
    """As this user, while there is one, or else the project's owner sees it."""
    members = Membership.objects.filter(project=project).select_related("user")
    own = members.filter(user=user).first() if user else None
    found = own or members.filter(role=Role.OWNER).order_by("pk").first()
    if found is None:
        raise InvalidInput(f"the project {project} has no owner")
    return Actor(user=found.user, project=project, role=found.role)


def _look(call: SamplingCall) -> Ended | None:
    if call.status in LIVE:
        call.refresh_from_db(fields=["status", "result", "error", "error_category", "hot_load"])
    if call.status in LIVE:
        return None
    failed = call.status != Status.DONE
    error = (call.error or "it was cancelled") if failed else ""
    return Ended(result=bytes(call.result or b""), error=error, category=call.error_category)


def _read_text(body: bytes) -> str:
    return str(json.loads(body)["sequences"][0]["text"])
