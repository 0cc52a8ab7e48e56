// What every page can do by attribute: copy, dialogs, confirmation, theme, the rail, times that stay true.

const THEMES = ["system", "light", "dark"];

function setTheme(theme) {
    if (theme === "system") {
        localStorage.removeItem("hone-theme");
        delete document.documentElement.dataset.theme;
    } else {
        localStorage.setItem("hone-theme", theme);
        document.documentElement.dataset.theme = theme;
    }
    writeTheme();
    document.dispatchEvent(new CustomEvent("hone:theme"));
}

function writeTheme() {
    const theme = localStorage.getItem("hone-theme") || "system";
    for (const word of document.querySelectorAll("[data-theme-word]")) {
        word.textContent = `Theme: ${theme}`;
    }
    return theme;
}

async function copyText(button) {
    await navigator.clipboard.writeText(button.dataset.copy);
    const title = button.title;
    button.title = "Copied";
    button.setAttribute("aria-label", "Copied");
    button.classList.add("copied");
    setTimeout(() => {
        button.title = title;
        button.setAttribute("aria-label", title);
        button.classList.remove("copied");
    }, 1500);
}

// A button with data-confirm sends its form only after the dialog was answered.
function askFirst(button) {
    const dialog = document.getElementById("confirm");
    dialog.querySelector("#confirm-text").textContent = button.dataset.confirm;
    const yes = dialog.querySelector("[data-confirmed]");
    yes.textContent = button.textContent.trim() || "Yes";
    yes.onclick = () => {
        dialog.close();
        button.form.requestSubmit(withoutQuestion(button));
    };
    dialog.showModal();
}

function withoutQuestion(button) {
    button.dataset.confirmed = "1";
    return button;
}

const clicks = [
    ["[data-copy]", copyText],
    ["[data-dialog]", (button) => document.getElementById(button.dataset.dialog).showModal()],
    ["[data-close]", (button) => button.closest("dialog").close()],
    ["[data-dismiss]", (button) => button.closest(".message").remove()],
    ["[data-theme-toggle]", () => setTheme(THEMES[(THEMES.indexOf(writeTheme()) + 1) % THEMES.length])],
    ["[data-rail]", toggleRail],
];

function toggleRail(button) {
    const isOpen = document.getElementById("rail").toggleAttribute("data-open");
    button.setAttribute("aria-expanded", String(isOpen));
}

function closeWhatFloats(target) {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
        if (!menu.contains(target)) menu.open = false;
    }
    const rail = document.getElementById("rail");
    if (rail?.hasAttribute("data-open") && !rail.contains(target) && !target.closest("[data-rail]")) {
        rail.removeAttribute("data-open");
        document.querySelector("[data-rail]").setAttribute("aria-expanded", "false");
    }
    if (target instanceof HTMLDialogElement) target.close(); // a click on its backdrop
}

document.addEventListener("click", (event) => {
    const asks = event.target.closest("button[data-confirm]");
    if (asks && !asks.dataset.confirmed) {
        event.preventDefault();
        askFirst(asks);
        return;
    }
    for (const [selector, act] of clicks) {
        const found = event.target.closest(selector);
        if (found) act(found);
    }
    closeWhatFloats(event.target);
});

document.addEventListener("change", (event) => {
    if (event.target.matches("[data-submit]")) event.target.form.requestSubmit();
});

document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.key === "/" && !isTyping && !event.metaKey && !event.ctrlKey) {
        const filter = document.querySelector("[data-filter]");
        if (filter) {
            event.preventDefault();
            filter.focus();
            filter.select();
        }
    }
    if (event.key === "Escape") {
        closeWhatFloats(document.body);
        if (event.target.matches?.("[data-filter]")) event.target.blur();
    }
});

// The same words as the `ago` filter of the server.
function describeAge(seconds) {
    for (const [length, unit] of [[86400, "d"], [3600, "h"], [60, "min"]]) {
        if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
    }
    return "just now";
}

function refreshTimes() {
    for (const time of document.querySelectorAll("time[data-ago]")) {
        const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
        if (seconds < 30 * 86400) time.textContent = describeAge(seconds);
    }
}

setInterval(refreshTimes, 20000);
document.addEventListener("visibilitychange", () => document.hidden || refreshTimes());

// An element that fetched itself again keeps what a person did to it: scrolled, opened, focused, chosen.
const SCROLLED = ".table-wrap, .lineage";
const kept = new Map();

function nameOf(element) {
    for (const name of ["id", "href", "formaction", "name"]) {
        const value = element.getAttribute?.(name);
        if (value) return `[${name}="${CSS.escape(value)}"]`;
    }
    return "";
}

const isBox = (control) => ["radio", "checkbox"].includes(control.type);

// What was entered and not sent yet.
function isEntered(control) {
    if (control.options) return [...control.options].some((each) => each.selected !== each.defaultSelected);
    return isBox(control) ? control.checked !== control.defaultChecked : control.value !== control.defaultValue;
}

function readEntry(control) {
    const place = `[name="${CSS.escape(control.name)}"]`;
    if (!isBox(control)) return { place, value: control.value };
    return { place: `${place}[value="${CSS.escape(control.value)}"]`, checked: control.checked };
}

function enterAgain(target, { place, ...entry }) {
    const control = target.querySelector(place);
    const isOffered = !control?.options || [...control.options].some((each) => each.value === entry.value);
    if (control && isOffered) Object.assign(control, entry);
}

function keep({ detail: { target } }) {
    if (!target.id) return;
    const wraps = [target.closest(SCROLLED), ...target.querySelectorAll(SCROLLED)];
    kept.set(target.id, {
        scrolls: wraps.map((wrap) => wrap && [wrap.scrollLeft, wrap.scrollTop]),
        opened: [...target.querySelectorAll("details")].map((details) => details.open),
        focused: target.contains(document.activeElement) ? nameOf(document.activeElement) : "",
        entries: [...target.querySelectorAll("input:not([type=file]), select, textarea")].filter(isEntered).map(readEntry),
    });
}

document.addEventListener("htmx:beforeSwap", keep);
document.addEventListener("htmx:oobBeforeSwap", keep);

document.addEventListener("htmx:afterSettle", () => {
    for (const [id, { scrolls, opened, focused, entries }] of kept) {
        const target = document.getElementById(id);
        if (!target) continue;
        const wraps = [target.closest(SCROLLED), ...target.querySelectorAll(SCROLLED)];
        wraps.forEach((wrap, place) => wrap && scrolls[place] && wrap.scrollTo(...scrolls[place]));
        target.querySelectorAll("details").forEach((details, place) => {
            details.open = opened[place] ?? details.open;
        });
        for (const entry of entries) enterAgain(target, entry);
        if (focused) target.querySelector(focused)?.focus({ preventScroll: true });
    }
    kept.clear();
});

// What is newest stands at the right end, and is what one came to see.
for (const wrap of document.querySelectorAll("[data-scroll-end]")) wrap.scrollLeft = wrap.scrollWidth;

// On a narrow screen the tab one is on may lie outside of the row.
for (const tab of document.querySelectorAll(".tabs [aria-current]")) {
    tab.scrollIntoView({ block: "nearest", inline: "nearest" });
}

// A form that came back: where to correct it, though it stand below or in a part that was closed.
document.querySelector('main form [aria-invalid="true"]')?.focus();

// Messages of success leave by themselves; errors stay until they are read.
function expireMessages() {
    for (const message of document.querySelectorAll(".message:not(.error):not([data-timed])")) {
        message.dataset.timed = "1";
        setTimeout(() => message.remove(), 6000);
    }
}

document.addEventListener("htmx:afterSettle", expireMessages);
expireMessages();
writeTheme();
