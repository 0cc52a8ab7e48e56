// Runs before the first paint: the stored theme is on the page before anything is drawn.
(() => {
    const stored = localStorage.getItem("hone-theme");
    if (stored === "light" || stored === "dark") {
        document.documentElement.dataset.theme = stored;
    }
})();
