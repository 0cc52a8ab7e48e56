"""Users, projects and keys in Django's admin, for operators."""

from django.contrib import admin
from django.contrib.auth.admin import UserAdmin

from webapp.accounts.models import ApiKey, Membership, Project, User

admin.site.register(User, UserAdmin)


class MembershipInline(admin.TabularInline):  # type: ignore[type-arg] # not generic at run time
    model = Membership
    extra = 0


@admin.register(Project)
class ProjectAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    list_display = ("name", "id", "share", "created_at")
    search_fields = ("name", "id")
    readonly_fields = ("share",)  # Settings changes it, and the audit log keeps that
    inlines = (MembershipInline,)


@admin.register(ApiKey)
class ApiKeyAdmin(admin.ModelAdmin):  # type: ignore[type-arg] # not generic at run time
    """Keys are made in the product, where the secret is shown; here they are only looked at."""

    list_display = ("name", "hint", "project", "user", "created_at", "last_used_at", "revoked_at")
    list_select_related = ("project", "user")
    readonly_fields = ("digest", "hint")
