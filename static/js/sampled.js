// What the model thought at a token of its answer: by pointer, by touch, and by the arrow keys.

const card = document.getElementById("token-card");
const MARKS = { "\n": "\u21b5", "\t": "\u21e5", "\r": "\u240d", " ": "\u2423" };
const told = new Map(); // address -> promise of the alternatives at each token

let shown = null;

function askFor(view) {
    const url = view.dataset.sampled;
    if (!told.has(url)) {
        told.set(
            url,
            fetch(url)
                .then((answer) => (answer.ok ? answer.json() : { alternatives: [] }))
                .then((said) => said.alternatives)
                .catch(() => []),
        );
    }
    return told.get(url);
}

function mark(text) {
    return [...text].map((letter) => MARKS[letter] || letter).join("") || "\u00b7";
}

function percent(logprob) {
    const share = Math.exp(logprob) * 100;
    return share >= 99.995 || share === 0 ? `${Math.round(share)} %` : `${share.toPrecision(3)} %`;
}

function element(tag, className, text) {
    const made = document.createElement(tag);
    made.className = className;
    made.textContent = text;
    return made;
}

function makeLine(text, logprob, isSampled) {
    const line = element("tr", isSampled ? "sampled-one" : "", "");
    line.append(element("td", "mono", mark(text)));
    const cell = element("td", "bar", "");
    const bar = element("span", "", "");
    bar.style.width = `${Math.exp(logprob) * 100}%`;
    cell.append(bar);
    line.append(cell, element("td", "number", percent(logprob)));
    return line;
}

async function show(token) {
    if (shown === token) return;
    hide();
    shown = token;
    token.dataset.shown = "";
    const view = token.parentElement;
    const place = [...view.children].indexOf(token);
    fill(token, []);
    put(token);
    const alternatives = (await askFor(view))[place] || [];
    if (shown !== token || !alternatives.length) return;
    fill(token, alternatives);
    put(token);
}

function fill(token, alternatives) {
    const logprob = Number(token.dataset.logprob);
    const title = element("p", "", "");
    title.append(element("strong", "mono", mark(token.textContent)), ` token ${token.dataset.id}`);
    const numbers = element("p", "muted", `${percent(logprob)}, log p = ${logprob.toFixed(4)}`);
    const table = document.createElement("table");
    const isAmong = alternatives.some(([id]) => String(id) === token.dataset.id);
    for (const [id, text, value] of alternatives) {
        table.append(makeLine(text, value, String(id) === token.dataset.id));
    }
    if (alternatives.length && !isAmong) {
        table.append(makeLine(token.textContent, logprob, true));
    }
    card.replaceChildren(title, numbers, ...(alternatives.length ? [table] : []));
}

// Below the token, or above it where there is no room.
function put(token) {
    card.hidden = false;
    const box = token.getClientRects()[0] || token.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, innerWidth - card.offsetWidth - 8));
    const below = box.bottom + 6;
    const isBelow = below + card.offsetHeight < innerHeight - 8;
    card.style.left = `${left}px`;
    card.style.top = `${isBelow ? below : Math.max(8, box.top - card.offsetHeight - 6)}px`;
}

function hide() {
    delete shown?.dataset.shown;
    shown = null;
    card.hidden = true;
}

function isVisible(token) {
    return token.offsetParent !== null && token.getClientRects().length > 0;
}

function step(view, way) {
    const tokens = [...view.children].filter(isVisible);
    const at = tokens.indexOf(shown);
    const next = at < 0 ? (way > 0 ? 0 : tokens.length - 1) : at + way;
    const token = tokens[Math.max(0, Math.min(next, tokens.length - 1))];
    if (!token) return;
    show(token);
    token.scrollIntoView({ block: "nearest" });
    put(token);
}

const KEYS = { ArrowRight: 1, ArrowLeft: -1 };

if (card) {
    document.addEventListener("pointerover", (event) => {
        const token = event.target.closest?.("[data-sampled] > i");
        if (token) show(token);
        else if (event.pointerType === "mouse" && !event.target.closest?.("[data-sampled]")) hide();
    });
    document.addEventListener("pointerdown", (event) => {
        const token = event.target.closest?.("[data-sampled] > i");
        if (token) show(token);
        else hide();
    });
    document.addEventListener("keydown", (event) => {
        const view = event.target.closest?.("[data-sampled]");
        if (event.key === "Escape") hide();
        if (!view || !KEYS[event.key]) return;
        event.preventDefault();
        step(view, KEYS[event.key]);
    });
    document.addEventListener("focusout", (event) => {
        if (event.target.closest?.("[data-sampled]")) hide();
    });
    document.addEventListener("scroll", hide, { capture: true, passive: true });
}
