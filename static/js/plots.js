// What every chart shares: colours from the page's tokens, numbers as people read them, one layout.

// light-dark() is resolved by the browser only on a real property.
export function readColour(name) {
    const probe = document.createElement("span");
    probe.style.color = `var(${name})`;
    document.body.append(probe);
    const colour = getComputedStyle(probe).color;
    probe.remove();
    return colour;
}

export function fade(colour, opacity) {
    return colour.replace(/^rgb\(/, "rgba(").replace(/\)$/, `, ${opacity})`);
}

export function readSeries(place) {
    return readColour(`--series-${(place % 6) + 1}`);
}

export function write(value) {
    if (value === 0) return "0";
    const size = Math.abs(value);
    if (size >= 1e15) return value.toExponential(2);
    if (size >= 1000) return Math.round(value).toLocaleString("en-US");
    if (size < 1e-3) return value.toExponential(2).replace(/\.?0+e/, "e");
    const short = Number(value.toPrecision(4));
    return short === value ? String(short) : value.toPrecision(4); // a rate of 0.003, 120 tokens
}

// The theme of the page on Plotly's two axes; `xaxis` and `yaxis` are what a chart adds.
export function makeTheme(xaxis = {}, yaxis = {}) {
    const [muted, line] = [readColour("--muted"), readColour("--line")];
    const font = { family: getComputedStyle(document.body).fontFamily, size: 11, color: muted };
    const axis = { gridcolor: line, zeroline: false, linecolor: line, tickcolor: line, automargin: true };
    return {
        font,
        margin: { l: 48, r: 12, t: 8, b: 32 },
        paper_bgcolor: readColour("--surface"),
        plot_bgcolor: readColour("--surface"),
        showlegend: false,
        hoverlabel: { bgcolor: readColour("--surface"), bordercolor: readColour("--line-strong"), font: { ...font, color: readColour("--text") } },
        xaxis: { ...axis, showgrid: false, ...xaxis },
        yaxis: { ...axis, nticks: 6, exponentformat: "power", ...yaxis },
    };
}

// Beside a chart: the server leaves out what no axis holds.
export function tellLeftOut(element, count) {
    const note = element.querySelector("[data-left-out]");
    note.hidden = !count;
    // Of a long curve some points are not sent, so there may be more.
    note.textContent = `Points beyond 1e100 are not drawn (${count} or more): the CSV has all.`;
}
