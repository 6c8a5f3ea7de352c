"""Documents are exactly their canonical bytes, tensors and outcomes come back as they went in, nothing is assumed."""

import json
import string
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy
import spec_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from workbench.core.canonical import canonical_bytes
from workbench.core.errors import BundleError
from workbench.spec import describe
from workbench.spec.archive import is_allowed, pack, unpack
from workbench.spec.bundle import DOCUMENTS
from workbench.spec.documents import base, edit, manifest, measurement, plan, spec, subject
from workbench.spec.documents.edit import EditDocument
from workbench.spec.documents.spec import Spec
from workbench.spec.documents.subject import FeatureRecord
from workbench.spec.parquet import read_table, write_table
from workbench.spec.strict import check_canonical, loads
from workbench.spec.summary import summary_json, summary_text
from workbench.spec.tensors import read_tensors, write_tensors
from workbench.spec.verify import verify_files

finite = st.floats(allow_nan=False, allow_infinity=False, width=64)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | finite | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=20,
)


@pytest.fixture(scope="module")
def parts():
    return spec_bundle.parts()


@pytest.fixture(scope="module")
def files(parts):
    return parts.files()


def same(a, b):
    if isinstance(a, float) or isinstance(b, float):
        return float(a) == float(b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def read(data):
    """Give what was read and no refusal, or nothing and the refusal."""
    try:
        return loads(data), None
    except BundleError as error:
        return None, error


def big(value):
    """Whether a number in it is a whole one beyond 2^53, which not every reader keeps."""
    if isinstance(value, dict):
        return any(map(big, value.values()))
    if isinstance(value, list):
        return any(map(big, value))
    return isinstance(value, float) and 2**53 <= abs(value) < 1e21


@given(values)
@settings(deadline=None)
def test_every_json_value_reads_back_from_its_canonical_bytes(value):
    data = canonical_bytes(value)
    found, refusal = read(data)
    assert (refusal is not None) == big(value)
    if refusal is None:
        assert same(value, found)
        check_canonical(found, data)
    else:
        assert "beyond 2^53" in str(refusal)


@given(st.binary(max_size=60) | st.text(alphabet=string.printable, max_size=60).map(str.encode))
@settings(deadline=None, max_examples=200)
def test_no_bytes_make_the_reader_raise_anything_but_a_refusal(data):
    found, refusal = read(data)
    assert refusal.check == "json" if refusal else same(found, json.loads(data))


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_a_document_is_exactly_its_canonical_bytes(files, name):
    document = DOCUMENTS[name].from_bytes(files[name])
    assert document.to_bytes() == files[name] == canonical_bytes(json.loads(files[name]))
    assert DOCUMENTS[name].from_json(document.to_json()) == document


def document_types():
    modules = (base, edit, manifest, measurement, plan, spec, subject)
    found = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    return sorted((t for t in found if issubclass(t, BaseModel) and t is not BaseModel), key=lambda t: t.__name__)


@pytest.mark.parametrize("kind", document_types(), ids=lambda kind: kind.__name__)
def test_every_document_type_is_strict_frozen_closed_and_explained(kind):
    config = kind.model_config
    assert (config["strict"], config["frozen"], config["extra"], config["allow_inf_nan"]) == (
        True,
        True,
        "forbid",
        False,
    )
    assert kind.__doc__
    assert [name for name, one in kind.model_fields.items() if not one.description] == []


def test_a_document_cannot_be_changed(parts):
    document = Spec.from_json(parts.spec)
    with pytest.raises(ValidationError, match="frozen"):
        document.title = "another"


def test_a_number_that_was_not_measured_needs_a_reason(parts):
    value = {**parts.spec["features"][0], "unmeasured": {}}
    with pytest.raises(BundleError, match="ablation_effect null without a reason"):
        FeatureRecord.from_json(value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.update(kind="monitor"), "a monitor has no edits"),
        (lambda s: s.update(edits=[]), "at least one edit"),
        (lambda s: s.update(features=[]), "is edited and not described"),
        (lambda s: s.update(sites=s["sites"][1:]), "site attn.0 is edited and not among the sites"),
        (lambda s: s["edits"][0]["target"].update(index=64), "no dictionary here has it"),
        (lambda s: s["edits"][0]["target"].update(scaling="layer_norm"), "another scaling than its dictionary"),
        (lambda s: s["edits"][0].update(site="attn.0"), "its target writes resid.1"),
        (lambda s: s["edits"][0].update(value=None), "add needs a value"),
        (lambda s: s["edits"][0].update(op="zero_ablate"), "zero_ablate takes no value"),
        (lambda s: s["edits"][0]["positions"].update(where="explicit"), "explicit positions"),
        (lambda s: s["tensors"]["tensors"].pop(), "not those that the edits name"),
        (lambda s: s["tensors"]["tensors"].reverse(), "listed by name"),
        (lambda s: s["sites"].append(s["sites"][0]), "listed twice"),
        (lambda s: s.update(name="resist\u0430nce"), "name"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change, words):
    value = spec_bundle.parts().spec
    change(value)
    with pytest.raises(BundleError, match=words) as refusal:
        Spec.from_json(value)
    assert refusal.value.check == "schema"


single = st.floats(width=32, allow_nan=False, allow_infinity=False)


def array_of(shape):
    size = int(np.prod(shape))
    return st.lists(single, min_size=size, max_size=size).map(lambda flat: np.array(flat, np.float32).reshape(shape))


names = st.from_regex(r"[a-z][a-z0-9._]{0,12}", fullmatch=True)
arrays = st.dictionaries(names, st.lists(st.integers(0, 4), max_size=3).flatmap(array_of), max_size=4)


@given(arrays)
@settings(deadline=None)
def test_tensors_round_trip_bit_for_bit_and_the_public_library_reads_them(tensors):
    data = write_tensors(tensors)
    assert data == write_tensors(dict(reversed(list(tensors.items()))))
    for found in (read_tensors(data), safetensors.numpy.load(data)):
        assert found.keys() == tensors.keys()
        assert all(found[k].tobytes() == tensors[k].tobytes() and found[k].shape == tensors[k].shape for k in tensors)


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_no_bytes_make_the_tensor_reader_or_the_archive_reader_raise_anything_but_a_refusal(data):
    for read in (lambda: read_tensors(data), lambda: unpack(data, path="x.wbspec")):
        with pytest.raises(BundleError):
            read()


@given(st.dictionaries(st.sampled_from(["spec.json", "plan.json", "outcomes/a.parquet"]), st.binary(max_size=50)))
@settings(deadline=None)
def test_files_round_trip_through_the_one_archive_that_holds_them(files):
    if files:
        assert unpack(pack(files), path="x.wbspec") == files


def test_only_a_bundles_own_names_are_allowed():
    assert is_allowed("outcomes/jailbreak_resistance.parquet")
    for name in (
        "outcomes/../spec.json",
        "outcomes/.hidden.parquet",
        "outcomes/a b.parquet",
        "Spec.json",
        "",
        "events/1",
    ):
        assert not is_allowed(name)


def test_outcomes_round_trip_through_parquet(parts):
    columns = parts.outcomes["resistance"]
    back = spec_bundle.arrange_from_bytes(columns)
    for name in ("prompt", "cue", "item", "arm", "sample", "value", "mass"):
        assert np.array_equal(getattr(columns, name), getattr(back, name)), name
    assert columns.to_bytes() == back.to_bytes()


def test_any_parquet_reader_opens_the_outcomes(parts):
    columns = parts.outcomes["resistance"]
    table = pq.read_table(pa.BufferReader(columns.to_bytes()))
    types = {"prompt": pa.int32(), "cue": pa.string(), "item": pa.string(), "arm": pa.string(), "sample": pa.int32()}
    assert {field.name: field.type for field in table.schema} == {**types, "value": pa.float64(), "mass": pa.float64()}
    for name in table.column_names:
        assert table.column(name).to_pylist() == getattr(columns, name).tolist(), name


labels = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)


@given(st.lists(st.tuples(st.integers(-(2**31), 2**31 - 1), labels, finite), min_size=1, max_size=40))
@settings(deadline=None)
def test_tables_round_trip_and_have_one_form(rows):
    numbers, words, reals = (list(column) for column in zip(*rows, strict=True))
    kinds = {"n": "int32", "w": "string", "x": "float64"}
    table = {"n": np.array(numbers), "w": np.array(words, object), "x": np.array(reals)}
    data = write_table(table, kinds)
    found = read_table(data, kinds, path="t", max_rows=40)
    assert (found["n"].tolist(), found["w"].tolist()) == (numbers, words)
    assert found["x"].tobytes() == table["x"].tobytes()
    assert pq.read_table(pa.BufferReader(data)).column("w").to_pylist() == words


def test_a_monitor_needs_no_edit(parts):
    value = {**spec_bundle.parts().spec, "kind": "monitor", "edits": []}
    value["tensors"] = {**value["tensors"], "tensors": []}
    value["known_answers"] = {"answers": [], "tolerance": {"float32": 1e-4}}
    watched = {"dictionary": "resid.1", "index": 3, "edges": [0.1, 1.0], "counts": [90, 8, 2], "alpha": 0.01}
    value["monitoring"] = [{"name": "harm", "owner": "on call", "rollback": "page somebody", **watched}]
    assert describe.sentence(Spec.from_json(value).edits) == "Nothing is changed."


def test_a_sentence_never_repeats_a_label_that_might_lie(parts):
    edits = Spec.from_json(parts.spec).edits
    assert edits[0].target.label == "harmful request"
    text = describe.sentence(edits) + describe.formula(edits)
    assert "harmful" not in text
    assert "2.5 is added to the activation of feature 3 of resid.1" in text
    assert "where the projection on 'harm' at attn.0 is above 0.5" in text
    assert "resid.1 ← x + (2.5)·W_dec[resid.1:3]" in text


def many_edits(op, values, **changes):
    first = {**spec_bundle.edits()[0], "op": op, **changes}
    edits = []
    for k, value in enumerate(values):
        target = {**first["target"], "index": 10 + k, "label": f"label {k}"}
        edits.append(EditDocument.from_json({**first, "value": value, "target": target}))
    return edits


def test_a_headline_tells_features_that_are_treated_alike_together():
    edits = many_edits("set", [0.5, 1.5, 4.0, 0.0, 0.0, 0.0, 0.0, 2.0])
    assert describe.headline(edits) == (
        "At resid.1, the activations of 8 features of resid.1 (10, 11, 12, 13, 14, 15 and 2 more) are set to a value "
        "each, 0 to 4, on every token except special ones."
    )
    assert describe.formulas(edits) == [
        "resid.1 ← x + Σ (v_f − a[f])·W_dec[f]  over f in resid.1: 10, 11, 12, 13, 14, 15, 16, 17"
    ]
    ablated = many_edits("zero_ablate", [None, None])
    assert "2 features of resid.1 (10, 11) are set to 0" in describe.headline(ablated)
    assert describe.formulas(ablated) == ["resid.1 ← x + Σ (0 − a[f])·W_dec[f]  over f in resid.1: 10, 11"]


def test_a_headline_keeps_apart_what_differs_in_more_than_its_value():
    gate = {"target": spec_bundle.edits()[1]["target"], "threshold": 1.0, "above": True}
    edits = many_edits("set", [1.0, 1.0]) + many_edits("set", [1.0], gate=gate)
    assert describe.headline(edits).count(";") == 1
    one = many_edits("scale", [0.0])
    assert describe.headline(one) == describe.sentence(one)
    assert describe.formulas(one) == [describe.formula(one)]


def test_an_edit_is_described_as_the_runtime_describes_it():
    edits = pytest.importorskip("workbench.interventions.edits")
    torch = pytest.importorskip("torch")
    harm = edits.DirectionTarget.of("harm", "resid.1", torch.arange(4.0) + 1)
    for op in ("add", "set", "set_if_active", "scale", "cap", "floor", "mean_ablate", "projection_cap"):
        for where in ("all", "after_first", "last", "generated", [2, 5], [0]):
            both = edits.Edits((edits.Edit(op, harm, -0.25, edits.Positions.of(where), harm > 0.5, 0.3),))
            documents = [EditDocument.from_json(one) for one in both.to_doc()[0]]
            assert describe.sentence(documents) == both.describe()["sentence"]
            assert describe.formula(documents) == both.describe()["formula"]


def test_the_digest_of_edits_is_the_one_the_runtime_gives_and_ignores_labels():
    edits = pytest.importorskip("workbench.interventions.edits")
    torch = pytest.importorskip("torch")
    harm = edits.DirectionTarget.of("harm", "resid.1", torch.arange(4.0) + 1)
    both = edits.add(harm, -0.5, gate=harm > 0.1) + edits.project_out(harm, positions="generated", gate=harm < 0.1)
    documents, tensors = both.to_doc()
    written = [EditDocument.from_json(one).to_json() for one in documents]
    assert edit.edits_digest(written, {name: one.numpy() for name, one in tensors.items()}) == both.digest()
    assert edits.Edits.from_doc(written, tensors) == both
    labelled = spec_bundle.edits()
    other = spec_bundle.edits()
    other[0]["target"]["label"] = "something else"
    assert edit.edits_digest(labelled, {}) == edit.edits_digest(other, {})


def test_a_bundle_reads_as_text_and_as_json(files):
    bundle = verify_files(files).bundle
    text = summary_text(bundle, width=90)
    assert "Jailbreak resistance: 0.491 → 0.837, higher is better: holds" in text
    assert max(map(len, text.splitlines())) <= 100
    found = summary_json(bundle)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert {
        "axis",
        "kind",
        "split",
        "n",
        "direction",
        "base",
        "candidate",
        "interval",
        "controls",
        "n_controls",
        "rank_p",
    } <= set(found["axes"][0])


def test_verifying_imports_neither_torch_nor_scipy(files, tmp_path):
    from workbench.spec.archive import write_files

    target = write_files(tmp_path / "b.wbspec", files)
    code = (
        "import sys; from workbench.spec.verify import verify; found = verify(sys.argv[1]); "
        "print(found.ok, sorted({'torch', 'transformers', 'scipy', 'pandas', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True)
    assert done.stdout == "True []\n", done.stderr[-2000:]
