// The filter of the page of claims: words and a verdict; tables without a hit are folded, those with one are opened.
(() => {
  addEventListener("DOMContentLoaded", () => {
    const form = document.querySelector("#claims-filter");
    if (!form) return;
    const [words, verdict] = [form.elements.words, form.elements.verdict];
    const said = form.querySelector("output");
    const tables = [...document.querySelectorAll("details")].filter((one) => one.querySelector("tbody"));
    const closed = tables.map((one) => one.open);

    function apply() {
      const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
      const active = wanted.length > 0 || verdict.value !== "";
      let shown = 0;
      tables.forEach((one, k) => {
        let hits = 0;
        for (const row of one.querySelectorAll("tbody tr")) {
          const text = row.textContent.toLowerCase();
          const word = (row.cells[1]?.querySelector("strong")?.textContent || "").trim();
          const fits = wanted.every((w) => text.includes(w)) && (verdict.value === "" || word === verdict.value);
          row.hidden = !fits;
          hits += fits;
        }
        one.open = active ? hits > 0 : closed[k];
        shown += hits;
      });
      said.textContent = active ? `${shown} rows` : "";
    }

    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
  });
})();
