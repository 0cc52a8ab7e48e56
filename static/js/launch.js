// The launch form: the offered learning rate follows what learns, unless somebody has set their own.

const form = document.getElementById("launch");

function followChoice(chosen) {
    const rates = { lora: form.dataset.rateLora, full: form.dataset.rateFull };
    const before = chosen === "full" ? rates.lora : rates.full;
    const field = form.elements.learning_rate;
    if (Number(field.value) === Number(before)) field.value = rates[chosen];
}

form?.addEventListener("change", (event) => {
    if (event.target.name === "weights") followChoice(event.target.value);
});
