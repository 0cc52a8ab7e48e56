// Pairs under review by keyboard: j and k move, a accepts, r rejects, e edits.

const list = document.querySelector("[data-review]");

function pairs() {
    return [...list.querySelectorAll("[data-pair]")];
}

function current() {
    return document.activeElement.closest?.("[data-pair]");
}

function move(steps) {
    const all = pairs();
    const place = all.indexOf(current());
    const next = all[place < 0 ? 0 : Math.min(Math.max(place + steps, 0), all.length - 1)];
    next?.focus();
    next?.scrollIntoView({ block: "nearest" });
}

function edit(pair) {
    const editor = pair.querySelector("[data-editor]");
    if (!editor) return;
    editor.hidden = !editor.hidden;
    pair.querySelector("[data-shown]").hidden = !editor.hidden;
    (editor.hidden ? pair : editor.querySelector("textarea")).focus();
}

function decide(pair, key) {
    const button = pair.querySelector(`[data-key="${key}"]`);
    if (!button) return;
    move(1);
    button.click();
}

list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-edit]");
    if (button) edit(button.closest("[data-pair]"));
});

// The last one is replaced while it has the focus.
document.body.addEventListener("htmx:afterSwap", (event) => {
    const pair = event.detail.elt?.closest?.("[data-pair]");
    if (pair && document.activeElement === document.body) pair.focus();
});

document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && current()?.querySelector("[data-editor]:not([hidden])")) {
        edit(current());
        return;
    }
    if (event.target.closest("input, textarea, select, dialog[open]")) return;
    if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if ("are".includes(event.key) && current()) {
        if (event.key === "e") edit(current());
        else decide(current(), event.key);
    } else return;
    event.preventDefault();
});
