// The curves of one run. Points are fetched after the last id that is here, so nothing is ever missing:
// not after a reload, a sleeping laptop or a lost socket.

import { fade, makeTheme, readColour, readSeries, tellLeftOut, write } from "./plots.js";

const root = document.getElementById("charts");
const cards = root.querySelector("[data-charts]");
const template = document.getElementById("chart-card");

const TITLES = {
    reward: "Reward",
    win_rate: "Games won, share",
    teacher: "Distance to the teacher, nats a token",
    kl: "Divergence from the reference, nats a token",
    completion: "Answers, tokens",
    entropy: "Entropy of the answers, nats a token",
    frac_reward_zero_std: "Groups without a signal, share",
    staleness: "Age of the samples, steps",
    eval: "Evaluations",
    loss: "Loss",
    dpo: "Preferences against the reference",
    comparison: "Comparisons",
    held_out: "Held out",
    learning_rate: "Learning rate",
    grad_norm: "Gradient norm",
    tokens_per_second: "Tokens a second",
    ratio: "Importance ratio",
    clipped: "Clipped share of tokens",
    kl_sample_train: "Divergence from the sampling policy",
    sampler: "Sampler against trainer, nats",
    advantages: "Answers and their advantages",
    custom: "Custom loss's own numbers",
    tokens: "Tokens a step",
    epoch: "Epoch",
};
// Keys that belong on one card though they share no prefix.
const CARD_OF = {
    held_out_loss: "loss",
    forward_loss: "loss",
    num_tokens: "tokens",
    num_weighted_tokens: "tokens",
    kl_sample_train_k1: "kl_sample_train",
    kl_sample_train_k3: "kl_sample_train",
};
const LABELS = {
    "reward/std": "standard deviation",
    "completion/length_mean": "mean length",
    "completion/length_max": "longest",
    "completion/truncated_share": "share cut off",
    loss: "training",
    held_out_loss: "held out",
    forward_loss: "forward passes over the same data",
    "advantages/zero_share": "share without an advantage",
    "advantages/length_correlation": "length against advantage",
    "advantages/repeated_share": "repeated in rewarded ones",
    "advantages/length_mean": "mean length, tokens",
    num_tokens: "all",
    num_weighted_tokens: "learned from",
    "sampler/logprob_difference_mean": "mean difference",
    "sampler/kl": "KL, k3",
};
const ORDER = ["reward", "win_rate", "teacher", "loss", "dpo", "comparison", "held_out", "learning_rate", "grad_norm", "tokens_per_second"];
const LAST = ["tokens", "epoch"];
const SPARSE = 40; // curves of fewer points show each of them

const series = new Map(); // key -> {steps, values, times, left_out: points too large to be drawn}
const charts = new Map(); // card -> {element, plot}
let last = 0;
let isFetching = false;
let isStale = false;

const settings = readSettings();

function readSettings() {
    const chosen = { smoothing: "0.6", across: "step", log: false };
    return Object.assign(chosen, JSON.parse(localStorage.getItem("hone-charts") || "{}"));
}

async function fetchPoints() {
    if (isFetching) {
        isStale = true;
        return;
    }
    isFetching = true;
    try {
        const answer = await fetch(`${root.dataset.points}?after=${last}`);
        if (answer.ok) takePoints(await answer.json());
    } catch {
        // Offline: the next hint, or the catch-up after it, asks again from the same place.
    } finally {
        isFetching = false;
    }
    if (isStale) {
        isStale = false;
        fetchPoints();
    }
}

function takePoints(answer) {
    last = answer.last;
    const touched = new Set();
    for (const [key, points] of Object.entries(answer.series)) {
        series.set(key, join(series.get(key), points));
        touched.add(cardOf(key));
    }
    // The grid settles on its columns before anything is drawn into it.
    for (const card of sortCards(touched)) charts.has(card) || makeCard(card);
    for (const card of touched) draw(card);
    root.querySelector("[data-empty]").hidden = series.size > 0;
}

// New points nearly always follow the old ones; a replayed step arrives in the middle.
function join(old, fresh) {
    if (!old) return fresh;
    const joined = {
        steps: old.steps.concat(fresh.steps),
        values: old.values.concat(fresh.values),
        times: old.times.concat(fresh.times),
    };
    const left_out = old.left_out + fresh.left_out;
    if (fresh.steps.length && fresh.steps[0] > old.steps[old.steps.length - 1]) return { ...joined, left_out };
    const order = [...joined.steps.keys()].sort((a, b) => joined.steps[a] - joined.steps[b]);
    const sorted = Object.entries(joined).map(([name, list]) => [name, order.map((place) => list[place])]);
    return { ...Object.fromEntries(sorted), left_out };
}

function cardOf(key) {
    return CARD_OF[key] || key.split(/[/:]/)[0];
}

function rankOf(card) {
    if (ORDER.includes(card)) return ORDER.indexOf(card);
    return LAST.includes(card) ? 1000 + LAST.indexOf(card) : 100;
}

function sortCards(names) {
    return [...names].sort((a, b) => rankOf(a) - rankOf(b) || a.localeCompare(b));
}

function keysOf(card) {
    return [...series.keys()].filter((key) => cardOf(key) === card).sort((a, b) => (b === card) - (a === card) || a.localeCompare(b));
}

function labelOf(key, card) {
    return LABELS[key] || (key === card ? TITLES[card] || key : key.slice(card.length + 1));
}

function makeCard(card) {
    const element = template.content.firstElementChild.cloneNode(true);
    element.querySelector("h2").textContent = TITLES[card] || card;
    element.querySelector("[data-chart-png]").addEventListener("click", () => savePicture(card));
    const after = [...charts.keys()].filter((other) => sortCards([card, other])[0] === card);
    const next = sortCards(after)[0];
    cards.insertBefore(element, next ? charts.get(next).element : null);
    const chart = { element, plot: element.querySelector(".plot") };
    charts.set(card, chart);
}

function savePicture(card) {
    const plot = charts.get(card).plot;
    Plotly.downloadImage(plot, { format: "png", width: 1200, height: 600, filename: `${root.dataset.run}-${card}` });
}

function smooth(values, weight) {
    if (!weight) return values;
    let mean = 0;
    let sum = 0;
    return values.map((value) => {
        mean = mean * weight + value * (1 - weight);
        sum = sum * weight + (1 - weight);
        return mean / sum; // without this the first points would lean to 0
    });
}

function makeTraces(key, card, place) {
    const points = series.get(key);
    const across = settings.across === "time" ? points.times.map((at) => new Date(at * 1000)) : points.steps;
    const colour = readSeries(place);
    const isSparse = points.steps.length <= SPARSE && key !== "learning_rate";
    const isSmoothed = Number(settings.smoothing) > 0 && points.steps.length > SPARSE / 2 && card !== "learning_rate" && key !== "held_out_loss" && key !== "epoch";
    const line = {
        x: across,
        y: isSmoothed ? smooth(points.values, Number(settings.smoothing)) : points.values,
        name: labelOf(key, card),
        mode: isSparse && !isSmoothed ? "lines+markers" : "lines",
        line: { color: colour, width: 1.75 },
        marker: { color: colour, size: 5 },
        customdata: points.values,
        hovertemplate: isSmoothed ? "%{customdata:.5g} <i>(smoothed %{y:.4g})</i>" : "%{y:.5g}",
    };
    const ghost = {
        x: across,
        y: points.values,
        mode: "lines",
        line: { color: fade(colour, 0.28), width: 1 },
        hoverinfo: "skip",
    };
    return isSmoothed ? [ghost, line] : [line];
}

// The last value stands at the line's end; two that would overlap are moved apart.
function makeEndLabels(lines, isLog) {
    const ends = lines.map((line) => ({ x: line.x[line.x.length - 1], y: line.y[line.y.length - 1], line }));
    ends.sort((a, b) => a.y - b.y);
    const all = lines.flatMap((line) => line.y);
    const span = Math.max(...all) - Math.min(...all) || 1;
    let shift = 0;
    return ends.map((end, place) => {
        const isClose = place > 0 && end.y - ends[place - 1].y < span * 0.08;
        shift = isClose ? shift + 13 : 0;
        return {
            x: end.x instanceof Date ? end.x.toISOString() : end.x,
            y: isLog ? Math.log10(end.y) : end.y,
            text: write(end.line.customdata.at(-1)),
            xanchor: "left",
            xshift: 6,
            yshift: shift,
            showarrow: false,
            font: { color: end.line.line.color, size: 12 },
        };
    });
}

// Left to itself, a level line at 0.001 would stand at zero between -1 and 1.
function frameY(low, high) {
    const room = Math.abs(low) / 2;
    return low === high && room > 0 ? [low - room, low + room] : undefined;
}

// Few steps are counted one by one: 1, 1.5, 2 would be written 1, 2, 2.
function countX(lines) {
    const steps = settings.across === "step" ? lines.flatMap((line) => line.x) : [];
    return steps.length && Math.max(...steps) - Math.min(...steps) < 6 ? 1 : undefined;
}

function drawNotes(lines, width) {
    const told = JSON.parse(document.getElementById("annotation-marks")?.textContent || "[]");
    const isTime = settings.across === "time";
    const notes = told.map((note) => ({ ...note, x: isTime ? new Date(note.at * 1000).toISOString() : note.step }));
    const ends = lines.flatMap((line) => [line.x[0], line.x.at(-1)]).map(Number);
    const find = (note) => (isTime ? note.at * 1000 : note.step);
    return annotationLines.draw(notes, find, [Math.min(...ends), Math.max(...ends)], width, readColour);
}

function makeLayout(lines, width) {
    const notes = drawNotes(lines, width);
    const values = lines.flatMap((line) => line.y);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const isLog = settings.log && lines.every((each) => each.y.every((value) => value > 0));
    const theme = makeTheme(
        { title: { text: settings.across, standoff: 2 }, dtick: countX(lines), showspikes: true, spikemode: "across", spikethickness: 1, spikecolor: readColour("--muted"), spikedash: "solid", hoverformat: settings.across === "time" ? "%H:%M:%S" : ",d", tickformat: settings.across === "time" ? undefined : ",~d", unifiedhovertitle: { text: settings.across === "time" ? "%{x}" : "step %{x}" } },
        { type: isLog ? "log" : "linear", range: isLog ? undefined : frameY(low, high), tickformat: high >= 1000 && high < 1e6 ? ",~r" : undefined },
    );
    return {
        ...theme,
        margin: { ...theme.margin, t: notes.words.length ? 22 : 8 },
        hovermode: "x unified",
        uirevision: settings.across + isLog, // a zoom stays while points arrive
        annotations: [...makeEndLabels(lines, isLog), ...notes.words],
        shapes: notes.shapes,
    };
}

function writeLegend(element, lines) {
    const legend = element.querySelector(".legend");
    const items = lines.length > 1 ? lines : [];
    legend.replaceChildren(
        ...items.map((line) => {
            const item = document.createElement("span");
            item.innerHTML = '<svg viewBox="0 0 12 4"><rect width="12" height="4" rx="2"/></svg>';
            item.querySelector("rect").setAttribute("fill", line.line.color);
            item.append(line.name);
            return item;
        }),
    );
}

function draw(card) {
    const chart = charts.get(card);
    const keys = keysOf(card);
    tellLeftOut(chart.element, keys.reduce((sum, key) => sum + series.get(key).left_out, 0));
    const drawn = keys.filter((key) => series.get(key).steps.length);
    const traces = drawn.flatMap((key, place) => makeTraces(key, card, place));
    const lines = traces.filter((trace) => trace.name);
    const query = keys.map((key) => `key=${encodeURIComponent(key)}`).join("&");
    chart.element.querySelector("[data-chart-csv]").href = `${root.dataset.csv}?${query}`;
    writeLegend(chart.element, lines);
    if (!lines.length) return;
    Plotly.react(chart.plot, traces, makeLayout(lines, chart.plot.clientWidth), { displayModeBar: false, responsive: true });
}

function drawAll() {
    for (const card of charts.keys()) draw(card);
}

for (const control of root.querySelectorAll("[data-setting]")) {
    const name = control.dataset.setting;
    const isBox = control.type === "checkbox";
    if (isBox) control.checked = settings[name];
    else control.value = settings[name];
    control.addEventListener("change", () => {
        settings[name] = isBox ? control.checked : control.value;
        localStorage.setItem("hone-charts", JSON.stringify(settings));
        drawAll();
    });
}

document.addEventListener("hone:theme", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
document.body.addEventListener("htmx:afterSwap", (event) => event.detail.elt.id === "run-annotations" && drawAll());
document.body.addEventListener("live:metrics", fetchPoints);
document.body.addEventListener("live:catchup", fetchPoints);
fetchPoints();
