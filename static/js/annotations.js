// What happened at a step, over every curve: a thin line each, and a word that says which kind it is.
// The list below the charts holds the same sentences, for keyboards and screen readers.

const LINES = {
    steering: { colour: "--accent", dash: "solid" },
    diagnostic: { colour: "--warn", dash: "dash" },
    evaluation: { colour: "--good", dash: "dot" },
};
const WORD_PIXELS = 64; // words nearer to each other than this would overlap
const TEXT_CHARACTERS = 60; // of one line of the text on hover

// eslint-disable-next-line no-unused-vars
const annotationLines = {
    // Of one chart: its shapes, and the words on top of them. `find` says where on the x axis one lies: a step, or milliseconds.
    draw(notes, find, range, width, readColour) {
        const placed = notes.map((note) => ({ ...note, place: find(note) })).filter((note) => note.place >= range[0] && note.place <= range[1]);
        const groups = this.gather(placed, range, width);
        return { shapes: placed.map((note) => this.line(note, readColour)), words: groups.map((near) => this.word(near, readColour)) };
    },

    line(note, readColour) {
        const { colour, dash } = LINES[note.kind] || LINES.steering;
        return { type: "line", xref: "x", yref: "paper", x0: note.x, x1: note.x, y0: 0, y1: 1, line: { color: readColour(colour), width: 1, dash } };
    },

    // Lines that lie close share one word.
    gather(placed, range, width) {
        const room = ((range[1] - range[0] || 1) * WORD_PIXELS) / Math.max(width, 1);
        const groups = [];
        for (const note of [...placed].sort((a, b) => a.place - b.place)) {
            const last = groups.at(-1);
            if (last && note.place - last[0].place < room) last.push(note);
            else groups.push([note]);
        }
        return groups;
    },

    word(near, readColour) {
        const kinds = new Set(near.map((note) => note.kind));
        const { colour } = LINES[near[0].kind] || LINES.steering;
        const words = kinds.size > 1 ? "several" : near[0].word;
        return {
            x: near[0].x,
            y: 1,
            yref: "paper",
            yanchor: "bottom",
            xanchor: "left",
            xshift: -2,
            showarrow: false,
            text: near.length > 1 ? `${words} × ${near.length}` : words,
            font: { color: readColour(kinds.size > 1 ? "--muted" : colour), size: 11 },
            hovertext: near.map((note) => `step ${note.step.toLocaleString("en-US")}: ${this.wrap(note.text)}`).join("<br>"),
            hoverlabel: { bgcolor: readColour("--surface"), bordercolor: readColour("--line-strong"), font: { color: readColour("--text"), size: 11 } },
        };
    },

    // Plotly reads a few tags; a text is none of them.
    wrap(text) {
        const lines = [""];
        for (const word of text.replace(/&/g, "&amp;").replace(/</g, "&lt;").split(/\s+/)) {
            if (lines.at(-1).length + word.length > TEXT_CHARACTERS) lines.push("");
            lines[lines.length - 1] += `${word} `;
        }
        return lines.map((line) => line.trim()).join("<br>");
    },
};
