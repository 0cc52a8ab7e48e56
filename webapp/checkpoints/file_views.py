"""Files of checkpoints, for whoever holds a link: what programs fetch without a key.

Outside /api/, where a long download would keep one of the few threads from everybody else.
"""

from django.http import HttpRequest, HttpResponseBase, JsonResponse
from django.views.decorators.http import require_safe

from webapp.checkpoints import links
from webapp.checkpoints.downloads import find_files, stream_file, stream_flat_archive
from webapp.checkpoints.models import Checkpoint
from webapp.core.errors import UserError


@require_safe
def fetch_file(request: HttpRequest, checkpoint_id: str, file: str) -> HttpResponseBase:
    """Names are compared with what lies in the folder, never joined to it."""
    refusal = links.find_refusal(request.GET.get("token", ""), checkpoint_id, file)
    if refusal:
        return JsonResponse({"detail": refusal}, status=403)
    rows = Checkpoint.objects.select_related("run", "base_model")
    checkpoint = rows.filter(pk=checkpoint_id).first()
    try:
        files = {path.name: path for path in find_files(checkpoint)} if checkpoint else {}
    except UserError as error:
        return JsonResponse({"detail": str(error)}, status=404)
    if checkpoint is not None and file == links.ARCHIVE:
        return stream_flat_archive(checkpoint)
    if file not in files:
        return JsonResponse({"detail": f"There is no file {file[:100]}."}, status=404)
    return stream_file(files[file])
