// The playground: Ctrl+Enter sends, answers arrive as they are drawn, a good one is kept.

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

// What is chosen stands in the address, so that it can be copied before anything was asked.
form?.addEventListener("change", (event) => {
    if (event.target === prompt || !event.target.name || form.querySelector(".turn")) return;
    const url = new URL(location.href);
    url.searchParams.set(event.target.name, event.target.value);
    history.replaceState(null, "", url);
});

// The newest turn begins at the top of its pane, so that a long answer is read from its start.
function showNewest(turns) {
    const newest = turns.querySelector(".turn:last-child");
    if (newest) turns.scrollTop = newest.offsetTop - turns.offsetTop - 16;
}

for (const turns of form?.querySelectorAll("[data-turns]") ?? []) showNewest(turns);

// Answers that are being drawn: each has a stream of its pieces, and at its end the page fetches
// the whole with its proof. Without a stream the page asks every few seconds.

const streams = new Map(); // id of the answer -> its EventSource

function follow(answer) {
    if (streams.has(answer.id)) return;
    const stream = new EventSource(answer.dataset.stream);
    streams.set(answer.id, stream);
    stream.addEventListener("open", () => write(answer.id, null));
    stream.addEventListener("piece", (event) => write(answer.id, JSON.parse(event.data).text));
    stream.addEventListener("end", () => {
        stream.close();
        streams.delete(answer.id);
        const shown = document.getElementById(answer.id);
        if (shown?.dataset.stream) htmx.trigger(shown, "fallback");
    });
}

// A stream that was lost begins anew, with everything that was said so far.
function write(id, text) {
    const answer = document.getElementById(id);
    const streamed = answer?.querySelector("[data-streamed]");
    if (!streamed) return;
    if (text === null) {
        streamed.textContent = "";
        return;
    }
    const turns = answer.closest("[data-turns]");
    const isAtEnd = turns.scrollHeight - turns.scrollTop - turns.clientHeight < 48;
    answer.classList.remove("awaited");
    answer.querySelector("[data-waiting]").textContent = "answering";
    streamed.append(text);
    if (isAtEnd) turns.scrollTop = turns.scrollHeight;
}

function followAll() {
    for (const answer of form?.querySelectorAll("[data-stream]") ?? []) follow(answer);
}

// An answer that fetched itself while it is drawn keeps what has been drawn.
const drawn = new Map();

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
    const streamed = detail.target.querySelector?.("[data-streamed]");
    if (streamed?.textContent) drawn.set(detail.target.id, streamed.textContent);
});

document.addEventListener("htmx:afterSettle", (event) => {
    for (const [id, text] of drawn) keepDrawn(document.getElementById(id), text);
    drawn.clear();
    const turns = event.target.closest?.("[data-turns]");
    if (turns && event.target.closest(".turn:last-child")) showNewest(turns);
    followAll();
});

function keepDrawn(answer, text) {
    const place = answer?.querySelector("[data-streamed]");
    if (!place) return;
    place.textContent = text;
    answer.classList.remove("awaited");
}

followAll();

// Keeping an answer as a row of a dataset.

const dialog = document.getElementById("keep");
const body = document.getElementById("keep-body");

form?.addEventListener("click", (event) => {
    const button = event.target.closest("[data-keep]");
    if (!button) return;
    body.replaceChildren(document.getElementById("keep-form").content.cloneNode(true));
    const asks = body.querySelector("form");
    asks.setAttribute("hx-post", button.dataset.keep);
    asks.querySelector("input[name=name]").value = sessionStorage.getItem("hone-kept-in") || "";
    htmx.process(body);
    dialog.showModal();
});

body?.addEventListener("submit", (event) => {
    sessionStorage.setItem("hone-kept-in", event.target.querySelector("input[name=name]").value);
});

if (form?.querySelector(".turn")) prompt?.focus({ preventScroll: true });
