// One socket a page. The server only says what changed; elements fetch what they lack on `live:<what>`.
// After a lost socket, a sleep or 15 s of silence, `live:catchup` makes them all look again.

const SILENCE_MS = 15000;
const LONGEST_WAIT_MS = 10000;

const path = document.body.dataset.live;
const indicator = document.querySelector(".live");
let attempts = 0;
let lastHeard = Date.now();

function show(state, word) {
    if (!indicator) return;
    indicator.dataset.state = state;
    indicator.querySelector("[data-live-word]").textContent = word;
}

const PAUSE_MS = 700;
const resting = new Map(); // what -> whether another hint came while it rested

// Hints come in bursts. The first is passed on at once, the last never later than the pause.
function tell(what) {
    lastHeard = Date.now();
    if (resting.has(what)) {
        resting.set(what, true);
        return;
    }
    resting.set(what, false);
    setTimeout(() => {
        const isWaiting = resting.get(what);
        resting.delete(what);
        if (isWaiting) tell(what);
    }, PAUSE_MS);
    document.body.dispatchEvent(new CustomEvent(`live:${what}`, { detail: { what } }));
}

// An element that is fetching itself when a hint comes is gone once it has, and htmx drops what waits for it: the hint
// is told once more to what stands in its place.
const missed = new Map(); // element -> the hints that came while it was fetching itself

document.addEventListener("htmx:confirm", ({ detail: { elt, triggeringEvent } }) => {
    const what = triggeringEvent?.detail?.what;
    if (!what || !elt.classList.contains("htmx-request")) return;
    missed.set(elt, (missed.get(elt) ?? new Set()).add(what));
});

document.addEventListener("htmx:afterRequest", ({ detail: { requestConfig } }) => {
    const hints = missed.get(requestConfig.elt) ?? [];
    missed.delete(requestConfig.elt);
    if (!requestConfig.elt.isConnected) hints.forEach(tell);
});

function connect() {
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}${path}`);
    socket.onopen = () => {
        show("live", "Live");
        // What changed since the page was asked for came before there was anybody to tell it to.
        if (attempts > 0) tell("catchup");
        else socket.send(String(Math.round(performance.now())));
        attempts = 0;
    };
    socket.onmessage = (event) => tell(JSON.parse(event.data).what);
    socket.onclose = () => {
        attempts += 1;
        show("lost", "Reconnecting");
        setTimeout(connect, Math.min(500 * 2 ** attempts, LONGEST_WAIT_MS));
    };
}

// htmx listens from DOMContentLoaded on: a hint that came before would be told to nobody.
function begin() {
    connect();
    setInterval(() => {
        if (!document.hidden && Date.now() - lastHeard > SILENCE_MS) tell("catchup");
    }, 1000);
    document.addEventListener("visibilitychange", () => document.hidden || tell("catchup"));
    window.addEventListener("online", () => tell("catchup"));
}

if (path && document.readyState === "complete") begin();
else if (path) document.addEventListener("DOMContentLoaded", () => setTimeout(begin));
