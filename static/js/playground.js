// The playground's keys and views: Ctrl+Enter sends, answers show as text or as tokens.

const form = document.querySelector("[data-playground]");
const prompt = form?.querySelector("textarea[name=prompt]");

prompt?.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        form.requestSubmit();
    }
});

form?.addEventListener("submit", () => {
    form.querySelector("button.primary").disabled = true;
});

// The browser's Back restores the page as it was left, with the button still off.
window.addEventListener("pageshow", () => {
    form?.querySelector("button.primary")?.removeAttribute("disabled");
});

form?.addEventListener("click", (event) => {
    const button = event.target.closest("[data-tokens]");
    if (!button) return;
    const isOn = button.closest(".answer").toggleAttribute("data-as-tokens");
    button.setAttribute("aria-pressed", String(isOn));
});

for (const turns of form?.querySelectorAll("[data-turns]") ?? []) {
    turns.scrollTop = turns.scrollHeight;
}
if (form?.querySelector(".turn")) prompt?.focus();
