"""Who there is: users, the projects they work in, and the keys their programs carry."""

from dataclasses import dataclass
from typing import ClassVar, Self, TypeVar

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.timezone import now

from webapp.core import ids

USER_URN = "hone:user:"


class User(AbstractUser):
    """A person. Signs in by password or by a one-time link."""

    @property
    def urn(self) -> str:
        """What the Tinker dialect calls them."""
        return f"{USER_URN}{self.pk}"


class Role(models.TextChoices):
    VIEWER = "viewer"
    MEMBER = "member"
    OWNER = "owner"


class ProjectQuerySet(models.QuerySet["Project"]):
    """Projects."""

    def with_share_for(self, actor: "Actor") -> Self:
        """Whose share of the workers an actor may see: an operator those of all projects."""
        return self if actor.may_administer else self.filter(pk=actor.project.pk)


class Project(models.Model):
    """What every run, dataset, checkpoint and key belongs to."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_project_id)
    name = models.CharField(max_length=80)
    share = models.FloatField(default=1.0)  # of a worker's tokens, beside other projects'
    disk_budget_bytes = models.BigIntegerField(null=True)  # of its files; null: the disk's own end
    created_at = models.DateTimeField(default=now)
    members: "models.ManyToManyField[User, Membership]" = models.ManyToManyField(
        User, through="Membership", related_name="projects"
    )

    objects = ProjectQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at"]
        constraints: ClassVar = [
            models.CheckConstraint(condition=models.Q(share__gt=0), name="share_is_positive")
        ]

    def __str__(self) -> str:
        return self.name


class Membership(models.Model):
    """What a user may do in a project."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=10, choices=Role.choices, default=Role.MEMBER)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "user"], name="one_membership_a_project")
        ]

    def __str__(self) -> str:
        return f"{self.user} in {self.project}: {self.role}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Actor:
    """Who asks, and in which project: `project` is where new things go and what lists show.

    A key sees its own project alone; a person in the browser sees every project of theirs.
    """

    user: User
    project: Project
    role: str
    key_id: str = ""  # of the key that a program carries; empty: a person

    @property
    def is_key(self) -> bool:
        return bool(self.key_id)

    @property
    def may_administer(self) -> bool:
        """What all projects share: base models, workers and their time."""
        return self.role == Role.OWNER and self.user.is_staff

    @property
    def can_write(self) -> bool:
        return self.role in (Role.MEMBER, Role.OWNER)


M = TypeVar("M", bound=models.Model)


class OwnedQuerySet(models.QuerySet[M]):
    """Rows that belong to a project. Every fetch by a user starts at `visible_to`."""

    def visible_to(self, actor: Actor) -> Self:
        if actor.is_key:
            return self.filter(project=actor.project)
        return self.filter(project__memberships__user=actor.user)

    def in_project(self, actor: Actor) -> Self:
        """What a list shows: the actor's current project only."""
        return self.visible_to(actor).filter(project=actor.project)


class ApiKeyQuerySet(OwnedQuerySet["ApiKey"]):
    """Keys; the secret itself is never stored."""


class ApiKey(models.Model):
    """A program's way in. Shown once; stored as a SHA-256 digest of the whole key."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_key_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="keys")
    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="keys")
    name = models.CharField(max_length=80)
    hint = models.CharField(max_length=16)  # the first characters, to tell keys apart in a list
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(default=now)
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)

    objects = ApiKeyQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["-created_at"]

    def __str__(self) -> str:
        return f"{self.name} ({self.hint})"


class SignInLink(models.Model):
    """A link that signs its user in once; stored as a digest."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sign_in_links")
    digest = models.CharField(max_length=64, unique=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"link for {self.user}"


class IdempotentRequest(models.Model):
    """The answer to a create that carried an `Idempotency-Key`; a repeat gets it again."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    key = models.CharField(max_length=200)
    digest = models.CharField(max_length=64)  # of method, path and body
    status = models.PositiveSmallIntegerField(default=0)  # 0: the first request is still running
    response = models.JSONField(null=True)
    created_at = models.DateTimeField(default=now)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["project", "key"], name="one_answer_a_key")
        ]

    def __str__(self) -> str:
        return self.key


class AuditEntry(models.Model):
    """Somebody changed what exists in a project, or who may do what with it."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="+")
    user = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    event = models.CharField(max_length=40)  # <resource>_<what was done>
    details = models.JSONField(default=dict)
    at = models.DateTimeField(default=now)

    class Meta:
        ordering: ClassVar = ["at", "id"]
        indexes: ClassVar = [models.Index(fields=["project", "at"], name="entries_of_a_project")]

    def __str__(self) -> str:
        return f"{self.at} {self.event}"


class WebhookQuerySet(OwnedQuerySet["Webhook"]):
    """Webhooks of a project."""


class Webhook(models.Model):
    """An address that is told what happens in a project."""

    id = models.CharField(primary_key=True, max_length=40, default=ids.make_webhook_id)
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="webhooks")
    url = models.CharField(max_length=500)
    secret = models.CharField(max_length=64)  # signs each body, so that its reader knows the sender
    events = models.JSONField(default=list)  # diagnostics' keys, run.failed ...; empty: all
    is_active = models.BooleanField(default=True)
    created_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(default=now)

    objects = WebhookQuerySet.as_manager()

    class Meta:
        ordering: ClassVar = ["created_at"]

    def __str__(self) -> str:
        return self.url


class Delivery(models.Model):
    """One event on its way to one webhook; it is tried again until it is taken or too old."""

    class Status(models.TextChoices):
        WAITING = "waiting"
        TAKEN = "taken"
        GIVEN_UP = "given_up"

    webhook = models.ForeignKey(Webhook, on_delete=models.CASCADE, related_name="deliveries")
    event = models.CharField(max_length=60)
    key = models.CharField(max_length=120)  # of what it speaks: nothing is told twice
    body = models.JSONField()
    status = models.CharField(max_length=10, choices=Status.choices, default=Status.WAITING)
    tries = models.PositiveSmallIntegerField(default=0)
    error = models.TextField(blank=True)
    next_at = models.DateTimeField(default=now)
    created_at = models.DateTimeField(default=now)
    ended_at = models.DateTimeField(null=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["webhook", "key"], name="one_delivery_an_event")
        ]

    def __str__(self) -> str:
        return f"{self.event} to {self.webhook_id}"
