// A chart of bars as a picture: drawn again on a canvas, in the colours that the page has now.

const WIDTH = 1200;
const HEIGHT = 400;

function copyWithColours(svg) {
    const copy = svg.cloneNode(true);
    const shown = svg.querySelectorAll("rect");
    copy.querySelectorAll("rect").forEach((rect, place) => {
        rect.setAttribute("fill", getComputedStyle(shown[place]).fill);
    });
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", WIDTH);
    copy.setAttribute("height", HEIGHT);
    return new XMLSerializer().serializeToString(copy);
}

function draw(picture, background) {
    const canvas = document.createElement("canvas");
    canvas.width = WIDTH;
    canvas.height = HEIGHT;
    const pen = canvas.getContext("2d");
    pen.fillStyle = background;
    pen.fillRect(0, 0, WIDTH, HEIGHT);
    pen.drawImage(picture, 0, 0, WIDTH, HEIGHT);
    return canvas;
}

function save(canvas, name) {
    canvas.toBlob((blob) => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = `${name}.png`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    });
}

document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-bars-png]");
    if (!button) return;
    const figure = button.closest("figure");
    const text = copyWithColours(figure.querySelector("svg"));
    const url = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
    const picture = new Image();
    picture.src = url;
    await picture.decode();
    URL.revokeObjectURL(url);
    save(draw(picture, getComputedStyle(figure).backgroundColor), button.dataset.barsPng);
});
