"""Edits as values: checked, described, stored exactly, refused where they contradict themselves."""

import json
import math

import numpy as np
import pytest
import torch
from edit_kit import direction, every_op, feature, make_dictionary
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.core.canonical import canonical_bytes
from workbench.core.errors import DictionaryError, EditError, SiteError
from workbench.interventions import edits
from workbench.interventions.edits import Edit, Edits
from workbench.interventions.positions import Positions
from workbench.interventions.targets import DirectionTarget, FeatureTarget, Gate
from workbench.models.sites import Site

SAE = make_dictionary("jumprelu")


def round_trip(one: Edits) -> Edits:
    documents, tensors = one.to_doc()
    return Edits.from_doc(json.loads(canonical_bytes(documents)), {name: t.clone() for name, t in tensors.items()})


numbers = st.floats(-1e5, 1e5, allow_nan=False)
recipes = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 40),
        "kind": st.sampled_from(["standard", "jumprelu", "gated", "resid.1", "attn.0", "mlp.2", "head.1.3"]),
        "scaling": st.sampled_from(["none", "layer_norm", "constant_norm"]),
        "op": st.sampled_from(["add", "set", "set_if_active", "scale", "cap", "floor", "zero_ablate", "project_out"]),
        "value": numbers,
        "positions": st.one_of(
            st.sampled_from(["all", "prompt", "generated", "last"]),
            st.lists(st.integers(0, 40), min_size=1, max_size=4, unique=True),
        ),
        "gate": st.none() | st.tuples(numbers, st.booleans()),
        "ratio": st.none() | st.floats(1e-3, 10),
    }
)


def build(recipe: dict) -> Edits:
    kind, seed, op = recipe["kind"], recipe["seed"], recipe["op"]
    if "." in kind:
        target = direction(seed=seed, site=kind)
    else:
        target = feature(make_dictionary(kind, scaling=recipe["scaling"]), seed)
    value = None if op in ("zero_ablate", "project_out") else recipe["value"]
    gate = recipe["gate"] and Gate(direction("g", "attn.0", seed=seed + 1), *recipe["gate"])
    return Edits((Edit(op, target, value, Positions.of(recipe["positions"]), gate, recipe["ratio"]),))


@settings(max_examples=40, deadline=None)
@given(recipes)
def test_documents_come_back_as_the_same_edit_bit_for_bit(recipe):
    one = build(recipe)
    back = round_trip(one)
    assert back == one
    assert back.digest() == one.digest()
    first, second = one.to_doc(), back.to_doc()
    assert canonical_bytes(first[0]) == canonical_bytes(second[0])
    assert first[1].keys() == second[1].keys()
    assert all(torch.equal(first[1][name], second[1][name]) for name in first[1])
    assert all(t.dtype == torch.float32 for t in first[1].values())


@settings(max_examples=20, deadline=None)
@given(recipes)
def test_the_spec_reads_the_documents_and_says_the_same(recipe):
    from workbench.spec import describe as spec_words
    from workbench.spec.documents.edit import EditDocument, edits_digest

    one = build(recipe)
    documents, tensors = one.to_doc()
    read = [EditDocument.model_validate_json(canonical_bytes(document)) for document in documents]
    assert spec_words.sentence(read) == one.describe()["sentence"]
    assert spec_words.formula(read) == one.describe()["formula"]
    assert edits_digest(documents, {k: t.numpy() for k, t in tensors.items()}) == one.digest()


def test_transcoder_documents_keep_that_nothing_is_scaled_back():
    rows = feature(make_dictionary("transcoder", "mlp_in.1", "mlp.1", scaling="layer_norm"), 3).rows
    back = round_trip(
        edits.scale(feature(make_dictionary("transcoder", "mlp_in.1", "mlp.1", scaling="layer_norm"), 3), 2)
    )
    assert not rows.rescale
    assert not back.items[0].target.rows.rescale


def test_digest_follows_what_is_changed_and_not_the_label():
    plain, labelled = edits.scale(feature(SAE, 3), 0.0), edits.scale(feature(SAE, 3, "lies"), 0)
    assert plain.digest() == labelled.digest()
    assert plain == labelled
    assert hash(plain) == hash(labelled)
    others = [
        edits.scale(feature(SAE, 4), 0.0),
        edits.scale(feature(SAE, 3), 0.5),
        edits.set(feature(SAE, 3), 0.0),
        edits.scale(feature(SAE, 3), 0.0, positions="prompt"),
        edits.scale(feature(SAE, 3), 0.0, gate=direction() > 0),
        edits.scale(feature(SAE, 3), 0.0, max_ratio=0.5),
        edits.scale(feature(make_dictionary("jumprelu", seed=1), 3), 0.0),
    ]
    assert len({one.digest() for one in [plain, *others]}) == len(others) + 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda d: d.pop("value"), r"missing fields \['value'\]"),
        (lambda d: d.update(strength=1), r"unknown fields \['strength'\]"),
        (lambda d: d.update(site="resid.2"), "says site 'resid.2', its target writes 'resid.1'"),
        (lambda d: d["target"].update(kind="neuron"), "got kind 'neuron'"),
        (lambda d: d["target"]["rows"].pop("W_enc"), "rows need W_enc, b_enc and W_dec"),
        (lambda d: d["target"]["rows"].update(W_enc="gone"), "no tensor 'gone'"),
        (lambda d: d["positions"].update(where="everywhere"), "no positions 'everywhere'"),
        (lambda d: d.update(op="boost"), "no operation 'boost'"),
    ],
)
def test_a_damaged_document_is_refused_with_what_is_wrong(damage, words):
    documents, tensors = edits.scale(feature(SAE, 3), 2.0).to_doc()
    damage(documents[0])
    with pytest.raises(EditError, match=words):
        Edits.from_doc(documents, tensors)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value):
    with pytest.raises(EditError, match=r"value of set of feature 3 of jumprelu:resid.1 must be finite"):
        edits.set(feature(SAE, 3), value)
    with pytest.raises(EditError, match="gate threshold must be finite"):
        direction() > value  # noqa: B015
    with pytest.raises(EditError, match="must be finite"):
        edits.set(feature(SAE, 3), 1.0, max_ratio=value)


def test_missing_unwanted_and_impossible_values_are_refused():
    with pytest.raises(EditError, match="scale needs a value"):
        Edit("scale", feature(SAE, 3))
    with pytest.raises(EditError, match="zero_ablate takes no value, got 1"):
        Edit("zero_ablate", feature(SAE, 3), 1)
    with pytest.raises(EditError, match="max_ratio must be above 0, got 0"):
        edits.add(feature(SAE, 3), 1.0, max_ratio=0)
    with pytest.raises(EditError, match="cannot edit a str"):
        edits.add("resid.1", 1.0)
    assert edits.add(feature(SAE, 3), np.float32(0.5)).items[0].value == 0.5


@pytest.mark.parametrize(
    ("vector", "words"),
    [
        (torch.zeros(32), "norm 0"),
        (torch.full((32,), math.nan), "NaN or an infinity"),
        (torch.zeros(0), r"expected \[d_model\]"),
    ],
)
def test_a_vector_that_points_nowhere_is_refused(vector, words):
    with pytest.raises(EditError, match=words):
        DirectionTarget.of("bad", "resid.1", vector)


def test_two_widths_in_one_direction_are_both_named():
    with pytest.raises(EditError, match="reads width 32 and writes width 16"):
        DirectionTarget("bad", Site.parse("resid.1"), torch.ones(32), torch.ones(16))
    with pytest.raises(SiteError, match=r"no site 'resdi.1'"):
        DirectionTarget.of("bad", "resdi.1", torch.ones(32))


def test_topk_features_are_refused_because_rows_do_not_suffice():
    with pytest.raises(DictionaryError, match="TopK"):
        feature(make_dictionary("topk"), 3)


def test_edits_that_contradict_each_other_are_refused_with_both_named():
    f = feature(SAE, 3)
    with pytest.raises(EditError, match=r"cap 1 is below floor 2: .*at or below 1.*at or above 2"):
        edits.cap(f, 1.0) + edits.floor(f, 2.0)
    with pytest.raises(EditError, match=r"two edits of one target at the same tokens: .*set to 1.*set to 2"):
        edits.set(f, 1.0) + edits.set(f, 2.0, positions="prompt")
    with pytest.raises(EditError, match="the same edit twice"):
        edits.scale(f, 2.0) + edits.scale(feature(SAE, 3, "relabelled"), 2.0)
    with pytest.raises(EditError, match="two edits of one target"):
        edits.zero_ablate(direction(seed=1)) + edits.add(direction(seed=1), 1.0)


def test_edits_that_cannot_meet_are_accepted():
    f, g = feature(SAE, 3), direction("g", "resid.0")
    assert len(edits.cap(f, 2.0) + edits.floor(f, 1.0)) == 2
    assert len(edits.set(f, 1.0, positions="prompt") + edits.set(f, 2.0, positions="generated")) == 2
    assert len(edits.set(f, 1.0, positions=[1, 2]) + edits.set(f, 2.0, positions=[3])) == 2
    assert len(edits.set(f, 1.0, gate=g > 0.5) + edits.set(f, 2.0, gate=g < 0.5)) == 2
    assert len(edits.set(f, 1.0) + edits.set(feature(SAE, 4), 1.0)) == 2
    with pytest.raises(EditError, match="two edits of one target"):
        edits.set(f, 1.0, gate=g > 0.5) + edits.set(f, 2.0, gate=g < 0.6)


def test_a_gate_that_is_read_too_late_is_refused():
    with pytest.raises(EditError, match=r"writes resid.1 before its gate is read at resid.2"):
        edits.add(direction(), 1.0, gate=direction("late", "resid.2") > 0)
    with pytest.raises(EditError, match="which is computed before"):
        FeatureTarget("x", 3, Site.parse("mlp.1"), Site.parse("mlp_in.1"), SAE.rows([3]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Positions("everywhere"), "no positions 'everywhere'"),
        (lambda: Positions("explicit"), "contradict themselves"),
        (lambda: Positions("all", (1,)), "contradict themselves"),
        (lambda: Positions.of([-1]), "at least 0"),
        (lambda: Positions.of([1, 1]), "distinct"),
    ],
)
def test_impossible_positions_are_refused(make, words):
    with pytest.raises(EditError, match=words):
        make()


def test_description_says_what_is_done_where_and_when():
    f, g = feature(SAE, 843 % SAE.d_dict, "lies"), direction("probe", "resid.0")
    both = edits.scale(f, 0.0, gate=g > 0.9, max_ratio=0.5) + edits.add(direction("harm"), -0.5, positions="last")
    words = both.describe()
    assert words["sentence"] == (
        "At resid.1, the activation of feature 75 of jumprelu:resid.1 “lies” is multiplied by 0, on every token except "
        "special ones, where the projection on 'probe' at resid.0 is above 0.9, changing it by at most 0.5 of its "
        "norm; at resid.1, -0.5 × harm is added, on the last prompt token unless it is special."
    )
    symbol = "jumprelu:resid.1:75"
    assert words["formula"] == f"resid.1 ← x + (0 − 1)·a[{symbol}]·W_dec[{symbol}] + (-0.5)·harm"
    assert Edits().describe() == {"sentence": "Nothing is changed.", "formula": "x ← x"}


def test_every_operation_has_words_and_a_formula():
    for target in (feature(SAE, 3), direction()):
        formulas = [one.describe()["formula"] for one in every_op(target).values()]
        assert all(formula.startswith("resid.1 ← x + ") for formula in formulas)


def test_edits_compose_in_order_and_stay_as_they_were():
    first, second = edits.add(direction(seed=1), 1.0), edits.add(direction(seed=2, site="resid.0"), 1.0)
    both = first + second
    assert both.items == (*first.items, *second.items)
    assert len(first) == len(second) == 1
    assert [str(site) for site in both.sites] == ["resid.0", "resid.1"]
    assert not Edits()
    assert Edits() + first == first
