// The Rollouts tab by keyboard: the arrows go to the step before and after.

document.addEventListener("keydown", (event) => {
    const isTyping = event.target.closest?.("input, select, textarea, dialog, [data-sampled]");
    if (isTyping || event.metaKey || event.ctrlKey || event.altKey) return;
    document.querySelector(`[data-step-key="${event.key}"]`)?.click();
});
