// Run with `node --test widgets/tests`; no dependency.
import assert from "node:assert/strict";
import test from "node:test";
import { checkAttribute, floats, level, newest, number, percent, remote, visible } from "../base.js";
import { about, meaning, verdict } from "../steering_bench.js";

test("bidi, zero-width, tag and control characters become visible marks", () => {
  assert.equal(visible("a\u202eb"), "a⟨U+202E⟩b");
  assert.equal(visible("a\u200bb\u0000\u{e0041}"), "a⟨U+200B⟩b⟨U+0000⟩⟨U+E0041⟩");
  assert.equal(visible("line\nnext\tcell\r"), "line⏎next⇥cell␍");
  assert.equal(visible("\u2066\u2069\u061c\ufeff\u3164"), "⟨U+2066⟩⟨U+2069⟩⟨U+061C⟩⟨U+FEFF⟩⟨U+3164⟩");
});

test("ordinary text, markup included, is left as it is", () => {
  for (const text of [" paris", "<img src=x onerror=alert(1)>", "Zürich 42%", "日本語", "👍", "e\u0301"]) assert.equal(visible(text), text);
});

test("attributes that load, run or navigate are refused", () => {
  for (const name of ["onclick", "onError", "srcdoc", "href", "src", "style", "FORMACTION"]) assert.throws(() => checkAttribute(name), /refused/);
  for (const name of ["class", "aria-label", "data-index", "role"]) assert.equal(checkAttribute(name), name);
});

test("floats reads aligned and unaligned binary alike", () => {
  const wanted = new Float32Array([1.5, -2, 3.25]);
  const shifted = new Uint8Array(17);
  shifted.set(new Uint8Array(wanted.buffer), 3);
  assert.deepEqual([...floats(new DataView(wanted.buffer))], [...wanted]);
  assert.deepEqual([...floats(new DataView(shifted.buffer, 3, 12))], [...wanted]);
  assert.equal(floats(undefined).length, 0);
});

test("level keeps ten steps, and nothing is nothing", () => {
  assert.deepEqual([0, 0.01, 0.5, 1, 2, -1].map((v) => level(v, 1)), [0, 1, 5, 10, 10, 10]);
  assert.equal(level(1, 0), 0);
  assert.equal(level(NaN, 1), 0);
});

test("numbers never hide a sign or pretend to be measured", () => {
  assert.deepEqual([0, 1.23456, -0.5, 12345, 1e-9, NaN, null].map((v) => number(v)), ["0", "1.23", "−0.5", "12300", "1.0e−9", "–", "–"]);
  assert.deepEqual([0, 0.0004, 0.034, 0.5, 0.9999, 1].map(percent), ["0.0%", "<0.1%", "3.4%", "50%", ">99.9%", "100%"]);
});

test("newest asks for the first and the last value only, one at a time", async () => {
  const seen = [];
  let most = 0;
  let open = 0;
  const send = newest(async (value) => {
    most = Math.max(most, ++open);
    seen.push(value);
    await new Promise((resolve) => setTimeout(resolve, 5));
    open--;
    return value;
  });
  const answers = await Promise.all([1, 2, 3, 4].map(send));
  assert.deepEqual(seen, [1, 4]);
  assert.deepEqual(answers, [1, undefined, undefined, 4]);
  assert.equal(most, 1);
});

test("newest goes on after an error", async () => {
  const send = newest(async (value) => {
    if (value === 1) throw new Error("first fails");
    return value;
  });
  await assert.rejects(send(1), /first fails/);
  assert.equal(await send(2), 2);
});

function fakeModel() {
  const listeners = new Set();
  return {
    sent: [],
    on: (_, callback) => listeners.add(callback),
    off: (_, callback) => listeners.delete(callback),
    send(message) {
      this.sent.push(message);
    },
    answer: (message) => listeners.forEach((one) => one(message)),
    listeners,
  };
}

test("remote matches answers to calls and turns Python's errors into errors here", async () => {
  const model = fakeModel();
  const kernel = remote(model);
  const first = kernel.call("one", { a: 1 });
  const second = kernel.call("two");
  assert.deepEqual(model.sent.map((m) => [m.method, m.args]), [["one", { a: 1 }], ["two", {}]]);
  model.answer({ id: "someone else's", ok: true, result: 0 });
  model.answer({ id: model.sent[1].id, ok: false, error: "no such feature" });
  model.answer({ id: model.sent[0].id, ok: true, result: 7 });
  await assert.rejects(second, /no such feature/);
  assert.equal(await first, 7);
  kernel.close();
  assert.equal(model.listeners.size, 0);
});

test("remote says so when the kernel never answers", async () => {
  const kernel = remote(fakeModel(), { patience: 10 });
  await assert.rejects(kernel.call("one"), /does not answer/);
});

test("a strength says what it means in the operation's own unit", () => {
  assert.equal(meaning("scale", 0, 5), "× 0 of its own activation");
  assert.equal(meaning("set", 2.5, 5), "0.5 × max activation");
  assert.equal(meaning("add", -2, 0), "raw units");
  assert.match(about({ site: "resid.2", max: 4, corpus: "400 documents" }), /writes to resid\.2.*max activation 4 on 400 documents/);
});

test("the verdict counts tokens that differ, and says when none does", () => {
  const side = (marks) => ({ tokens: marks.map(String), marks });
  assert.equal(verdict({ base: side([0, 1]), steered: side([0, 1, 1]) }), "2 of 3 tokens differ");
  assert.equal(verdict({ base: side([0]), steered: side([0]) }), "same text");
  assert.equal(verdict({ base: side([0]) }), "");
});
