"""The settings page of webhooks: made, tried, switched and deleted by owners."""

from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_POST

from webapp.accounts import webhooks
from webapp.accounts.middleware import ActorRequest
from webapp.accounts.models import Delivery, Role, Webhook
from webapp.core.errors import NotFound
from webapp.core.forms import show_errors

SHOWN_DELIVERIES = 30


class WebhookForm(forms.Form):
    url = forms.CharField(
        label="Address",
        max_length=webhooks.LONGEST_URL,
        help_text="Gets one JSON body a POST. Its field text is a sentence: an incoming webhook of"
        " Slack or Mattermost shows it as it is.",
    )
    events = forms.MultipleChoiceField(
        choices=[(name, f"{name}: {told}") for name, told in webhooks.EVENTS.items()],
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None chosen: all of them, and those to come.",
    )


@login_required
@never_cache
@require_http_methods(["GET", "POST"])
def show_webhooks(request: ActorRequest) -> HttpResponse:
    """The answer to a create is the one page that ever shows the secret."""
    form, secret = WebhookForm(request.POST or None), ""
    is_owner = request.actor.role == Role.OWNER
    if request.method == "POST":
        webhooks.check_owner(request.actor)
    if request.method == "POST" and form.is_valid():
        with show_errors(form):
            _, secret = webhooks.create_webhook(actor=request.actor, **form.cleaned_data)
            form = WebhookForm()
    context = {
        "tab": "webhooks",
        "form": form,
        "secret": secret,
        "is_owner": is_owner,
        **(read_list(request) if is_owner else {}),
    }
    return render(request, "accounts/webhooks.html", context, status=400 if form.errors else 200)


def read_list(request: ActorRequest) -> Mapping[str, Any]:
    rows = webhooks.list_webhooks(request.actor)
    newest = Delivery.objects.filter(webhook__in=rows).select_related("webhook")
    return {
        "webhooks": [{"row": each, "address": webhooks.mask(each.url)} for each in rows],
        "deliveries": [
            {"row": each, "address": webhooks.mask(each.webhook.url), "text": read_text(each)}
            for each in newest[:SHOWN_DELIVERIES]
        ],
    }


def read_text(delivery: Delivery) -> str:
    return str(delivery.body.get("text", ""))


def _test(request: ActorRequest, webhook: Webhook) -> str:
    webhooks.send_test(actor=request.actor, webhook=webhook)
    return "A test event is on its way: its answer appears below in a moment."


def _switch(request: ActorRequest, webhook: Webhook) -> str:
    is_active = not webhook.is_active
    webhooks.switch_webhook(actor=request.actor, webhook=webhook, is_active=is_active)
    return f"The webhook is switched {'on' if is_active else 'off'}."


def _delete(request: ActorRequest, webhook: Webhook) -> str:
    webhooks.delete_webhook(actor=request.actor, webhook=webhook)
    return "The webhook is deleted, with its deliveries."


ACTS = {"test": _test, "switch": _switch, "delete": _delete}


@login_required
@require_POST
def act_on_webhook(request: ActorRequest, webhook_id: str, action: str) -> HttpResponse:
    webhook = webhooks.find_webhook(request.actor, webhook_id)
    if action not in ACTS:
        raise NotFound("There is no such action.")
    messages.success(request, ACTS[action](request, webhook))
    return redirect("settings-webhooks")
