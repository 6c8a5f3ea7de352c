// Draws a prompt's tokens, how strongly one feature fires on each, and the features at the token a person chose.
import { codeButton, floats, frame, h, number, rove, tokenSpans, visible, bar } from "./base.js";

function render({ model, el }) {
  const panel = frame(model, el, "strip", "Tokens");
  const tokens = h("div", { class: "wb-tokens", role: "listbox", "aria-label": "tokens", "aria-orientation": "horizontal" });
  const status = h("div", { class: "wb-status", role: "status", "aria-live": "polite" });
  const found = h("div", { class: "wb-found" });
  const code = h("div", { class: "wb-codeplace", hidden: true });
  panel.head.append(codeButton(panel.ask, code));
  panel.body.append(tokens, status, found, code);

  const tell = (i) => {
    const text = model.get("tokens")[i];
    if (text === undefined) return;
    const values = floats(model.get("values"));
    const value = values.length ? `  ·  activation ${number(values[i])}` : "";
    status.replaceChildren(`token ${i}  `, h("b", { class: "wb-mono" }, visible(text)), value);
  };
  rove(tokens, { choose: (index) => panel.ask("choose", { index }), look: tell });

  const drawTokens = () => {
    const held = tokens.contains(document.activeElement) ? document.activeElement.dataset.index : null;
    const spec = model.get("spec");
    const options = { special: model.get("special"), role: "option", selected: spec.selected };
    tokens.replaceChildren(...tokenSpans(model.get("tokens"), floats(model.get("values")), options));
    panel.heading.textContent = spec.feature ? "Tokens" : "Tokens";
    panel.note.replaceChildren(
      spec.feature
        ? h("span", { class: "wb-chip wb-chip-on" }, `${spec.feature.dictionary} / ${spec.feature.index}`)
        : "choose a token to see its features",
      spec.feature && spec.label ? h("span", { class: "wb-hypothesis" }, visible(spec.label)) : "",
    );
    if (spec.selected >= 0) tell(spec.selected);
    if (held !== null) tokens.querySelector(`[data-index="${held}"]`)?.focus();
  };
  const drawFound = () => {
    const spec = model.get("spec");
    const rows = model.get("found");
    if (model.get("computing")) return found.replaceChildren(h("span", { class: "wb-wait" }, "reading the features here"));
    if (!rows.length) return found.replaceChildren();
    const most = Math.max(...rows.map((row) => row.activation));
    const pick = (row) => panel.ask("feature", { dictionary: row.dictionary, index: row.index });
    const isOn = (row) => spec.feature?.dictionary === row.dictionary && spec.feature?.index === row.index;
    return found.replaceChildren(
      h("div", { class: "wb-caption" }, `strongest features at token ${spec.selected}; choose one to colour the strip with it`),
      h(
        "div",
        { class: "wb-features", role: "group", "aria-label": "features at this token" },
        rows.map((row) =>
          h(
            "button",
            { type: "button", class: "wb-feature", "aria-pressed": String(isOn(row)), onclick: () => pick(row) },
            h("span", { class: "wb-mono" }, `${row.dictionary} / ${row.index}`),
            bar(row.activation / most),
            h("span", { class: "wb-num" }, number(row.activation)),
            row.label ? h("span", { class: "wb-hypothesis" }, visible(row.label)) : "",
          ),
        ),
      ),
    );
  };
  panel.watch(["tokens", "values", "spec"], drawTokens);
  panel.watch(["found", "computing", "spec"], drawFound);
  return panel.close;
}

export default { render };
