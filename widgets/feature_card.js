// Draws what is known about one feature: a label that is a hypothesis, how often it fires, where, and what it writes.
import { bar, codeButton, floats, frame, h, number, percent, svg, tokenSpans, visible } from "./base.js";

function stat(name, value, detail) {
  return h("div", { class: "wb-stat" }, h("span", { class: "wb-caption" }, name), h("b", {}, value), detail ? h("small", {}, detail) : "");
}

function histogram(bins) {
  const most = Math.max(1, ...bins.counts);
  const width = 100 / bins.counts.length;
  const label = `activations where it fires, from 0 to ${number(bins.edges.at(-1))}, ${bins.counts.length} bins`;
  return h(
    "figure",
    { class: "wb-histogram" },
    svg(
      "svg",
      { viewBox: "0 0 100 32", preserveAspectRatio: "none", role: "img", "aria-label": label },
      bins.counts.map((n, i) => {
        const height = n ? Math.max(0.8, (Math.sqrt(n) / Math.sqrt(most)) * 32) : 0;
        return svg("rect", { x: i * width + 0.4, y: 32 - height, width: width - 0.8, height, class: "wb-fill" },
          svg("title", {}, `${number(bins.edges[i])} to ${number(bins.edges[i + 1])}: ${n} tokens`));
      }),
    ),
    h("figcaption", {}, h("span", {}, "0"), h("span", {}, "activation where it fires (√ count)"), h("span", {}, number(bins.edges.at(-1)))),
  );
}

function effects(title, rows, most, kind) {
  return h(
    "div",
    { class: "wb-effects" },
    h("div", { class: "wb-sub" }, title),
    rows.map(([text, value]) =>
      h("div", { class: "wb-effect" }, h("span", { class: "wb-tok wb-plain" }, visible(text)), bar(Math.abs(value) / most, kind), h("span", { class: "wb-num" }, number(value))),
    ),
  );
}

function render({ model, el }) {
  const panel = frame(model, el, "card", "Feature");
  const code = h("div", { class: "wb-codeplace", hidden: true });
  const label = h("input", { class: "wb-input wb-label", type: "text", placeholder: "what do you think it means?", "aria-label": "hypothesis about this feature", maxlength: 200, "data-lm-suppress-shortcuts": "true" });
  const saved = h("span", { class: "wb-status", role: "status", "aria-live": "polite" });
  const facts = h("div", {});
  const examples = h("div", {});
  const keep = async () => {
    const answer = await panel.ask("label", { text: label.value });
    if (answer !== undefined) saved.textContent = "hypothesis kept in the journal";
  };
  label.addEventListener("keydown", (event) => {
    if (event.key === "Enter") keep();
    event.stopPropagation();
  });
  const button = h("button", { type: "button", class: "wb-button", onclick: keep }, "Keep");
  panel.head.append(codeButton(panel.ask, code));
  panel.body.append(h("div", { class: "wb-row" }, h("span", { class: "wb-caption" }, "Hypothesis"), label, button, saved), facts, examples, code);

  panel.watch(["spec"], () => {
    const spec = model.get("spec");
    panel.heading.replaceChildren("Feature ", h("span", { class: "wb-mono" }, `${spec.feature.dictionary} / ${spec.feature.index}`));
    panel.note.replaceChildren(h("span", {}, `${spec.subject} · ${spec.kind}`));
    if (document.activeElement !== label) label.value = visible(spec.label);
  });
  panel.watch(["data", "values", "computing"], () => {
    const data = model.get("data");
    const busy = model.get("computing");
    panel.root.setAttribute("aria-busy", String(busy));
    if (!data.stats) {
      facts.replaceChildren(busy ? h("p", { class: "wb-wait" }, "reading the corpus") : h("p", { class: "wb-caption" }, "nothing measured yet"));
      return examples.replaceChildren();
    }
    const { stats, logits } = data;
    const largest = [...logits.promoted, ...logits.suppressed].reduce((most, [, v]) => Math.max(most, Math.abs(v)), 1e-9);
    facts.replaceChildren(
      h(
        "div",
        { class: "wb-stats" },
        stat("fires on", percent(stats.density), `${stats.n_active} of ${stats.n_tokens} tokens, special ones left out`),
        stat("max activation", number(stats.max)),
        stat("mean where it fires", number(stats.mean_active)),
        stat("corpus", h("span", { class: "wb-corpus" }, stats.corpus), `${stats.n_documents} documents`),
      ),
      h(
        "div",
        { class: "wb-columns" },
        data.histogram.counts.length ? histogram(data.histogram) : h("p", { class: "wb-caption" }, "it never fires on this corpus"),
        effects("writes toward", logits.promoted, largest, "wb-up"),
        effects("writes away from", logits.suppressed, largest, "wb-down"),
      ),
      h("p", { class: "wb-caption" }, logits.meaning),
    );
    const values = floats(model.get("values"));
    const list = (title, rows) =>
      rows.length
        ? h("div", { class: "wb-examples" }, h("div", { class: "wb-sub" }, title), rows.map((row) => {
            const part = values.subarray(row.offset, row.offset + row.tokens.length);
            return h("div", { class: "wb-example" }, h("span", { class: "wb-num" }, number(row.max)), h("div", { class: "wb-tokens wb-small" }, tokenSpans(row.tokens, part, { largest: stats.max, special: row.special })));
          }))
        : "";
    return examples.replaceChildren(list("Where it fires most", data.examples.top), list("Documents drawn at random among those where it fires", data.examples.random));
  });
  return panel.close;
}

export default { render };
