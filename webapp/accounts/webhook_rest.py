"""REST: a project's webhooks and what was sent to them. Owners only."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts import webhooks
from webapp.accounts.authentication import actor_of
from webapp.accounts.models import Delivery, Webhook

SHOWN = 100


class WebhookOutput(serializers.ModelSerializer[Webhook]):
    address = serializers.SerializerMethodField(
        help_text="Where it leads. The whole of it is not shown: it may be a chat's own secret."
    )

    class Meta:
        model = Webhook
        fields = ("id", "address", "events", "is_active", "created_at")

    def get_address(self, webhook: Webhook) -> str:
        return webhooks.mask(webhook.url)


class NewWebhookOutput(WebhookOutput):
    secret = serializers.CharField(help_text="Signs each body. It is shown this once.")

    class Meta(WebhookOutput.Meta):
        fields = (*WebhookOutput.Meta.fields, "secret")  # type: ignore[assignment]


class WebhookInput(serializers.Serializer[Webhook]):
    url = serializers.CharField(help_text="http or https.")
    events = serializers.ListField(
        child=serializers.CharField(),
        required=False,
        default=list,
        max_length=50,
        help_text=f"Some of {', '.join(webhooks.EVENTS)}, or a single diagnostic's "
        "diagnostic.<key>; empty: all.",
    )


class WebhookChange(serializers.Serializer[Webhook]):
    is_active = serializers.BooleanField()


class DeliveryOutput(serializers.ModelSerializer[Delivery]):
    class Meta:
        model = Delivery
        fields = (
            *("id", "event", "key", "status", "tries", "error", "body"),
            *("next_at", "created_at", "ended_at"),
        )


class WebhookList(APIView):
    """The addresses that are told what happens in this project."""

    @extend_schema(responses=WebhookOutput(many=True))
    def get(self, request: Request) -> Response:
        rows = webhooks.list_webhooks(actor_of(request))
        return Response(WebhookOutput(rows, many=True).data)

    @extend_schema(request=WebhookInput, responses={201: NewWebhookOutput})
    def post(self, request: Request) -> Response:
        """Make one. It is not repeatable with an Idempotency-Key: its secret is shown this once."""
        data = WebhookInput(data=request.data)
        data.is_valid(raise_exception=True)
        row, secret = webhooks.create_webhook(actor=actor_of(request), **data.validated_data)
        answer: dict[str, Any] = {**WebhookOutput(row).data, "secret": secret}
        return Response(answer, status=status.HTTP_201_CREATED)


class WebhookDetail(APIView):
    """One webhook."""

    @extend_schema(request=WebhookChange, responses=WebhookOutput)
    def patch(self, request: Request, webhook_id: str) -> Response:
        """Switch it on or off. What waits for one that is switched off is given up."""
        data = WebhookChange(data=request.data)
        data.is_valid(raise_exception=True)
        actor = actor_of(request)
        webhook = webhooks.find_webhook(actor, webhook_id)
        webhooks.switch_webhook(actor=actor, webhook=webhook, **data.validated_data)
        return Response(WebhookOutput(webhook).data)

    @extend_schema(responses={204: None})
    def delete(self, request: Request, webhook_id: str) -> Response:
        """Delete it, with its deliveries."""
        actor = actor_of(request)
        webhook = webhooks.find_webhook(actor, webhook_id)
        webhooks.delete_webhook(actor=actor, webhook=webhook)
        return Response(status=status.HTTP_204_NO_CONTENT)


class WebhookTest(APIView):
    """Whether it can be reached."""

    @extend_schema(request=None, responses={202: None})
    def post(self, request: Request, webhook_id: str) -> Response:
        """Send it a test event; the answer appears among its deliveries."""
        actor = actor_of(request)
        webhooks.send_test(actor=actor, webhook=webhooks.find_webhook(actor, webhook_id))
        return Response(status=status.HTTP_202_ACCEPTED)


class WebhookDeliveries(APIView):
    """What was sent to it, and what it answered."""

    @extend_schema(responses=DeliveryOutput(many=True))
    def get(self, request: Request, webhook_id: str) -> Response:
        """The newest 100, newest first."""
        webhook = webhooks.find_webhook(actor_of(request), webhook_id)
        return Response(DeliveryOutput(webhook.deliveries.all()[:SHOWN], many=True).data)
