"""Forms of sign-in, projects, keys and members."""

from django import forms

from webapp.accounts.models import Role


class ProjectForm(forms.Form):
    name = forms.CharField(
        max_length=80,
        help_text="Runs, datasets and keys belong to a project; its members see all of them.",
    )


class ShareForm(forms.Form):
    project = forms.CharField(max_length=40)
    share = forms.FloatField()


class KeyForm(forms.Form):
    name = forms.CharField(
        max_length=80, help_text="Where it will be used, to tell it from others when you revoke it."
    )


class MemberForm(forms.Form):
    username = forms.CharField(max_length=150)
    role = forms.ChoiceField(
        choices=[
            (Role.VIEWER, "Viewer: reads"),
            (Role.MEMBER, "Member: reads and changes"),
            (Role.OWNER, "Owner: also adds members"),
        ],
        initial=Role.MEMBER,
    )
