// The lineage is moved by dragging it, and what was asked for comes into sight by itself.

function show() {
    for (const box of document.querySelectorAll(".lineage")) {
        const wanted = box.querySelector("[aria-current] .shape, .hit .shape");
        if (!wanted) continue;
        const [node, frame] = [wanted.getBoundingClientRect(), box.getBoundingClientRect()];
        box.scrollLeft += node.left - frame.left - (frame.width - node.width) / 2;
        box.scrollTop += node.top - frame.top - (frame.height - node.height) / 2;
    }
}

let drag = null;

document.addEventListener("pointerdown", (event) => {
    const box = event.target.closest(".lineage");
    if (!box || event.button !== 0 || event.pointerType !== "mouse" || event.target.closest("a")) return;
    drag = { box, x: event.clientX + box.scrollLeft, y: event.clientY + box.scrollTop };
    box.toggleAttribute("data-dragging", true);
});

document.addEventListener("pointermove", (event) => {
    drag?.box.scrollTo(drag.x - event.clientX, drag.y - event.clientY);
});

document.addEventListener("pointerup", () => {
    drag?.box.removeAttribute("data-dragging");
    drag = null;
});

show();
