"""Sign-in, projects, keys and members."""

from django.urls import path

from webapp.accounts import views, webhook_views

urlpatterns = [
    path("sign-in/", views.sign_in, name="sign-in"),
    path("sign-in/<str:secret>/", views.sign_in_by_link, name="sign-in-link"),
    path("sign-out/", views.sign_out, name="sign-out"),
    path("projects/switch/", views.switch_project, name="project-switch"),
    path("projects/new/", views.create_project, name="project-new"),
    path("projects/share/", views.change_share, name="project-share"),
    path("settings/", views.list_keys, name="settings"),
    path("settings/keys/<str:key_id>/revoke/", views.revoke_key, name="key-revoke"),
    path("settings/webhooks/", webhook_views.show_webhooks, name="settings-webhooks"),
    path(
        "settings/webhooks/<str:webhook_id>/<str:action>/",
        webhook_views.act_on_webhook,
        name="webhook-act",
    ),
    path("settings/members/", views.list_members, name="settings-members"),
]
