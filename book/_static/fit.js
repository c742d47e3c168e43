// Formulas on lines of their own that are wider than the column, as on a phone, are set smaller.
(() => {
  const SMALLEST = 0.55;

  function fit() {
    for (const box of document.querySelectorAll("div.math")) {
      const formula = box.querySelector("mjx-container");
      if (!formula) continue;
      formula.style.fontSize = "";
      // A smaller font gains a little less than it should, since margins and rules do not shrink
      for (let share = 1; formula.scrollWidth > formula.clientWidth + 1 && share > SMALLEST; ) {
        share = Math.max(SMALLEST, Math.min(share - 0.02, (share * formula.clientWidth) / formula.scrollWidth));
        formula.style.fontSize = `${100 * share}%`;
      }
    }
  }

  addEventListener("load", () => {
    const ready = window.MathJax?.startup?.promise || Promise.resolve();
    ready.then(fit);
    addEventListener("resize", fit);
  });
})();
