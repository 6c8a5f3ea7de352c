// Turns a feature up and down and shows, side by side, what the model says without and with the edit.
import { bar, codeButton, frame, h, newest, number, percent, visible } from "./base.js";

const QUIET = { "data-lm-suppress-shortcuts": "true" };

/** What a value of an operation means, beside the slider. */
export function meaning(op, value, most) {
  if (op === "scale") return `× ${number(value)} of its own activation`;
  if (!(most > 0)) return "raw units";
  return `${number(value / most, 2)} × max activation`;
}

/** The line under an edit: where it writes, what its largest activation is, what it is believed to mean. */
export function about(fact) {
  const parts = [];
  if (fact.site) parts.push(`writes to ${fact.site}`);
  if (fact.max > 0) parts.push(`max activation ${number(fact.max)} on ${fact.corpus}`);
  if (fact.note) parts.push(fact.note);
  return parts.join("  ·  ");
}

/** The words that tell how the two continuations differ. */
export function verdict(result) {
  if (!result.steered) return "";
  const changed = result.steered.marks.filter(Boolean).length;
  const gone = result.base.marks.filter(Boolean).length;
  if (!changed && !gone) return "same text";
  return `${changed} of ${result.steered.tokens.length} tokens differ`;
}

function side(title, part, kind, note) {
  const mark = kind === "wb-on" ? "wb-diff" : "wb-gone";
  const text = part
    ? part.tokens.map((token, i) => h("span", { class: `wb-tok ${part.marks[i] ? mark : ""} ${part.special[i] ? "wb-special" : ""}`, title: part.marks[i] ? (kind ? "only with the edit" : "only without the edit") : null }, visible(token)))
    : [h("span", { class: "wb-caption" }, "…")];
  return h("div", { class: `wb-side ${kind}`, "aria-label": title }, h("div", { class: "wb-sub" }, h("span", {}, title), h("span", {}, note)), h("div", { class: "wb-tokens wb-continuation" }, text));
}

function nextTokens(rows) {
  const head = h("tr", {}, ["next token", "unsteered", "", "steered", "", "change"].map((name) => h("th", { scope: "col" }, name)));
  const body = rows.map((row) => {
    const change = row.steered - row.base;
    const told = Math.abs(change) < 0.0005 ? "=" : `${change > 0 ? "▲" : "▼"} ${number(Math.abs(change) * 100, 2)} pp`;
    return h(
      "tr",
      {},
      h("td", {}, h("span", { class: "wb-tok wb-plain" }, visible(row.token))),
      h("td", { class: "wb-num" }, percent(row.base)),
      h("td", { class: "wb-barcell" }, bar(row.base, "wb-base")),
      h("td", { class: "wb-num" }, percent(row.steered)),
      h("td", { class: "wb-barcell" }, bar(row.steered, "wb-steered")),
      h("td", { class: "wb-num" }, told),
    );
  });
  return h("table", { class: "wb-next" }, h("thead", {}, head), h("tbody", {}, body));
}

function firing(result) {
  const chip = (text) => h("span", { class: "wb-chip" }, text);
  const chips = (result.firings ?? []).flatMap((one) => [
    chip(`${one.name} touched ${one.positions} tokens`),
    chip(`‖Δ‖/‖x‖ mean ${number(one.mean_ratio, 2)}, max ${number(one.max_ratio, 2)}`),
  ]);
  if (Number.isFinite(result.kl)) chips.push(chip(`next-token KL ${number(result.kl)} nats`));
  return h("div", { class: "wb-firing" }, chips);
}

function editRow(panel, limits, position, edit) {
  let held = edit;
  const send = newest(async (changes) => {
    const answer = await panel.ask("edit", { position, changes });
    if (answer === undefined) revert(); // refused: show what is still in force
  });
  const select = (names, chosen, label, change) =>
    h("select", { class: "wb-select", "aria-label": label, onchange: (event) => change(event.target.value), ...QUIET }, names.map((name) => h("option", { value: name, selected: name === chosen }, name)));
  const slider = h("input", { type: "range", class: "wb-slider", "aria-label": "strength", step: "any", ...QUIET });
  const field = h("input", { type: "number", class: "wb-input wb-number", "aria-label": "strength in raw units", step: "any", ...QUIET });
  const unit = h("span", { class: "wb-unit" });
  const line = h("div", { class: "wb-about" });
  const op = select(limits.ops, edit.op, "operation", (value) => send({ op: value }));
  const place = select(limits.positions, edit.positions, "positions", (value) => send({ positions: value }));
  const index = h("input", { type: "number", class: "wb-input wb-number wb-index", min: 0, step: 1, "aria-label": "feature index", ...QUIET });
  const dictionary = select(Object.keys(limits.dictionaries), edit.dictionary, "dictionary", (value) => send({ dictionary: value, index: 0 }));
  const remove = h("button", { type: "button", class: "wb-button", "aria-label": "remove this edit", onclick: () => panel.ask("remove", { position }) }, "✕");
  index.addEventListener("change", () => send({ index: Number(index.value) }));
  let fact = {};
  const say = (value) => {
    unit.textContent = meaning(op.value, value, fact.max);
    slider.setAttribute("aria-valuetext", `${number(value)}, ${unit.textContent}`);
  };
  const changed = (from, to) => {
    const value = Number(from.value);
    if (from.value === "" || !Number.isFinite(value)) return;
    to.value = String(value);
    say(value);
    send({ value });
  };
  slider.addEventListener("input", () => {
    field.value = String(Number(Number(slider.value).toPrecision(4)));
    changed(field, slider);
  });
  field.addEventListener("change", () => changed(field, slider));
  for (const one of [slider, field, index]) one.addEventListener("keydown", (event) => event.stopPropagation());
  const target = edit.fixed
    ? [h("span", { class: "wb-mono" }, edit.name), h("span", {}), h("span", { class: "wb-chip" }, edit.op)]
    : [dictionary, index, op];
  const element = h("div", { class: "wb-edit", role: "group", "aria-label": `edit ${position + 1}` }, target, slider, field, edit.fixed ? h("span", {}) : place, remove, line);
  const put = (control, value) => {
    if (document.activeElement !== control) control.value = String(value);
  };
  const revert = () => {
    op.value = held.op;
    place.value = held.positions;
    dictionary.value = held.dictionary;
    index.value = String(held.index);
    if (held.value !== null) field.value = slider.value = String(held.value);
  };
  const update = (now, facts) => {
    held = now;
    fact = facts ?? {};
    put(op, now.op);
    put(place, now.positions);
    put(dictionary, now.dictionary);
    put(index, now.index);
    index.max = limits.dictionaries[now.dictionary] - 1;
    const valued = limits.valued.includes(now.op);
    slider.min = fact.low ?? -1;
    slider.max = fact.high ?? 1;
    slider.step = fact.step ?? "any";
    for (const one of [slider, field]) {
      one.disabled = !valued;
      if (valued) put(one, now.value);
    }
    if (valued) say(document.activeElement === slider ? Number(slider.value) : now.value);
    else unit.textContent = "";
    line.replaceChildren(unit, h("span", {}, about(fact)), fact.label ? h("span", { class: "wb-hypothesis" }, visible(fact.label)) : "");
  };
  return { element, update };
}

function promptFields(panel) {
  const send = newest((prompt) => panel.ask("prompt", { prompt }));
  const area = (label, rows) => h("textarea", { class: "wb-input", "aria-label": label, rows, spellcheck: "false", ...QUIET });
  const text = area("prompt text", 3);
  let turns = [];
  const place = h("div", { class: "wb-prompt wb-field" });
  const later = (() => {
    let timer;
    return (make) => {
      clearTimeout(timer);
      timer = setTimeout(() => send(make()), 350);
    };
  })();
  text.addEventListener("input", () => later(() => text.value));
  text.addEventListener("keydown", (event) => event.stopPropagation());
  const turn = ([role, content], i) => {
    const field = area(`${role} message`, 1);
    field.value = content;
    field.addEventListener("keydown", (event) => event.stopPropagation());
    field.addEventListener("input", () => {
      turns[i][1] = field.value;
      later(() => turns);
    });
    return h("label", { class: "wb-field" }, h("span", { class: "wb-caption" }, role), field);
  };
  const update = (prompt) => {
    if (place.contains(document.activeElement)) return;
    if (typeof prompt === "string") {
      text.value = prompt;
      place.replaceChildren(h("label", { class: "wb-field" }, h("span", { class: "wb-caption" }, "prompt"), text));
    } else {
      turns = prompt.map((one) => [...one]);
      place.replaceChildren(...turns.map(turn));
    }
  };
  return { place, update };
}

function render({ model, el }) {
  const panel = frame(model, el, "steer", "Steering bench");
  const limits = model.get("limits");
  const phase = h("span", { class: "wb-phase", role: "status", "aria-live": "polite" });
  const cancel = h("button", { type: "button", class: "wb-button", onclick: () => panel.ask("cancel") }, "Cancel");
  const again = h("button", { type: "button", class: "wb-button", onclick: () => panel.ask("run") }, "Run again");
  const code = h("div", { class: "wb-codeplace", hidden: true });
  const edits = h("div", { class: "wb-edits" });
  const more = h("button", { type: "button", class: "wb-button", onclick: () => panel.ask("add") }, "+ feature");
  const prompt = promptFields(panel);
  const outcome = h("div", { class: "wb-outcome wb-field" });
  const why = h("input", { class: "wb-input wb-grow", type: "text", placeholder: "why is this worth keeping?", "aria-label": "reason for committing", ...QUIET });
  const told = h("span", { class: "wb-status", role: "status", "aria-live": "polite" });
  const commit = async () => {
    const kept = await panel.ask("commit", { why: why.value });
    if (kept === undefined) return;
    told.textContent = `committed as ${kept.id} (${kept.digest.slice(0, 12)})`;
    why.value = "";
  };
  why.addEventListener("keydown", (event) => {
    event.stopPropagation();
    if (event.key === "Enter") commit();
  });
  const keep = h("button", { type: "button", class: "wb-button wb-primary", onclick: commit }, "Commit candidate");
  panel.head.append(phase, cancel, again, codeButton(panel.ask, code));
  panel.body.append(h("div", {}, h("div", { class: "wb-sub" }, h("span", {}, "Edits"), more), edits), prompt.place, outcome, h("div", { class: "wb-row" }, why, keep, told), code);

  let rows = [];
  let shape = "";
  panel.watch(["spec", "facts"], () => {
    const spec = model.get("spec");
    const facts = model.get("facts");
    panel.note.textContent = spec.subject;
    const now = spec.edits.map((edit) => edit.fixed ? edit.name : "f").join("|");
    if (now !== shape || !rows.length) {
      shape = now;
      rows = spec.edits.map((edit, i) => editRow(panel, limits, i, edit));
      edits.replaceChildren(...(rows.length ? rows.map((row) => row.element) : [h("p", { class: "wb-caption" }, "no edit yet: add a feature")]));
    }
    rows.forEach((row, i) => row.update(spec.edits[i], facts[i]));
    prompt.update(spec.prompt);
  });
  panel.watch(["phase", "stage", "result"], () => {
    const state = model.get("phase");
    const result = model.get("result");
    const busy = state === "computing";
    const looks = { computing: "wb-wait", ready: "wb-ready", cancelled: "wb-stopped", failed: "wb-failed", idle: "" };
    phase.className = `wb-phase wb-status ${looks[state]}`;
    phase.textContent = model.get("stage");
    cancel.hidden = !busy;
    again.hidden = busy || state === "ready" || state === "idle";
    panel.root.setAttribute("aria-busy", String(busy));
    outcome.classList.toggle("wb-stale", busy);
    if (!result.base) return outcome.replaceChildren();
    return outcome.replaceChildren(
      h("div", { class: "wb-pair" }, side("Unsteered", result.base, "", result.sampling), side("Steered", result.steered, "wb-on", verdict(result))),
      result.next ? nextTokens(result.next) : "",
      firing(result),
    );
  });
  return panel.close;
}

export default { render };
