// One metric of all runs of a group, each in its colour of the table; seeds as a mean with a band.

import { fade, makeTheme, readSeries, tellLeftOut } from "./plots.js";

const card = document.getElementById("group-chart");
const plot = card?.querySelector(".plot");
const DASHES = ["solid", "dash", "dot", "dashdot"]; // six colours, and again in another stroke
const SPARSE = 40; // curves of fewer points show each of them
let answer = { lines: [], bands: [], left_out: 0 };

async function fetchPoints() {
    try {
        const response = await fetch(card.dataset.points);
        if (response.ok) answer = await response.json();
    } catch {
        // Offline: the next hint, or the catch-up after it, asks again.
    }
    draw();
}

function makeLine(line) {
    const isFaint = answer.bands.length > 0;
    const colour = readSeries(line.place);
    return {
        x: line.steps,
        y: line.values,
        name: line.name,
        mode: line.steps.length <= SPARSE ? "lines+markers" : "lines",
        line: { color: isFaint ? fade(colour, 0.35) : colour, width: isFaint ? 1 : 1.75, dash: DASHES[Math.floor(line.place / 6) % DASHES.length] },
        marker: { color: colour, size: 6 },
        hovertemplate: "%{y:.5g}",
    };
}

function makeBand(band, place) {
    const colour = readSeries(place);
    const outline = { x: [...band.steps, ...band.steps.toReversed()], y: [...band.highs, ...band.lows.toReversed()] };
    return [
        { ...outline, fill: "toself", fillcolor: fade(colour, 0.15), line: { width: 0 }, hoverinfo: "skip", mode: "lines" },
        { x: band.steps, y: band.means, name: `mean, ${band.name}`, mode: "lines", line: { color: colour, width: 2.25 }, hovertemplate: "%{y:.5g}" },
    ];
}

function draw() {
    tellLeftOut(card, answer.left_out);
    const traces = [...answer.lines.filter((line) => line.steps.length).map(makeLine), ...answer.bands.flatMap(makeBand)];
    const steps = answer.lines.flatMap((line) => line.steps);
    const dtick = steps.length && Math.max(...steps) - Math.min(...steps) < 6 ? 1 : undefined; // 1.5 would be written 2
    const layout = { ...makeTheme({ dtick, tickformat: ",~d", unifiedhovertitle: { text: "step %{x}" } }), hovermode: "x unified", uirevision: "group" };
    Plotly.react(plot, traces, layout, { displayModeBar: false, responsive: true });
}

if (card) {
    card.querySelector("[data-chart-png]").addEventListener("click", (event) => {
        Plotly.downloadImage(plot, { format: "png", width: 1200, height: 600, filename: event.target.dataset.chartPng });
    });
    document.addEventListener("hone:theme", draw);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
    document.body.addEventListener("live:runs", fetchPoints);
    document.body.addEventListener("live:catchup", fetchPoints);
    fetchPoints();
}
