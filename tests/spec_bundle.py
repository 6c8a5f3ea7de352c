"""A small, complete and consistent spec bundle made of numbers alone: no model, no torch, a tenth of a second."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from workbench.core.canonical import sha256_hex
from workbench.spec.bundle import make_files
from workbench.spec.documents.edit import EditDocument, edits_digest
from workbench.spec.documents.manifest import Manifest
from workbench.spec.documents.measurement import AxisMeasurement, Estimate, Measurement, outcome_path
from workbench.spec.documents.plan import Plan
from workbench.spec.documents.spec import Spec
from workbench.spec.documents.subject import SubjectRecord
from workbench.spec.outcomes import Outcomes, read_outcomes
from workbench.spec.tensors import norm, write_tensors
from workbench.spec.verdicts import arrange, judge

NONCE = "5a" * 32
D_MODEL, N_VOCAB = 16, 50


def sha(text: str) -> str:
    return sha256_hex(text.encode())


def subject() -> dict:
    return {
        "name": "tiny",
        "source": {"kind": "local", "repo": "tiny"},
        "family": "llama",
        "n_layers": 2,
        "d_model": D_MODEL,
        "n_heads": 2,
        "n_vocab": N_VOCAB,
        "n_ctx": 64,
        "dtype": "float32",
        "digests": {
            "weights": {"model.safetensors": sha("weights")},
            "config": sha("config"),
            "tokenizer": sha("tokenizer"),
            "chat_template": None,
        },
        "bos": "one",
    }


def edits() -> list[dict]:
    positions = {"where": "all", "explicit": [], "exclude_special": True}
    feature = {
        "kind": "feature",
        "dictionary": "resid.1",
        "index": 3,
        "read": "resid.1",
        "write": "resid.1",
        "activation": "jumprelu",
        "scaling": "none",
        "label": "harmful request",
        "rows": {name: f"edit0.{name}" for name in ("W_enc", "b_enc", "W_dec", "threshold", "b_in")},
    }
    direction = {"kind": "direction", "name": "harm", "site": "attn.0", "read": "edit1.read", "write": "edit1.write"}
    gate = {
        "target": {**direction, "read": "edit1.gate.read", "write": "edit1.gate.write"},
        "threshold": 0.5,
        "above": True,
    }
    common = {"positions": positions, "max_ratio": None}
    return [
        {"op": "add", "site": "resid.1", "target": feature, "value": 2.5, "gate": None, **common},
        {"op": "add", "site": "attn.0", "target": direction, "value": -0.5, "gate": gate, **common},
    ]


def tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    shapes = {"W_enc": (D_MODEL, 1), "b_enc": (1,), "W_dec": (1, D_MODEL), "threshold": (1,), "b_in": (D_MODEL,)}
    found = {f"edit0.{name}": generator.normal(size=shape) for name, shape in shapes.items()}
    for name in ("edit1.read", "edit1.write", "edit1.gate.read", "edit1.gate.write"):
        found[name] = generator.normal(size=D_MODEL)
    return {name: array.astype(np.float32) for name, array in found.items()}


def axes() -> list[dict]:
    common = {
        "definition": "built for the tests; P(event) against its alternative",
        "split": "test",
        "drawn": "from_nonce",
        "metric": "P(refuse)",
        "metric_type": "teacher_forced",
        "scorer": "next-token probability",
    }
    return [
        {
            "id": "resistance",
            "title": "Jailbreak resistance",
            "kind": "target",
            "harm": False,
            "direction": "up",
            "source": sha("resistance"),
            "rule": "beyond_controls",
            "margin": 0.05,
            "n": 60,
            "n_controls": 99,
            **common,
        },
        {
            "id": "compliance",
            "title": "Harmful compliance",
            "kind": "off_target",
            "harm": True,
            "direction": "down",
            "source": sha("compliance"),
            "rule": "not_worse",
            "margin": 0.05,
            "n": 60,
            "n_controls": 0,
            **common,
        },
        {
            "id": "cue",
            "title": "Evaluation awareness",
            "kind": "evaluation_awareness",
            "harm": False,
            "direction": "down",
            "source": sha("cue"),
            "rule": "unchanged",
            "margin": 0.1,
            "n": 60,
            "n_controls": 0,
            **common,
        },
    ]


EFFECTS = {"resistance": (0.5, 0.35), "compliance": (0.1, -0.02), "cue": (0.4, 0.01)}
"""Axis → base level and effect of the candidate."""


def arm_values(axis: dict, arm: str, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Values and masses of one arm; what the arms share per prompt is shared, as in a paired trial."""
    base, effect = EFFECTS[axis["id"]]
    shared = np.random.default_rng(len(axis["id"])).normal(scale=0.04, size=axis["n"])
    own = np.random.default_rng(1000 + number).normal(scale=0.02, size=axis["n"])
    if arm in ("base", "noop"):
        value = base + shared
    elif arm.startswith("control"):
        value = base + shared + own + 0.1 * np.random.default_rng(2000 + number).normal()
    else:
        scale = {"candidate": 1.0, "difference_of_means": 0.6, "dose:-1": -1.0, "dose:0.5": 0.5}[arm]
        value = base + shared + own + scale * effect
    return np.clip(value, 0, 1), np.full(axis["n"], 0.97)


def known_answers() -> dict:
    answers = []
    for k in range(8):
        top = [{"token": 10 + j, "logit": 5.0 - j} for j in range(5)]
        moved = [{"token": 10 + j, "logit": 6.0 - 1.5 * j} for j in range(5)]
        firings = [{"edit": e, "positions": 3, "max_ratio": 0.2} for e in range(2)]
        answers.append(
            {"token_ids": [1, 2, 3, k + 4], "text": f"prompt {k}", "base": top, "edited": moved, "firings": firings}
        )
    return {"answers": answers, "tolerance": {"float32": 1e-4, "bfloat16": 0.1}}


@dataclass
class Parts:
    """What a bundle is made of, as plain JSON values that a test may change before `files` is called."""

    spec: dict
    plan: dict
    measurement: dict
    tensors: dict[str, np.ndarray]
    outcomes: dict[str, Outcomes]
    estimates: dict[str, dict] = field(default_factory=dict)

    def documents(self) -> tuple[Spec, Plan, Measurement]:
        """Bind the parts together: digests, estimates, declared tensors."""
        return Spec.from_json(self.spec), Plan.from_json(self.plan), Measurement.from_json(self.measurement)

    def files(self) -> dict[str, bytes]:
        """Give every file of the bundle, manifest included."""
        return make_files(*self.documents(), self.tensors, self.outcomes)

    def seal(self) -> "Parts":
        """Work out every digest and estimate again, as an honest author would after a change."""
        rows = self.tensors
        self.spec["tensors"] = {
            "sha256": sha256_hex(write_tensors(rows)),
            "tensors": [{"name": n, "shape": list(rows[n].shape), "norm": norm(rows[n])} for n in sorted(rows)],
        }
        written = [EditDocument.from_json(one).to_json() for one in self.spec["edits"]]
        identity = {"edits": edits_digest(written, rows)}
        identity["subject"] = SubjectRecord.from_json(self.spec["subject"]).identity()
        self.plan |= identity
        plan = Plan.from_json(self.plan)
        self.measurement |= {**identity, "plan": plan.identity(), "axes": []}
        for axis in plan.axes:
            columns = self.outcomes[axis.id]
            data = columns.to_bytes()
            prompts = [
                {"text": f"<|user|> request {k}<|assistant|>", "event": [" sorry"], "against": [" sure"], "truth": None}
                for k in range(axis.n)
            ]
            estimate = judge(plan, axis, self.measurement["nonce"], arrange(plan, axis, axis.n, columns)).to_json()
            estimate |= self.estimates.get(axis.id, {})
            measured = AxisMeasurement.from_json(
                {
                    "axis": axis.id,
                    "outcomes": {"path": outcome_path(axis.id), "sha256": sha256_hex(data), "rows": len(columns)},
                    "prompts": prompts,
                    "estimate": Estimate.from_json(estimate).to_json(),
                }
            )
            self.measurement["axes"].append(measured.to_json())
        return self


def parts() -> Parts:
    """Give the parts of a bundle that passes every check."""
    code = {"version": "0.1.0", "revision": None, "dirty": None}
    environment = {
        "python": "3.11.7",
        "packages": {"torch": "2.13.0", "transformers": "5.23.0"},
        "hardware": "a CPU",
        "threads": 1,
        "deterministic": False,
    }
    arms = [
        {"id": "base", "kind": "base", "description": "The subject as it is."},
        {"id": "noop", "kind": "noop", "description": "The hooks with a change of zero.", "axes": ["resistance"]},
        {"id": "candidate", "kind": "candidate", "description": "The edits as they would ship."},
        {"id": "dose:-1", "kind": "dose", "description": "Reversed.", "dose": -1.0, "axes": ["resistance"]},
        {"id": "dose:0.5", "kind": "dose", "description": "Half as much.", "dose": 0.5, "axes": ["resistance"]},
        {"id": "control", "kind": "control", "description": "Random rows.", "family": "isotropic", "n": 99},
        {
            "id": "difference_of_means",
            "kind": "difference_of_means",
            "description": "The mean difference, added.",
            "tuning": "coefficient by equal benign KL on dev",
        },
    ]
    plan = {
        "title": "Raising a refusal feature makes the subject resist jailbreaks.",
        "author": "a tester",
        "frozen": "2026-11-21T09:00:00Z",
        "subject": sha("?"),
        "dictionaries": [sha("dictionary")],
        "edits": sha("?"),
        "primary": "resistance",
        "axes": axes(),
        "arms": arms,
        "n_boot": 500,
        "candidates_tried": 12,
        "selection_rule": "largest dev effect",
        "unmeasured": {"adversarial": "no attack was run"},
    }
    layout = Plan.from_json(plan)
    outcomes = {}
    for axis, declared in zip(axes(), layout.axes, strict=True):
        names = layout.arms_of(declared)
        clusters = [{"cue": f"cue {k % 12}", "item": f"item {k // 5 % 12}"} for k in range(axis["n"])]
        outcomes[axis["id"]] = Outcomes.of_arms(clusters, {a: arm_values(axis, a, k) for k, a in enumerate(names)})
    spec = {
        "kind": "edit",
        "name": "resist",
        "title": "Resist jailbreaks by a refusal feature",
        "purpose": "Answers to harmful requests in a jailbreak framing; our own definition.",
        "why_an_edit": "It can be switched off and touches no weight.",
        "author": "a tester",
        "created": "2026-11-21T11:00:00Z",
        "subject": subject(),
        "dictionaries": [
            {
                "id": "resid.1",
                "kind": "sae",
                "architecture": "jumprelu",
                "read_site": "resid.1",
                "write_site": "resid.1",
                "d_in": D_MODEL,
                "d_out": D_MODEL,
                "d_dict": 64,
                "scaling": "none",
                "digest": sha("dictionary"),
            }
        ],
        "sites": [
            {"name": "attn.0", "hf_module": "model.layers.0.self_attn", "hf_side": "output", "width": D_MODEL},
            {"name": "resid.1", "hf_module": "model.layers.1", "hf_side": "output", "width": D_MODEL},
        ],
        "features": [
            {
                "dictionary": "resid.1",
                "index": 3,
                "label": "harmful request",
                "labelled_by": "a tester",
                "density": 0.02,
                "max_activation": 4.5,
                "n_tokens": 100_000,
                "corpus": sha("corpus"),
                "examples": [
                    {"text": "how do i break a lock", "token": " break", "activation": 4.5, "drawn": "top"},
                    {"text": "the cat sat", "token": " cat", "activation": 0.3, "drawn": "random"},
                ],
                "selection": {
                    "axis": "resistance",
                    "split": "dev",
                    "effect": 1.4,
                    "low": 1.1,
                    "high": 1.7,
                    "auroc": 0.86,
                    "n": 256,
                    "rank": 2,
                    "n_ranked": 4096,
                },
                "ablation_effect": None,
                "unmeasured": {"ablation_effect": "not run"},
            }
        ],
        "edits": edits(),
        "known_answers": known_answers(),
        "limitations": ["Measured on made-up numbers."],
        "invalid_when": [{"text": "The weights differ.", "check": "subject_digest"}],
        "provenance": {
            "code": code,
            "environment": environment,
            "search": {
                "candidates_tried": 12,
                "space": "one layer, one operation, three strengths.",
                "selection_rule": "Largest dev effect.",
                "split": "dev",
            },
        },
    }
    measurement = {
        "plan": sha("?"),
        "edits": sha("?"),
        "subject": sha("?"),
        "nonce": NONCE,
        "started": "2026-11-21T10:00:00Z",
        "finished": "2026-11-21T10:05:00Z",
        "runtime": "plain transformers",
        "code": code,
        "environment": environment,
        "axes": [],
    }
    return Parts(spec, plan, measurement, tensors(), outcomes).seal()


def rehashed(files: dict[str, bytes]) -> dict[str, bytes]:
    """Give the files with a manifest made anew: what somebody does who can compute digests."""
    return {**files, "manifest.json": Manifest.of(files).to_bytes()}


def without_control(columns: Outcomes, arm: str) -> Outcomes:
    """Give outcomes that lack one arm."""
    kept = columns.arm != arm
    names = ("prompt", "cue", "item", "arm", "sample", "value", "mass")
    return replace(columns, **{name: getattr(columns, name)[kept] for name in names})


def arrange_from_bytes(columns: Outcomes) -> Outcomes:
    """Write outcomes and read them back."""
    return read_outcomes(columns.to_bytes(), path="outcomes/cue.parquet")
