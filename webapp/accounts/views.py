"""Pages of sign-in, projects and settings."""

from django.conf import settings
from django.contrib import messages
from django.contrib.auth import login, logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.forms import AuthenticationForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts import services
from webapp.accounts.forms import KeyForm, MemberForm, ProjectForm, ShareForm
from webapp.accounts.middleware import PROJECT_IN_SESSION, ActorRequest
from webapp.accounts.models import ApiKey, Membership, Project, Role
from webapp.accounts.permissions import check_can_write
from webapp.core.errors import NotFound, UserError
from webapp.core.forms import show_errors

PASSWORD_BACKEND = "django.contrib.auth.backends.ModelBackend"


@never_cache
@require_http_methods(["GET", "POST"])
def sign_in(request: HttpRequest) -> HttpResponse:
    form = AuthenticationForm(request, data=request.POST or None)
    if request.method == "POST" and form.is_valid():
        login(request, form.get_user())
        return redirect(find_destination(request))
    context = {"form": form, "next": request.GET.get("next", "")}
    return render(request, "accounts/sign_in.html", context, status=400 if form.errors else 200)


def find_destination(request: HttpRequest) -> str:
    """Where the person wanted to go; another site's address is not followed."""
    wanted = request.POST.get("next") or request.GET.get("next", "")
    if url_has_allowed_host_and_scheme(wanted, allowed_hosts={request.get_host()}):
        return wanted
    return settings.LOGIN_REDIRECT_URL


@never_cache
@require_http_methods(["GET", "POST"])
def sign_in_by_link(request: HttpRequest, secret: str) -> HttpResponse:
    """A link pressed twice in one browser opens the product; elsewhere it is used up."""
    if request.user.is_authenticated:
        return redirect("overview")
    user = services.use_sign_in_link(secret)
    login(request, user, backend=PASSWORD_BACKEND)
    return redirect("overview")


@require_POST
def sign_out(request: HttpRequest) -> HttpResponse:
    logout(request)
    return redirect("sign-in")


@login_required
@require_POST
def switch_project(request: ActorRequest) -> HttpResponse:
    wanted = request.POST.get("project", "")
    if not Project.objects.filter(pk=wanted, memberships__user=request.user).exists():
        raise NotFound("There is no such project.")
    request.session[PROJECT_IN_SESSION] = wanted
    return redirect("overview")


@login_required
@require_http_methods(["GET", "POST"])
def create_project(request: ActorRequest) -> HttpResponse:
    form = ProjectForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            project = services.create_project(user=request.user, name=form.cleaned_data["name"])
            request.session[PROJECT_IN_SESSION] = project.pk
            messages.success(request, f"You are now working in {project}.")
            return redirect("overview")
    status = 400 if form.errors else 200
    return render(request, "accounts/project_new.html", {"form": form}, status=status)


@login_required
@require_POST
def change_share(request: ActorRequest) -> HttpResponse:
    form = ShareForm(request.POST)
    if not form.is_valid():
        raise UserError("A share is a number.", field="share")
    project = services.change_share(
        actor=request.actor,
        project_id=form.cleaned_data["project"],
        share=form.cleaned_data["share"],
    )
    messages.success(request, f"The share of {project} is {project.share:g} now.")
    return redirect("settings-workers")


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def list_keys(request: ActorRequest) -> HttpResponse:
    """The answer to a create is the one page that ever shows the key."""
    form, secret = KeyForm(request.POST or None), ""
    if request.method == "POST":
        check_can_write(request.actor)
        if form.is_valid():
            _, secret = services.create_key(actor=request.actor, name=form.cleaned_data["name"])
            form = KeyForm()
    url = request.build_absolute_uri("/").rstrip("/")
    context = {
        "tab": "keys",
        "form": form,
        "keys": ApiKey.objects.in_project(request.actor).select_related("user"),
        "secret": secret,
        "lines": f"export TINKER_BASE_URL={url}\nexport TINKER_API_KEY={secret or 'tml-...'}",
        "fireworks_lines": (
            f"export FIREWORKS_BASE_URL={url}\n"
            f"export FIREWORKS_API_KEY={services.spell_for_fireworks(secret or 'tml-...')}"
        ),
    }
    return render(request, "accounts/keys.html", context, status=400 if form.errors else 200)


@login_required
@require_POST
def revoke_key(request: ActorRequest, key_id: str) -> HttpResponse:
    services.revoke_key(actor=request.actor, key_id=key_id)
    messages.success(request, "The key is revoked: the next request with it is refused.")
    return redirect("settings")


@login_required
@require_http_methods(["GET", "POST"])
def list_members(request: ActorRequest) -> HttpResponse:
    form = MemberForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            member = services.add_member(actor=request.actor, **form.cleaned_data)
            messages.success(request, f"{member.user} is now a {member.role} of this project.")
            return redirect("settings-members")
    members = Membership.objects.filter(project=request.actor.project).select_related("user")
    context = {
        "tab": "members",
        "form": form,
        "members": members.order_by("user__username"),
        "is_owner": request.actor.role == Role.OWNER,
    }
    return render(request, "accounts/members.html", context, status=400 if form.errors else 200)
