"""A good answer becomes a row of a dataset, to be trained on."""

from webapp.accounts.models import Actor
from webapp.core.errors import UserError
from webapp.datasets.models import DatasetVersion
from webapp.datasets.services import append_row
from webapp.deployments.conversation import read_answer, write_row
from webapp.deployments.models import SamplingCall


def keep_answer(*, actor: Actor, call: SamplingCall, name: str) -> DatasetVersion:
    """The conversation up to this answer, as the last row of a new version of this dataset."""
    answer = read_answer(call)
    if not answer.text.strip():
        raise UserError("There is no answer to keep here.")
    version = append_row(actor=actor, name=name, row=write_row(answer))
    call.about = call.about | {"kept": version.pk}
    SamplingCall.objects.filter(pk=call.pk).update(about=call.about)
    return version
