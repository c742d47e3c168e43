/* The expansion of the NFM loss against the exact loss, at laws that the reader chooses. Data: figures/fig_explore.py. */
(() => {
  "use strict";

  const NOISE = ["R2_add", "R3_add", "R2_mult", "R3_mult"];
  const TOLERANCE = 0.1;

  /** All terms at laws with these moments of 1 - λ, from the coefficients of the network. */
  function terms(c, [m1, m2, m3], addNoise, multNoise) {
    const add = addNoise ** 2;
    const mult = multNoise ** 2;
    return {
      standard: c.standard, R1: m1 * c.R1, R2: m2 * c.R2, R3: m2 * c.R3,
      R2_add: add * c.R2_add, R3_add: add * c.R3_add, R2_mult: mult * c.R2_mult, R3_mult: mult * c.R3_mult,
      C3: m3 * c.C3 + m1 * (add * c.C3_add + mult * c.C3_mult),
    };
  }

  /** The polynomial of an order from 0 to 3. */
  function polynomial(t, eps, order) {
    const second = NOISE.reduce((sum, name) => sum + t[name], t.R2 + t.R3);
    return [t.standard, t.R1, second, t.C3].slice(0, order + 1).reduce((sum, c, k) => sum + c * eps ** k, 0);
  }

  /** The scale up to which the relative error is within the tolerance, interpolated log-linearly; 1 at most. */
  function radius(eps, loss, values) {
    const errors = eps.map((_, k) => Math.abs(loss[k] - values[k]) / Math.abs(loss[k]));
    const k = errors.findIndex((error) => error > TOLERANCE);
    if (k < 0) return 1;
    if (k === 0 || !(errors[k - 1] > 0)) return eps[k];
    const share = Math.log(TOLERANCE / errors[k - 1]) / Math.log(errors[k] / errors[k - 1]);
    return eps[k - 1] * (eps[k] / eps[k - 1]) ** share;
  }

  /** A quantity between the scales of the grid that falls like a power of the scale: q / eps^power is interpolated. */
  function between(eps, values, at, power) {
    const k = Math.max(2, eps.findIndex((e) => e >= at));
    const [a, b] = [eps[k - 1], eps[k]];
    const share = (at - a) / (b - a);
    return at ** power * ((1 - share) * (values[k - 1] / a ** power) + share * (values[k] / b ** power));
  }

  if (typeof module === "object") {
    module.exports = { terms, polynomial, radius, between }; // for the tests
    return;
  }

  const WIDTH = 360, HEIGHT = 250, LEFT = 52, RIGHT = 8, TOP = 12, BOTTOM = 40;
  const ORDERS = [1, 2, 3];

  function element(tag, attributes, ...children) {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  }

  function shape(tag, attributes, ...children) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  const raised = (power) => String(power).replace("-", "⁻").replace(/\d/g, (digit) => "⁰¹²³⁴⁵⁶⁷⁸⁹"[digit]);
  function short(x) {
    if (x === 0 || Math.abs(x) >= 1e-3) return String(Number(x.toPrecision(3))).replace("-", "−");
    const [digits, power] = x.toExponential(1).split("e");
    return `${digits.replace("-", "−")} · 10${raised(Number(power))}`;
  }
  const percent = (x) => (x < 0.0005 ? "below 0.1 %" : x > 9.995 ? "over 1000 %" : `${(100 * x).toPrecision(x < 0.01 ? 1 : x < 0.1 ? 2 : 3)} %`);
  const range = (from, to) => Array.from({ length: to - from + 1 }, (_, k) => from + k);

  /** Axes with ticks `[place, text]`; places of data are given by `x` and `y`, from 0 to 1. */
  function axes(svg, labels, xTicks, yTicks) {
    const inner = { width: WIDTH - LEFT - RIGHT, height: HEIGHT - TOP - BOTTOM };
    const x = (share) => LEFT + share * inner.width;
    const y = (share) => TOP + (1 - share) * inner.height;
    const area = shape("svg", { x: LEFT, y: TOP, ...inner, viewBox: `${LEFT} ${TOP} ${inner.width} ${inner.height}` });
    const parts = xTicks.flatMap(([share, text]) => [
      shape("line", { class: "rule", x1: x(share), x2: x(share), y1: y(0), y2: y(1) }),
      shape("text", { x: x(share), y: y(0) + 15, "text-anchor": "middle" }, text),
    ]);
    parts.push(...yTicks.flatMap(([share, text]) => [
      shape("line", { class: "rule", x1: x(0), x2: x(1), y1: y(share), y2: y(share) }),
      shape("text", { x: x(0) - 5, y: y(share) + 4, "text-anchor": "end" }, text),
    ]));
    parts.push(shape("text", { x: x(0.5), y: HEIGHT - 6, "text-anchor": "middle" }, labels[0]));
    parts.push(shape("text", { transform: `translate(11 ${y(0.5)}) rotate(-90)`, "text-anchor": "middle" }, labels[1]));
    svg.replaceChildren(...parts, area);
    return { area, x, y };
  }

  function line(points, attributes) {
    const known = points.filter((p) => p.every(Number.isFinite));
    return shape("polyline", { ...attributes, points: known.map((p) => p.map((v) => v.toFixed(1)).join()).join(" ") });
  }

  function drawLoss(svg, now) {
    const top = 1.15 * Math.max(...now.loss.map((v, k) => v + 2 * now.stderr[k]));
    const step = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10].find((s) => top / s <= 6) || 20;
    const yTicks = range(0, Math.floor(top / step)).map((k) => [(k * step) / top, short(k * step)]);
    const { area, x, y } = axes(svg, ["scale ε", "loss"], [0, 0.2, 0.4, 0.6, 0.8, 1].map((e) => [e, String(e)]), yTicks);
    const band = [...now.eps.map((e, k) => [x(e), y((now.loss[k] + 2 * now.stderr[k]) / top)]),
      ...now.eps.map((e, k) => [x(e), y((now.loss[k] - 2 * now.stderr[k]) / top)]).reverse()];
    area.append(shape("polygon", { class: "band", points: band.map((p) => p.map((v) => v.toFixed(1)).join()).join(" ") }));
    for (const order of ORDERS) area.append(line(now.eps.map((e, k) => [x(e), y(now.values[order][k] / top)]), { class: `order-${order}` }));
    area.append(line(now.eps.map((e, k) => [x(e), y(now.loss[k] / top)]), { class: "exact" }));
    area.append(shape("line", { class: "here", x1: x(now.at), x2: x(now.at), y1: y(0), y2: y(1) }));
    area.append(shape("circle", { class: "spot", cx: x(now.at), cy: y(now.here.loss / top), r: 4 }));
  }

  function drawRest(svg, now) {
    const some = ORDERS.flatMap((order) => now.rest[order].slice(1)).filter((v) => v > 0);
    const high = some.length ? Math.ceil(Math.log10(Math.max(...some))) : 0;
    const low = some.length ? Math.max(high - 8, Math.floor(Math.log10(Math.min(...some)))) : -1;
    const xLow = Math.log10(now.eps[1]);
    const yTicks = range(low, high).filter((p) => (high - p) % 2 === 0).map((p) => [(p - low) / (high - low), p === 0 ? "1" : `10${raised(p)}`]);
    const { area, x, y } = axes(svg, ["scale ε", "|exact − polynomial|"], [0.02, 0.05, 0.1, 0.2, 0.5, 1].map((e) => [1 - Math.log10(e) / xLow, String(e)]), yTicks);
    for (const order of ORDERS) {
      const points = now.eps.map((e, k) => [x(1 - Math.log10(e) / xLow), y((Math.log10(now.rest[order][k]) - low) / (high - low))]);
      area.append(line(points, { class: `order-${order}` }));
      points.forEach(([cx, cy], k) => {
        const known = now.rest[order][k] > 2 * now.stderr[k]; // beyond the error of Monte Carlo
        if (Number.isFinite(cy)) area.append(shape("circle", { class: `order-${order} ${known ? "known" : "open"}`, cx, cy, r: 2.4 }));
      });
    }
    if (!some.length) {
      area.append(shape("text", { x: x(0.5), y: y(0.5), "text-anchor": "middle" }, "no mixing and no noise: nothing is left out"));
    }
    if (now.at > 0) area.append(shape("line", { class: "here", x1: x(1 - Math.log10(now.at) / xLow), x2: x(1 - Math.log10(now.at) / xLow), y1: y(0), y2: y(1) }));
  }

  /** What each term adds at the chosen scale, as a table with bars. */
  function drawTerms(body, now) {
    const e = now.at;
    const t = now.terms;
    const rows = [
      ["standard loss", t.standard], ["ε R<sub>1</sub>", e * t.R1], ["ε² R<sub>2</sub>", e ** 2 * t.R2], ["ε² R<sub>3</sub>", e ** 2 * t.R3],
      ["ε² additive noise", e ** 2 * (t.R2_add + t.R3_add)], ["ε² multiplicative noise", e ** 2 * (t.R2_mult + t.R3_mult)],
      ["ε³ C<sub>3</sub>", e ** 3 * t.C3], ["left by order 3", now.here.loss - now.here.values[3]],
    ];
    const largest = Math.max(...rows.map(([, value]) => Math.abs(value)), 1e-12);
    body.replaceChildren(...rows.map(([name, value]) => {
      const bar = element("span", { className: value < 0 ? "bar minus" : "bar" });
      bar.style.width = `${(100 * Math.abs(value)) / largest}%`;
      return element("tr", {}, element("th", { scope: "row", innerHTML: name }), element("td", {}, short(value)), element("td", {}, bar));
    }));
  }

  function inWords(now) {
    const { loss: exact, stderr: error } = now.here;
    const parts = ORDERS.map((order) => {
      const reach = now.reach[order];
      const far = reach === 1 ? "for every ε" : reach ? `up to ε = ${short(reach)}` : "at no ε shown";
      return `Order ${order} is off by ${percent(Math.abs(exact - now.here.values[order]) / exact)}, and within 10 % ${far}.`;
    });
    return `At ε = ${now.at} the exact loss is ${exact.toPrecision(4)}${error ? ` ± ${short(Number(error.toPrecision(1)))}` : ""}. ${parts.join(" ")}`;
  }

  function build(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const eps = [0, ...data.grid.eps];
    const state = { record: 0, eps: 50 };
    for (const name of ["alpha", "add_noise", "mult_noise"]) state[name] = data.grid[name].indexOf(data.start[name]);

    // The choice stands in the address, so that it can be sent on: #laws:network,ε in percent,α,σ_add,σ_mult
    const names = ["record", "eps", "alpha", "add_noise", "mult_noise"];
    const limits = [data.records.length - 1, 100, ...names.slice(2).map((name) => data.grid[name].length - 1)];
    const given = (location.hash.match(/^#laws:([\d,]+)$/) || [])[1]?.split(",").map(Number) || [];
    if (given.length === names.length && given.every((v, k) => v <= limits[k])) names.forEach((name, k) => (state[name] = given[k]));
    const remember = () => history.replaceState(null, "", `#laws:${names.map((name) => state[name]).join()}`);

    const picture = (label) => shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label });
    const loss = picture("Exact loss and its polynomials of order 1 to 3 against the scale");
    const rest = picture("What the polynomials leave of the loss, against the scale, both logarithmic");
    const body = element("tbody", {});
    const words = element("p", { className: "words" });
    words.setAttribute("role", "status");

    function draw() {
      const record = data.records[state.record];
      const { alpha, add_noise: add, mult_noise: mult } = state;
      const t = terms(record.coefficients, data.moments[alpha], data.grid.add_noise[add], data.grid.mult_noise[mult]);
      const values = range(0, 3).map((order) => eps.map((e) => polynomial(t, e, order)));
      const stderr = [0, ...record.stderr[alpha][add][mult]];
      const exact = [0, ...record.excess[alpha][add][mult]].map((v, k) => v + values[2][k]);
      const left = values.map((v) => v.map((p, k) => Math.abs(exact[k] - p)));
      const reach = values.map((v) => radius(eps, exact, v));
      const at = state.eps / 100;
      const excess = exact.map((v, k) => v - values[2][k]);
      const poly = range(0, 3).map((order) => polynomial(t, at, order));
      const here = { // what is left out falls like ε³, its standard error like ε at most
        loss: at ? poly[2] + between(eps, excess, at, 3) : t.standard, stderr: at ? between(eps, stderr, at, 1) : 0, values: poly,
      };
      const now = { eps, at, here, terms: t, values, loss: exact, stderr, rest: left, reach };
      drawLoss(loss, now);
      drawRest(rest, now);
      drawTerms(body, now);
      words.textContent = inWords(now);
    }

    function slider(name, title, choices, text) {
      const input = element("input", { type: "range", min: 0, max: choices.length - 1, step: 1, value: state[name] });
      const shown = element("output", {});
      const update = () => {
        shown.textContent = text(choices[state[name]]);
        input.setAttribute("aria-valuetext", shown.textContent);
      };
      input.addEventListener("input", () => {
        state[name] = Number(input.value);
        update();
        draw();
        remember();
      });
      update();
      return element("label", {}, element("span", { innerHTML: title }), input, shown);
    }

    const select = element("select", {}, ...data.records.map((r, k) => element("option", { value: k }, r.title)));
    select.value = state.record;
    select.addEventListener("change", () => {
      state.record = Number(select.value);
      draw();
      remember();
    });
    const controls = element("div", { className: "controls" },
      element("label", {}, element("span", {}, "network"), select),
      slider("eps", "scale ε", range(0, 100).map((p) => p / 100), String),
      slider("alpha", "mixing α", data.grid.alpha, (a) => (a ? String(a) : "none")),
      slider("add_noise", "noise σ<sub>add</sub>", data.grid.add_noise, String),
      slider("mult_noise", "noise σ<sub>mult</sub>", data.grid.mult_noise, String));
    const key = element("p", { className: "key" }, ...["exact", "order-1", "order-2", "order-3"].map((name) =>
      element("span", {}, shape("svg", { viewBox: "0 0 28 8", "aria-hidden": "true" }, line([[0, 4], [28, 4]], { class: name })), name.replace("-", " "))));
    const table = element("table", {}, element("caption", {}, "What each term adds at this ε"), body);
    root.querySelector(".still").replaceWith(controls, words, key, element("div", { className: "plots" }, loss, rest), table);
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "The expansion at laws of your choice");
    draw();
  }

  document.querySelectorAll(".explore").forEach(build);
})();
