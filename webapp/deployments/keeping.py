"""What stays of an answer: a good one as a row of a dataset, a stopped one as far as it came."""

from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import append_row
from webapp.deployments.calls import cancel_call
from webapp.deployments.conversation import read_answer, write_row
from webapp.deployments.models import SamplingCall


def keep_answer(*, actor: Actor, call: SamplingCall, name: str) -> DatasetVersion:
    """The conversation up to this answer, as the last row of a new version of this dataset."""
    answer = read_answer(call)
    if not (answer.is_done and answer.text.strip()):
        raise UserError("There is no answer to keep here.")
    version = append_row(actor=actor, name=name, row=write_row(answer))
    call.about = call.about | {"kept": version.pk}
    SamplingCall.objects.filter(pk=call.pk).update(about=call.about)
    return version


def stop_answer(*, call: SamplingCall, said: str) -> None:
    """`said`: what its readers have seen. One that has ended meanwhile stays whole."""
    if cancel_call(call) and said:
        call.about = call.about | {"said": said}
        SamplingCall.objects.filter(pk=call.pk).update(about=call.about)
    call.refresh_from_db()
