// What every widget shares: DOM that cannot run model text, readable invisible characters, calls to the kernel.
// The Python half joins this file and a widget's into one self-contained module, so names here are unique to it.

const SVG = "http://www.w3.org/2000/svg";
const REFUSED = new Set(["srcdoc", "href", "src", "action", "formaction", "style"]);
const HIDDEN =
  /[\p{C}\p{Zl}\p{Zp}\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\u{e0100}-\u{e01ef}]/gu;
const KNOWN = { "\n": "⏎", "\t": "⇥", "\r": "␍" };

/** Model text as it is shown: control, zero-width, bidi and tag characters become visible marks. */
export function visible(text) {
  return String(text).replace(
    HIDDEN,
    (c) => KNOWN[c] ?? `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`,
  );
}

/** Which attributes `h` sets: nothing that loads, navigates or runs. */
export function checkAttribute(name) {
  if (/^on/i.test(name) || REFUSED.has(name.toLowerCase())) throw new Error(`refused attribute ${name}`);
  return name;
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.replace(/^on/, ""), value);
    else element.setAttribute(checkAttribute(name), value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** An element; strings among the children become text nodes, functions among the attributes become listeners. */
export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** A binary trait as float32, whatever view it arrives in. */
export function floats(view) {
  if (!view || !view.byteLength) return new Float32Array(0);
  if (view instanceof ArrayBuffer) return new Float32Array(view);
  if (view.byteOffset % 4 === 0) return new Float32Array(view.buffer, view.byteOffset, view.byteLength >> 2);
  return new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + (view.byteLength & ~3)));
}

/** Strength of a value among its peers, in ten steps: a class name, so that no inline style is needed. */
export function level(value, largest) {
  if (!(largest > 0) || !Number.isFinite(value) || value === 0) return 0;
  return Math.min(10, Math.max(1, Math.ceil((Math.abs(value) / largest) * 10)));
}

/** A number for people: three significant digits, a true minus sign, no noise. */
export function number(value, digits = 3) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e5 || size < 1e-3
      ? value.toExponential(Math.max(0, digits - 2))
      : String(Number(value.toPrecision(digits)));
  return text.replace("-", "−");
}

/** A share as a percentage that does not round to a false 0 or 100. */
export function percent(value) {
  if (!Number.isFinite(value)) return "–";
  if (value > 0 && value < 0.001) return "<0.1%";
  if (value < 1 && value > 0.999) return ">99.9%";
  return `${(value * 100).toFixed(value < 0.1 ? 1 : 0)}%`;
}

/** Runs one call at a time and keeps only the newest request that waits: a dragged slider asks once per answer. */
export function newest(call) {
  let running = false;
  let waiting = null;
  async function run(value) {
    running = true;
    try {
      return await call(value);
    } finally {
      running = false;
      if (waiting) {
        const next = waiting;
        waiting = null;
        run(next.value).then(next.resolve, next.reject);
      }
    }
  }
  return (value) => {
    if (!running) return run(value);
    if (waiting) waiting.resolve(undefined);
    return new Promise((resolve, reject) => (waiting = { value, resolve, reject }));
  };
}

/** Calls to the Python half, each answered by its own envelope; an error in Python is an error here. */
export function remote(model, { patience = 60000 } = {}) {
  const open = new Map();
  const owner = Math.random().toString(36).slice(2);
  let count = 0;
  const answer = (message) => {
    const entry = message && open.get(message.id);
    if (!entry) return;
    open.delete(message.id);
    clearTimeout(entry.timer);
    if (message.ok) entry.resolve(message.result);
    else entry.reject(new Error(message.error));
  };
  model.on("msg:custom", answer);
  return {
    call(method, args = {}) {
      const id = `${owner}-${++count}`;
      return new Promise((resolve, reject) => {
        const late = () => {
          open.delete(id);
          reject(new Error("the kernel does not answer; it is busy, or gone: run the cell again"));
        };
        open.set(id, { resolve, reject, timer: setTimeout(late, patience) });
        model.send({ id, method, args });
      });
    },
    close() {
      model.off("msg:custom", answer);
      for (const entry of open.values()) clearTimeout(entry.timer);
      open.clear();
    },
  };
}

/** A widget's outer frame: title, place for state, content, and the line where errors are shown. */
export function frame(model, el, kind, title) {
  const kernel = remote(model);
  const note = h("span", { class: "wb-note" });
  const heading = h("span", { class: "wb-title" }, title);
  const head = h("header", { class: "wb-head" }, heading, note);
  const body = h("div", { class: "wb-body" });
  const alert = h("div", { class: "wb-error", role: "alert" });
  const root = h("section", { class: `wb wb-${kind}`, "aria-label": title }, head, body, alert);
  let local = "";
  const draw = () => {
    const text = [local, model.get("error")].filter(Boolean).join("\n");
    alert.hidden = !text;
    alert.replaceChildren(visible(text).replaceAll("⏎", "\n"));
  };
  const fail = (error) => {
    local = error ? String(error.message ?? error) : "";
    draw();
  };
  const ask = (method, args) =>
    kernel.call(method, args).then(
      (result) => {
        if (local) fail(null);
        return result;
      },
      (error) => fail(error),
    );
  const undo = [() => kernel.close()];
  const watch = (names, callback) => {
    for (const name of names) {
      model.on(`change:${name}`, callback);
      undo.push(() => model.off(`change:${name}`, callback));
    }
    callback();
  };
  watch(["error"], draw);
  el.append(root);
  kernel.call("hello").catch(() => {}); // opens the kernel's second message thread before it matters
  return { root, head, heading, note, body, ask, fail, watch, close: () => undo.forEach((step) => step()) };
}

/** Tokens as spans whose background tells the value; values are also in the label that is read aloud. */
export function tokenSpans(tokens, values, { largest, special = [], role = null, selected = -1 } = {}) {
  const peak = largest ?? values.reduce((most, v) => Math.max(most, Math.abs(v)), 0);
  return tokens.map((text, i) => {
    const value = values[i] ?? 0;
    const classes = ["wb-tok", `wb-l${level(value, peak)}`];
    if (value < 0) classes.push("wb-neg");
    if (special[i]) classes.push("wb-special");
    const span = h(
      "span",
      {
        class: classes.join(" "),
        role,
        title: values.length ? `${visible(text)}  ${number(value)}` : null,
        "aria-label": role ? `${visible(text)}${values.length ? `, ${number(value)}` : ""}` : null,
        "aria-selected": role ? String(i === selected) : null,
        tabindex: role ? (i === Math.max(0, selected) ? 0 : -1) : null,
        "data-index": i,
      },
      visible(text),
    );
    return span;
  });
}

/** Arrow keys move along the tokens, Home and End jump, Enter and Space choose; one token at a time is in the tab order. */
export function rove(list, { choose, look = () => {} }) {
  const items = () => [...list.querySelectorAll("[data-index]")];
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const focus = (target) => {
    for (const item of items()) item.setAttribute("tabindex", item === target ? "0" : "-1");
    target.focus();
  };
  list.setAttribute("data-lm-suppress-shortcuts", "true");
  list.addEventListener("focusin", (event) => {
    const item = event.target.closest("[data-index]");
    if (item) look(Number(item.dataset.index));
  });
  list.addEventListener("click", (event) => {
    const item = event.target.closest("[data-index]");
    if (!item) return;
    focus(item);
    choose(Number(item.dataset.index));
  });
  list.addEventListener("keydown", (event) => {
    const all = items();
    const here = all.indexOf(document.activeElement);
    if (here < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
    if (event.key in step) focus(all[Math.min(all.length - 1, Math.max(0, here + step[event.key]))]);
    else if (event.key === "Enter" || event.key === " ") choose(Number(all[here].dataset.index));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
}

/** A horizontal bar whose length is a share of its track, drawn as SVG so that it also prints. */
export function bar(share, kind = "") {
  const width = Math.max(0, Math.min(1, Number.isFinite(share) ? share : 0)) * 100;
  return svg(
    "svg",
    { class: `wb-bar ${kind}`, viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "wb-track", x: 0, y: 0, width: 100, height: 8 }),
    svg("rect", { class: "wb-fill", x: 0, y: 0, width: width.toFixed(2), height: 8 }),
  );
}

/** A button that asks Python for this state's code and puts it on the clipboard, or shows it where there is none. */
export function codeButton(ask, place) {
  const label = "Copy as code";
  const button = h("button", { type: "button", class: "wb-button", onclick: copy }, label);
  async function copy() {
    const code = await ask("code");
    if (code === undefined) return;
    place.hidden = false;
    place.replaceChildren(h("pre", { class: "wb-code", tabindex: 0, "aria-label": "code for this state" }, visible(code).replaceAll("⏎", "\n")));
    try {
      await navigator.clipboard.writeText(code);
      button.textContent = "Copied ✓";
    } catch {
      button.textContent = "Shown below";
    }
    setTimeout(() => (button.textContent = label), 1800);
  }
  return button;
}
