"""The committee's page is script-free, inert whatever it is fed, the same every time, and puts the worst news first."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import spec_bundle

from workbench.core.text import visible
from workbench.spec.forest import LEFT, RIGHT, forest
from workbench.spec.verdicts import samples
from workbench.spec.verify import verify_files

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7*7 }}<!--\u202eevil\u200b\u2028\x07"


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.ids, self.links, self.attributes, self.words = set(), set(), set(), set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.add(value)
            if name in ("href", "src", "action", "formaction", "xlink:href"):
                self.links.add(value)

    def handle_data(self, data):
        self.words.append(data)


def hostile_parts():
    parts = spec_bundle.parts()
    parts.spec |= dict.fromkeys(("title", "purpose", "why_an_edit", "author"), HOSTILE)
    parts.spec["limitations"] = [HOSTILE]
    parts.spec["unmeasured"] = {"monitoring": HOSTILE}
    parts.spec["invalid_when"] = [{"text": HOSTILE, "check": "manual"}]
    parts.spec["edits"][0]["target"]["label"] = HOSTILE
    parts.spec["edits"][1]["target"]["name"] = HOSTILE
    parts.spec["edits"][1]["gate"]["target"]["name"] = HOSTILE
    feature = parts.spec["features"][0]
    feature |= {"label": HOSTILE, "labelled_by": HOSTILE}
    feature["examples"][0] |= {"text": HOSTILE, "token": HOSTILE}
    parts.spec["subject"] |= {"name": HOSTILE, "source": {"kind": "hub", "repo": HOSTILE, "revision": HOSTILE}}
    parts.spec["subject"]["digests"]["weights"] = {HOSTILE: spec_bundle.sha("weights")}
    parts.spec["dictionaries"][0] |= {"release": HOSTILE, "licence": HOSTILE}
    parts.spec["provenance"]["search"] |= {"space": HOSTILE, "selection_rule": HOSTILE}
    parts.plan |= {"title": HOSTILE, "selection_rule": HOSTILE, "unmeasured": {"adversarial": HOSTILE}}
    parts.plan["attacks"] = [{"id": "a", "description": HOSTILE, "budget": HOSTILE}]
    for axis in parts.plan["axes"]:
        axis |= {"title": HOSTILE, "definition": HOSTILE, "metric": HOSTILE, "scorer": HOSTILE}
    for arm in parts.plan["arms"]:
        arm |= {"description": HOSTILE} | ({"tuning": HOSTILE} if arm.get("tuning") else {})
    parts.measurement |= {"runtime": HOSTILE, "deviations": [{"what": HOSTILE, "why": HOSTILE}]}
    parts.measurement["environment"] |= {"hardware": HOSTILE, "packages": {HOSTILE: HOSTILE}}
    parts.seal()
    for axis in parts.measurement["axes"]:
        drawn = samples(spec_bundle.NONCE, axis["axis"], 60, 5)
        for prompt in axis["prompts"]:
            prompt |= {"text": HOSTILE, "event": [HOSTILE], "against": [HOSTILE]}
        axis["continuations"] = [{"prompt": drawn[0], "base": HOSTILE, "candidate": HOSTILE, "picked": "nonce"}]
        axis["continuations"] += [{"prompt": k, "base": HOSTILE, "candidate": "", "picked": "hand"} for k in (0, 1)]
    return parts


@pytest.fixture(scope="module")
def clean():
    return spec_bundle.parts().files()["dossier.html"].decode()


@pytest.fixture(scope="module")
def hostile():
    files = hostile_parts().files()
    found = verify_files(files)
    assert found.ok, found.checks[-1]
    return files["dossier.html"].decode()


def test_hostile_text_adds_no_tag_no_attribute_and_no_link(clean, hostile):
    plain, attacked = Page(clean), Page(hostile)
    assert attacked.tags <= plain.tags | {"br", "dd", "dl", "dt", "li", "ul"}
    assert attacked.attributes == plain.attributes
    assert attacked.links == plain.links


@pytest.mark.parametrize("page", ["clean", "hostile"])
def test_the_page_holds_nothing_that_runs_loads_or_leads_away(page, request):
    found = Page(request.getfixturevalue(page))
    assert not found.tags & {
        "script",
        "iframe",
        "object",
        "embed",
        "img",
        "link",
        "form",
        "input",
        "base",
        "audio",
        "video",
    }
    assert not [name for name in found.attributes if name.startswith("on") or name == "style"]
    assert found.links
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)


def test_hostile_text_is_shown_and_what_is_invisible_in_it_becomes_a_code_point(hostile):
    words = "".join(Page(hostile).words)
    assert words.count("<script>alert(1)</script>") > 30
    assert "{{ 7*7 }}" in words
    assert "⟨U+202E⟩evil⟨U+200B⟩⟨U+2028⟩⟨U+0007⟩" in words
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\u2028\x07]", hostile)


def test_the_policy_forbids_everything_but_the_one_style_sheet(clean):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', clean).group(1)
    style = re.search(r"<style>(.*?)</style>", clean, re.DOTALL).group(1)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy.replace("&#39;", "'") == (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    )
    assert clean.index("Content-Security-Policy") < clean.index("<style>")
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_the_same_every_time_and_small(clean):
    assert spec_bundle.parts().files()["dossier.html"].decode() == clean
    assert len(clean) < 2_000_000


def failing_page():
    parts = spec_bundle.parts()
    columns = parts.outcomes["compliance"]
    value = np.where(columns.arm == "candidate", np.clip(columns.value + 0.4, 0, 1), columns.value)
    parts.outcomes["compliance"] = type(columns)(
        columns.prompt, columns.cue, columns.item, columns.arm, columns.sample, value, columns.mass
    )
    return "".join(Page(parts.seal().files()["dossier.html"].decode()).words)


def test_the_worst_news_stands_before_everything_else_and_a_held_target_does_not_hide_it():
    text = failing_page()
    assert "Worst news: Harmful compliance" in text
    assert text.index("Worst news") < text.index("What was measured")
    assert "2 of 3 axes hold. Not: Harmful compliance." in text
    order = [
        text.index(name, text.index("What was measured")) for name in ("Harmful compliance", "Jailbreak resistance")
    ]
    assert order == sorted(order)


def test_where_everything_holds_the_page_says_what_is_closest_to_failing(clean):
    assert "Closest to failing:" in clean
    assert "Worst news" not in clean


def test_the_page_carries_the_four_lights_the_sixteen_questions_and_the_wording(clean):
    text = " ".join("".join(Page(clean).words).split())
    for light in ("Integrity digests only", "Evidence holds", "Scope one setting", "Independence self-attested"):
        assert light in text
    assert clean.count("<li><a href=") == 16
    for sentence in (
        "A control distribution bounds spurious effects, it does not exclude them.",
        "Absence of verbalised awareness is not absence of awareness.",
        "Results on the built-in organism say nothing about another model.",
        "No claim of regulatory compliance is made.",
    ):
        assert sentence in text


def test_samples_on_the_page_are_those_the_nonce_draws(clean):
    text = "".join(Page(clean).words)
    for k in samples(spec_bundle.NONCE, "resistance", 60, 5):
        assert f"prompt {k}, drawn by the nonce" in text


def test_every_axis_in_the_forest_is_turned_so_that_right_is_better_and_every_control_is_a_dot():
    bundle = verify_files(spec_bundle.parts().files()).bundle
    pairs = [(axis, one.estimate) for axis, one in zip(bundle.plan.axes, bundle.measurement.axes, strict=True)]
    drawn = forest(pairs)
    for (axis, estimate), row in zip(pairs, drawn.rows, strict=True):
        better = estimate.difference * (1 if axis.direction == "up" else -1) > 0
        assert (row.point > drawn.zero) == better
        assert LEFT <= row.low <= row.point <= row.high <= RIGHT
        assert row.cloud.count("M") == estimate.n_controls
    assert [label for _, label in drawn.ticks].count("0") == 1


def test_visible_keeps_ordinary_text_of_any_language():
    for text in ("plain", "Zürich – 东京 – مرحبا", "two\nlines", "e\u0301"):
        assert visible(text) == text
    assert visible("a\u202eb\t") == "a⟨U+202E⟩b⟨U+0009⟩"
