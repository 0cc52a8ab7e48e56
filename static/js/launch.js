// The launch form: the offered learning rate follows what learns, unless somebody has set their own.

function followChoice(form, chosen) {
    const rates = { lora: form.dataset.rateLora, full: form.dataset.rateFull };
    const before = chosen === "full" ? rates.lora : rates.full;
    const field = form.elements.learning_rate;
    if (Number(field.value) === Number(before)) field.value = rates[chosen];
}

// Heard here and not by the form: another method's page brings another form.
document.addEventListener("change", (event) => {
    const { name, value, form } = event.target;
    if (name === "weights" && form?.id === "launch") followChoice(form, value);
});
