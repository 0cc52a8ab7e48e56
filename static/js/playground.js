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

// The newest turn begins at the top of its pane, so that a long answer is read from its start.
function showNewest(turns) {
    const newest = turns.querySelector(".turn:last-child");
    if (newest) turns.scrollTop = newest.offsetTop - turns.offsetTop - 16;
}

for (const turns of form?.querySelectorAll("[data-turns]") ?? []) showNewest(turns);

document.addEventListener("htmx:afterSettle", (event) => {
    const turns = event.target.closest?.("[data-turns]");
    if (turns && event.target.closest(".turn:last-child")) showNewest(turns);
});

if (form?.querySelector(".turn")) prompt?.focus({ preventScroll: true });
