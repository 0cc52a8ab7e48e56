// An upload with progress: the same form is sent, and the page that answers it is opened.
// Without this script the form works as it is.

const form = document.querySelector("[data-upload]");
const input = form.querySelector("input[type=file]");
const drop = form.querySelector("[data-drop]");
const name = form.querySelector("input[name=name]");
const progress = form.querySelector("[data-progress]");
const bar = progress.querySelector("progress");
const words = progress.querySelector("[data-progress-text]");
const error = form.querySelector("[data-error]");
let hasTypedName = name.value !== "";

name.setAttribute("list", "dataset-names");
name.addEventListener("input", () => {
    hasTypedName = name.value !== "";
});

function writeSize(bytes) {
    const units = ["B", "KiB", "MiB", "GiB"];
    let place = 0;
    while (bytes >= 1024 && place < units.length - 1) {
        bytes /= 1024;
        place += 1;
    }
    return place ? `${bytes.toFixed(1)} ${units[place]}` : `${bytes} B`;
}

function complain(text) {
    error.hidden = !text;
    error.querySelector("span").textContent = text;
}

// The same sentences as the server's, before anything is sent. Empty: the file may be sent.
function findFault(file) {
    if (file.size === 0) return `${file.name} is empty: upload a file with at least one row.`;
    if (file.size > Number(form.dataset.limit)) {
        return `${file.name} has ${writeSize(file.size)}; up to ${form.dataset.limitText} are taken.`;
    }
    return "";
}

function showFile() {
    const file = input.files[0];
    document.getElementById("file-errors").replaceChildren();
    complain(file ? findFault(file) : "");
    if (!file) return;
    if (!hasTypedName) name.value = file.name.replace(/\.[^.]+$/, "");
    drop.querySelector("[data-drop-text]").textContent = `${file.name}, ${writeSize(file.size)}.`;
}

input.addEventListener("change", showFile);
for (const kind of ["dragenter", "dragover"]) {
    drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.toggleAttribute("data-over", true);
    });
}
for (const kind of ["dragleave", "drop"]) {
    drop.addEventListener(kind, () => drop.removeAttribute("data-over"));
}
drop.addEventListener("drop", (event) => {
    event.preventDefault();
    if (!event.dataTransfer.files.length) return;
    input.files = event.dataTransfer.files;
    showFile();
});

form.addEventListener("submit", (event) => {
    if (!input.files.length) return;
    event.preventDefault();
    const fault = findFault(input.files[0]);
    complain(fault);
    if (!fault) send();
});

function setBusy(isBusy) {
    progress.hidden = !isBusy;
    form.querySelector("button.primary").disabled = isBusy;
}

function send() {
    const request = new XMLHttpRequest();
    const began = Date.now();
    request.upload.addEventListener("progress", (event) => {
        bar.value = event.loaded / event.total;
        const rate = event.loaded / Math.max(0.2, (Date.now() - began) / 1000);
        words.textContent = event.loaded < event.total
            ? `${writeSize(event.loaded)} of ${writeSize(event.total)}, ${writeSize(Math.round(rate))}/s`
            : "Sent. The server is storing it.";
    });
    request.addEventListener("load", () => showAnswer(request));
    request.addEventListener("error", () => {
        setBusy(false);
        complain("The connection was lost while the file was sent: press Upload once more.");
    });
    request.open("POST", form.action);
    setBusy(true);
    request.send(new FormData(form));
}

// A redirect was followed to the version's page; anything else is this page with its errors.
function showAnswer(request) {
    if (request.status === 200 && request.responseURL !== location.href) {
        location.assign(request.responseURL);
        return;
    }
    setBusy(false);
    const page = new DOMParser().parseFromString(request.responseText, "text/html");
    const found = [...page.querySelectorAll(".form .error:not([hidden]) span, .form-errors span")];
    const said = found.map((each) => each.textContent.trim()).join(" ") || readDetail(request);
    complain(said || `The server answered ${request.status}.`);
}

// A body that is too large is refused before any page is made.
function readDetail(request) {
    const isJson = request.getResponseHeader("content-type")?.startsWith("application/json");
    return isJson ? JSON.parse(request.responseText).detail : "";
}
