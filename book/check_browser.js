// What `check_browser.py` asks a page: every function returns a list of faults, each one line of text.
(() => {
  const FOCUSABLE = "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex], [contenteditable=true]";
  const ACTS = "[onclick], [role=button], [role=slider], [role=switch], [role=checkbox], [role=link]";
  const RAW_TEX = [/\\\(/, /\\\[/, /\\begin\{/, /\$[^$\n]*\\[a-z]+[^$\n]*\$/];

  // What fades in is measured, and seen by Tab, as it is in the end
  const still = document.createElement("style");
  still.textContent = "* { transition: none !important; animation: none !important; scroll-behavior: auto !important; }";
  document.head.append(still);

  const main = () => document.querySelector("#main-content, main") || document.body;
  const visible = (el) => el.checkVisibility({ visibilityProperty: true }) && el.getClientRects().length > 0;
  const unique = (list) => [...new Set(list)];

  /** An element in a few words: `a.reference "Text"`. */
  function name(el) {
    const classes = [...el.classList].slice(0, 2).map((c) => "." + c).join("");
    const label = el.id ? "#" + el.id : classes;
    const text = (el.getAttribute("aria-label") || el.title || el.textContent || el.value || "").trim();
    return `${el.tagName.toLowerCase()}${label} "${text.replace(/\s+/g, " ").slice(0, 40)}"`;
  }

  function images() {
    const faults = [];
    for (const img of document.images) {
      const src = img.getAttribute("src") || "";
      const alt = img.getAttribute("alt");
      const decorative = alt === "" && ["presentation", "none"].includes(img.getAttribute("role"));
      if (!img.complete || img.naturalWidth === 0) faults.push(`broken image ${src.slice(0, 80)}`);
      // Without a text of its own an image of a cell gets its address as one
      if (!decorative && (!alt || !alt.trim() || alt === src)) faults.push(`image without alt text: ${src.slice(0, 80)}`);
    }
    return faults;
  }

  /** Loads what waits until it is scrolled to, so that `images` can judge it. */
  function loadImages() {
    const pending = [...document.images].filter((img) => !img.complete || img.loading === "lazy");
    for (const img of pending) img.loading = "eager";
    return Promise.all(pending.map((img) => img.decode().catch(() => null))).then(() => null);
  }

  function mathematics() {
    const faults = [];
    for (const el of document.querySelectorAll(".math")) {
      if (!el.querySelector("mjx-container")) faults.push(`formula not rendered: ${el.textContent.trim().slice(0, 60)}`);
    }
    for (const el of document.querySelectorAll("mjx-merror, [data-mjx-error]")) {
      faults.push(`formula with an error: ${el.getAttribute("data-mjx-error") || el.textContent.trim().slice(0, 60)}`);
    }
    const walker = document.createTreeWalker(main(), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode;
      if (node.parentElement.closest("code, pre, script, style, textarea, mjx-container, .math")) continue;
      if (RAW_TEX.some((raw) => raw.test(node.data))) faults.push(`raw TeX: ${node.data.trim().slice(0, 60)}`);
    }
    return unique(faults);
  }

  /** Whether what sticks out on the right can be scrolled to inside a box of its own. */
  function scrolls(el) {
    const { right } = el.getBoundingClientRect();
    for (let up = el.parentElement; up && up !== document.body; up = up.parentElement) {
      const { overflowX, display } = getComputedStyle(up);
      if (display === "inline" || overflowX === "visible") continue;
      if (["auto", "scroll"].includes(overflowX)) return true;
      if (right > up.getBoundingClientRect().right + 1) return false; // cut off
    }
    return false;
  }

  function overflow() {
    const root = document.documentElement;
    const faults = [];
    if (root.scrollWidth > root.clientWidth + 1) {
      faults.push(`the page scrolls sideways, ${root.scrollWidth} px in ${root.clientWidth} px`);
    }
    const wide = [];
    for (const el of main().querySelectorAll("*")) {
      const box = el.getBoundingClientRect();
      if (box.width < 2 || box.right <= root.clientWidth + 1 || !visible(el)) continue;
      if (el.closest("mjx-assistive-mml") || wide.some((other) => other.contains(el))) continue;
      const position = getComputedStyle(el).position;
      if (position === "fixed" || scrolls(el)) continue;
      wide.push(el);
    }
    return faults.concat(wide.slice(0, 3).map((el) => `${name(el)} sticks out of the page`));
  }

  /** What is wider than its column, so that a part of it is seen only after scrolling sideways, or never. */
  function cut() {
    const wide = [];
    for (const el of main().querySelectorAll("*")) {
      if (el.scrollWidth <= el.clientWidth + 1 || el.clientWidth < 2 || !visible(el)) continue;
      if (getComputedStyle(el).overflowX === "visible" || el.closest("mjx-assistive-mml, span.math, select, textarea, input, svg")) continue;
      if (el.tagName.startsWith("MJX-") && el.tagName !== "MJX-CONTAINER") continue; // parts of a formula
      if (!wide.some((other) => other.contains(el))) wide.push(el);
    }
    return unique(wide.map((el) => `${el.scrollWidth} px in ${el.clientWidth} px: ${name(el)}`));
  }

  const channel = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);

  /** [r, g, b, alpha] of a computed color, whatever its notation. */
  function color(css) {
    const plain = css.match(/^rgba?\(([\d.]+), ([\d.]+), ([\d.]+)(?:, ([\d.]+))?\)$/);
    if (plain) return [+plain[1], +plain[2], +plain[3], plain[4] === undefined ? 1 : +plain[4]];
    const canvas = document.createElement("canvas").getContext("2d");
    canvas.fillStyle = css;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  }

  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3]));

  function background(el) {
    const layers = [];
    for (let up = el; up; up = up.parentElement) {
      const layer = color(getComputedStyle(up).backgroundColor);
      if (layer[3] > 0) layers.push(layer);
      if (layer[3] === 1) break;
    }
    const canvas = getComputedStyle(document.documentElement).colorScheme.includes("dark") ? [18, 18, 18] : [255, 255, 255];
    return layers.reverse().reduce((below, layer) => over(layer, below), canvas);
  }

  /** Text whose contrast is below that of WCAG 2.1, level AA. */
  function contrast() {
    const seen = new Map();
    const walker = document.createTreeWalker(main(), NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const el = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || seen.has(el) || el.closest("script, style, svg, mjx-assistive-mml, [disabled]")) continue;
      seen.set(el, null);
      if (!visible(el)) continue;
      const style = getComputedStyle(el);
      const size = parseFloat(style.fontSize);
      const needed = size >= 24 || (size >= 18.66 && +style.fontWeight >= 700) ? 3 : 4.5;
      const below = background(el);
      const [a, b] = [luminance(over(color(style.color), below)), luminance(below)];
      const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      if (ratio < needed - 0.005) seen.set(el, `contrast ${ratio.toFixed(2)}, needed ${needed}: ${name(el)}`);
    }
    return unique([...seen.values()].filter(Boolean));
  }

  const looks = (el) => [el, el.firstElementChild, el.nextElementSibling, el.parentElement].filter(Boolean).map((near) => {
    const s = getComputedStyle(near);
    return [s.outlineStyle, s.outlineWidth, s.boxShadow, s.borderColor, s.backgroundColor, s.color, s.textDecorationLine].join();
  }).join("|");

  let stops = [], before = new Map(), unseen = [], expected = [];

  function watch({ target }) {
    stops.push(target);
    if (before.has(target) && before.get(target) === looks(target)) unseen.push(target);
  }

  /** The next Tab starts at the top of the page, wherever the focus was. */
  function fromTheTop() {
    const top = document.createElement("span");
    top.tabIndex = -1;
    document.body.prepend(top);
    top.focus();
    top.remove();
    scrollTo(0, 0);
  }

  /** Remember how all that can be reached looks without focus, and watch the focus from now on. */
  function watchFocus() {
    fromTheTop();
    const all = [...document.querySelectorAll(FOCUSABLE)].filter((el) => visible(el) && !el.disabled && !el.closest("[inert]"));
    expected = all.filter((el) => el.tabIndex >= 0);
    before = new Map(expected.map((el) => [el, looks(el)]));
    [stops, unseen] = [[], []];
    document.addEventListener("focusin", watch); // a second time changes nothing
    return expected.length;
  }

  /** Whether the focus has come round. */
  const cameRound = () => stops.length > 1 && (document.activeElement === document.body || stops.indexOf(stops[0], 1) > 0);

  function keyboard() {
    const reached = new Set(stops);
    const group = (el) => el.type === "radio" && el.name && [...reached].some((other) => other.name === el.name);
    const faults = expected.filter((el) => visible(el) && !reached.has(el) && !group(el)).map((el) => `Tab does not reach ${name(el)}`);
    for (const el of document.querySelectorAll(ACTS)) {
      if (visible(el) && el.tabIndex < 0 && !el.matches("[aria-disabled=true]")) faults.push(`Tab does not reach ${name(el)}`);
    }
    for (const el of expected) if (el.tabIndex > 0) faults.push(`tabindex ${el.tabIndex} breaks the order: ${name(el)}`);
    return unique([...faults, ...unseen.map((el) => `focus cannot be seen on ${name(el)}`)]);
  }

  let skip = null;
  const focusSkipLink = () => skip.focus();

  /** After the first Tab: the focus is on a link to the content, in view. */
  function skipLink() {
    const link = document.activeElement;
    if (link.getAttribute("href") !== "#" + main().id) return ["the first Tab does not reach a skip link"];
    skip = link;
    const box = link.getBoundingClientRect();
    const shown = visible(link) && box.top >= -1 && box.left >= -1 && box.width > 1 && box.bottom <= innerHeight && box.right <= innerWidth;
    return shown ? [] : ["the skip link has the focus and is not in view"];
  }

  /** After Enter on the skip link and another Tab: inside the content, or behind it where nothing inside takes the focus. */
  function skipped() {
    const target = document.getElementById(location.hash.slice(1));
    const here = document.activeElement;
    const inside = target && (target.contains(here) || target.compareDocumentPosition(here) & Node.DOCUMENT_POSITION_FOLLOWING);
    return inside ? [] : ["the skip link does not lead to the content"];
  }

  window.bookCheck = {
    images, loadImages, mathematics, overflow, cut, contrast, watchFocus, cameRound, keyboard, skipLink, focusSkipLink, skipped,
  };
})();
