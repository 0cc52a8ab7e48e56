"""REST: who a key is, and the project's keys."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.generics import ListAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from webapp.accounts.authentication import actor_of
from webapp.accounts.models import ApiKey, ApiKeyQuerySet, Membership, Project, Role
from webapp.accounts.services import add_member, change_share, create_key, revoke_key


class MeOutput(serializers.Serializer[Any]):
    user = serializers.CharField()
    project = serializers.CharField()
    project_name = serializers.CharField()
    role = serializers.CharField()


class Me(APIView):
    """Whose key this is, and for which project."""

    @extend_schema(responses=MeOutput)
    def get(self, request: Request) -> Response:
        actor = actor_of(request)
        answer = {
            "user": actor.user.username,
            "project": actor.project.id,
            "project_name": actor.project.name,
            "role": actor.role,
        }
        return Response(answer)


class ShareOutput(serializers.ModelSerializer[Project]):
    class Meta:
        model = Project
        fields = ("id", "name", "share")


class ShareInput(serializers.Serializer[Project]):
    share = serializers.FloatField(
        help_text="Its part of the tokens that the workers train, beside other projects'. "
        "A project with 2 gets twice what one with 1 gets, while both have work."
    )


class ShareList(APIView):
    """How the workers' tokens are shared: this project's part; for an operator, everybody's."""

    @extend_schema(responses=ShareOutput(many=True))
    def get(self, request: Request) -> Response:
        projects = Project.objects.with_share_for(actor_of(request))
        return Response(ShareOutput(projects, many=True).data)


class ShareDetail(APIView):
    """One project's share."""

    @extend_schema(request=ShareInput, responses=ShareOutput)
    def put(self, request: Request, project_id: str) -> Response:
        """Change it, within about ten seconds. Operators of this installation only."""
        data = ShareInput(data=request.data)
        data.is_valid(raise_exception=True)
        project = change_share(
            actor=actor_of(request), project_id=project_id, **data.validated_data
        )
        return Response(ShareOutput(project).data)


class MemberOutput(serializers.ModelSerializer[Membership]):
    username = serializers.CharField(source="user.username", read_only=True)

    class Meta:
        model = Membership
        fields = ("username", "role")


class MemberInput(serializers.Serializer[Membership]):
    username = serializers.CharField()
    role = serializers.ChoiceField(Role.choices, default=Role.MEMBER)


class MemberList(APIView):
    """Who works in this project."""

    @extend_schema(responses=MemberOutput(many=True))
    def get(self, request: Request) -> Response:
        members = actor_of(request).project.memberships.select_related("user").order_by("pk")
        return Response(MemberOutput(members, many=True).data)

    @extend_schema(request=MemberInput, responses={201: MemberOutput})
    def post(self, request: Request) -> Response:
        """Add a user of this installation. Owners only."""
        data = MemberInput(data=request.data)
        data.is_valid(raise_exception=True)
        member = add_member(actor=actor_of(request), **data.validated_data)
        return Response(MemberOutput(member).data, status=status.HTTP_201_CREATED)


class KeyOutput(serializers.ModelSerializer[ApiKey]):
    class Meta:
        model = ApiKey
        fields = ("id", "name", "hint", "created_at", "last_used_at", "revoked_at")


class NewKeyOutput(KeyOutput):
    key = serializers.CharField(help_text="The key itself. It is shown this once.")

    class Meta(KeyOutput.Meta):
        fields = (*KeyOutput.Meta.fields, "key")  # type: ignore[assignment]


class KeyInput(serializers.Serializer[ApiKey]):
    name = serializers.CharField(max_length=80)


class KeyList(ListAPIView[ApiKey]):
    """The keys of this project."""

    serializer_class = KeyOutput
    queryset = ApiKey.objects.all()

    def get_queryset(self) -> ApiKeyQuerySet:
        return ApiKey.objects.visible_to(actor_of(self.request))

    @extend_schema(request=KeyInput, responses={201: NewKeyOutput})
    def post(self, request: Request) -> Response:
        """Make a key. It is not repeatable with an Idempotency-Key: its secret is never stored."""
        data = KeyInput(data=request.data)
        data.is_valid(raise_exception=True)
        key, secret = create_key(actor=actor_of(request), name=data.validated_data["name"])
        return Response({**KeyOutput(key).data, "key": secret}, status=status.HTTP_201_CREATED)


class KeyDetail(APIView):
    """One key."""

    @extend_schema(responses={204: None})
    def delete(self, request: Request, key_id: str) -> Response:
        """Revoke it. Programs that use it are refused from now on."""
        revoke_key(actor=actor_of(request), key_id=key_id)
        return Response(status=status.HTTP_204_NO_CONTENT)
