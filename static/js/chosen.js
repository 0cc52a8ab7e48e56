// Rows that are chosen in a table: how many, how large together, and what may be done with them.
// They stay chosen when the table fetches itself again.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const chosen = new Set();

// As the `size` filter of the server writes it.
function writeSize(bytes) {
    let [value, unit] = [bytes, 0];
    while (value >= 1024 && unit < UNITS.length - 1) [value, unit] = [value / 1024, unit + 1];
    return unit ? `${value.toFixed(1)} ${UNITS[unit]}` : `${value} B`;
}

function listBoxes() {
    return [...document.querySelectorAll("input[name=chosen]")];
}

function count() {
    const bar = document.querySelector("[data-chosen]");
    if (!bar) return;
    const boxes = listBoxes().filter((box) => box.checked);
    const bytes = boxes.reduce((sum, box) => sum + Number(box.dataset.bytes), 0);
    bar.querySelector("[data-chosen-sum]").textContent = boxes.length ? `${boxes.length} chosen, ${writeSize(bytes)}` : "None chosen";
    for (const button of bar.querySelectorAll("button")) button.disabled = boxes.length === 0;
    const deleting = bar.querySelector("button[value=delete]");
    deleting.dataset.confirm = `Delete the files of ${boxes.length} checkpoint${boxes.length === 1 ? "" : "s"} (${writeSize(bytes)})? They cannot be restored; their places in the lineage stay.`;
    const all = document.querySelector("[data-choose-all]");
    all.checked = boxes.length > 0 && boxes.length === listBoxes().length;
    all.indeterminate = boxes.length > 0 && !all.checked;
}

document.addEventListener("change", ({ target }) => {
    if (target.matches("[data-choose-all]")) {
        for (const box of listBoxes()) box.checked = target.checked;
    } else if (!target.matches("input[name=chosen]")) {
        return;
    }
    for (const box of listBoxes()) chosen[box.checked ? "add" : "delete"](box.value);
    count();
});

// Filters change the address without loading the page: one comes back to what one sees now.
document.querySelector("[data-chosen]")?.addEventListener("submit", ({ target }) => {
    target.elements.back.value = location.search || "?";
});

document.addEventListener("htmx:afterSettle", () => {
    for (const box of listBoxes()) box.checked = chosen.has(box.value);
    count();
});

count();
