"""The form that offers a model directory."""

from django import forms


class BaseModelForm(forms.Form):
    path = forms.CharField(
        max_length=1000,
        label="Directory",
        help_text="On the server: config.json, .safetensors files and tokenizer.json.",
    )
    names = forms.CharField(
        widget=forms.Textarea(attrs={"rows": 2}),
        label="Names",
        help_text="One a line: the names clients may ask for, such as Qwen/Qwen3-8B.",
    )

    def clean_names(self) -> list[str]:
        text: str = self.cleaned_data["names"]
        return [line.strip() for line in text.splitlines() if line.strip()]
