/* Plays how decision boundaries change while networks are trained. Data: figures/anim_toy.py, in the page. */
(() => {
  "use strict";

  const FRAME = 160; // milliseconds
  const SPEEDS = [0.5, 1, 2, 4];
  const PIXELS = 264; // side of a panel, for screens with two pixels for one

  function element(tag, attributes, ...children) {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  }

  function rgb(style, name) {
    const hex = style.getPropertyValue(name).trim();
    return [1, 3, 5].map((k) => parseInt(hex.slice(k, k + 2), 16));
  }

  /** 256 colors from class 0 over the middle, which is that of the page, to class 1. */
  function colors(root) {
    const style = getComputedStyle(root);
    const blend = (a, b, share) => a.map((x, k) => x + (b[k] - x) * share);
    const middle = rgb(style, "--middle");
    const [zero, one] = ["--class-0", "--class-1"].map((name) => blend(rgb(style, name), middle, 0.35)); // points stand out
    return {
      map: Array.from({ length: 256 }, (_, v) => (v < 128 ? blend(zero, middle, v / 127.5) : blend(middle, one, v / 127.5 - 1))),
      ink: style.getPropertyValue("--ink"),
      edge: style.getPropertyValue("--middle"),
      classes: [style.getPropertyValue("--class-0"), style.getPropertyValue("--class-1")],
    };
  }

  /** Where the map passes one half: segments between edges of cells, in units of grid points. */
  function boundary(values, side, half = 127.5) {
    const segments = [];
    for (let y = 0; y + 1 < side; y++) {
      for (let x = 0; x + 1 < side; x++) {
        const corners = [[x, y], [x + 1, y], [x + 1, y + 1], [x, y + 1]];
        const ends = [];
        corners.forEach(([ax, ay], k) => {
          const [bx, by] = corners[(k + 1) % 4];
          const a = values[ay * side + ax] - half;
          const b = values[by * side + bx] - half;
          if (a * b < 0) ends.push([ax + ((bx - ax) * a) / (a - b), ay + ((by - ay) * a) / (a - b)]);
        });
        for (let k = 0; k + 1 < ends.length; k += 2) segments.push([ends[k], ends[k + 1]]);
      }
    }
    return segments;
  }

  /** The maps as numbers: `values(scheme, frame)`. */
  async function readMaps(data) {
    const image = new Image();
    image.src = data.maps;
    await image.decode();
    const canvas = element("canvas", { width: image.width, height: image.height });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    return (scheme, frame) => {
      const tile = context.getImageData(scheme * data.side, frame * data.side, data.side, data.side).data;
      return tile.filter((_, k) => k % 4 === 0);
    };
  }

  function paint(canvas, values, data, palette) {
    const { side, reach } = data;
    const context = canvas.getContext("2d");
    const tile = new ImageData(side, side);
    values.forEach((v, k) => tile.data.set([...palette.map[v], 255], 4 * k));
    const small = element("canvas", { width: side, height: side });
    small.getContext("2d").putImageData(tile, 0, 0);
    context.drawImage(small, 0, 0, PIXELS, PIXELS);
    const scale = PIXELS / side;
    context.beginPath();
    for (const [a, b] of boundary(values, side)) {
      context.moveTo((a[0] + 0.5) * scale, (a[1] + 0.5) * scale);
      context.lineTo((b[0] + 0.5) * scale, (b[1] + 0.5) * scale);
    }
    context.strokeStyle = palette.ink;
    context.lineWidth = 2.5;
    context.stroke();
    const place = (x) => ((x / reach + 1) / 2 * (side - 1) + 0.5) * scale;
    context.strokeStyle = palette.edge;
    context.lineWidth = 1;
    for (const [x, y, label] of data.points) {
      context.beginPath();
      if (label) context.arc(place(x), place(-y), 3.2, 0, 2 * Math.PI);
      else context.rect(place(x) - 3, place(-y) - 3, 6, 6);
      context.fillStyle = palette.classes[label];
      context.fill();
      context.stroke();
    }
  }

  async function build(root) {
    const data = JSON.parse(root.querySelector("script").textContent);
    const values = await readMaps(data);
    const last = data.epochs.length - 1;
    let frame = last;
    let timer = 0;

    const panels = data.schemes.map((scheme) => {
      const canvas = element("canvas", { width: PIXELS, height: PIXELS });
      canvas.setAttribute("role", "img");
      const score = element("span", {});
      return { ...scheme, canvas, score, box: element("div", { className: "panel" }, element("b", {}, scheme.title), canvas, score) };
    });
    const button = element("button", { type: "button" });
    const slider = element("input", { type: "range", min: 0, max: last, step: 1, value: last });
    const shown = element("output", {});
    slider.setAttribute("aria-label", `Epoch of ${data.name}`);
    const speed = element("select", {}, ...SPEEDS.map((v) => element("option", { value: v, selected: v === 1 }, `${v}×`)));
    speed.setAttribute("aria-label", `Speed of the training on ${data.name}`);

    function draw() {
      const epoch = data.epochs[frame];
      const palette = colors(root);
      panels.forEach((panel, k) => {
        const accuracy = `${panel.accuracy[frame].toFixed(1)} %`;
        paint(panel.canvas, values(k, frame), data, palette);
        panel.score.textContent = accuracy;
        panel.canvas.setAttribute("aria-label", `${panel.title}, epoch ${epoch}: map of class 1; test accuracy ${accuracy}`);
      });
      slider.value = frame;
      slider.setAttribute("aria-valuetext", `epoch ${epoch}`);
      shown.textContent = `epoch ${epoch}`;
    }

    function pause() {
      clearInterval(timer);
      timer = 0;
      button.textContent = "▶ Play";
      button.setAttribute("aria-label", `Play the training on ${data.name}`);
    }

    function play() {
      if (frame === last) frame = 0;
      draw();
      clearInterval(timer);
      timer = setInterval(() => {
        frame += 1;
        draw();
        if (frame === last) pause();
      }, FRAME / Number(speed.value));
      button.textContent = "❚❚ Pause";
      button.setAttribute("aria-label", `Pause the training on ${data.name}`);
    }

    speed.addEventListener("change", () => timer && play());
    button.addEventListener("click", () => (timer ? pause() : play()));
    slider.addEventListener("input", () => {
      pause();
      frame = Number(slider.value);
      draw();
    });
    new MutationObserver(draw).observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });

    const controls = element("div", { className: "controls" }, button, speed, slider, shown);
    root.querySelector(".still").replaceWith(controls, element("div", { className: "panels" }, ...panels.map((p) => p.box)));
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", `Training on ${data.name}`);
    pause();
    draw();
    if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
    const seen = new IntersectionObserver((entries) => {
      if (!entries.some((entry) => entry.isIntersecting)) return;
      seen.disconnect(); // plays once by itself
      play();
    }, { threshold: 0.6 });
    seen.observe(root);
  }

  document.querySelectorAll(".toy-player").forEach(build);
})();
