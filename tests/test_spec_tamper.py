"""A bundle that was damaged, dressed up or forged is refused, and the file and the reason are named."""

import io
import json
import os
import pickle
import re
import stat
import struct
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import spec_bundle

from workbench.core.canonical import canonical_bytes, sha256_hex
from workbench.core.errors import BundleError, InputError
from workbench.spec import archive
from workbench.spec.archive import pack, read_files, unpack, write_files
from workbench.spec.bundle import DOCUMENTS, check_manifest, read_bundle, write_bundle
from workbench.spec.documents.manifest import Manifest
from workbench.spec.outcomes import read_outcomes
from workbench.spec.tensors import read_tensors, write_tensors
from workbench.spec.verify import verify, verify_files


@pytest.fixture(scope="module")
def files():
    return spec_bundle.parts().files()


@pytest.fixture
def parts():
    return spec_bundle.parts()


def refused(files, check, *words, sealed=True):
    found = verify_files(spec_bundle.rehashed(files) if sealed else files)
    last = found.checks[-1]
    assert not found.ok
    assert found.state == "refused"
    assert [one.ok for one in found.checks] == [True] * (len(found.checks) - 1) + [False]
    assert last.id == check, last
    for word in words:
        assert word in last.message, last.message
    return last.message


def changed(files, name, **replaced):
    """Change a document by text and re-hash; its own digests elsewhere stay as they were."""
    data = files[name]
    for old, new in replaced.values():
        assert old in data
        data = data.replace(old, new, 1)
    return {**files, name: data}


def test_a_clean_bundle_passes_every_check_as_folder_and_as_archive(files, tmp_path):
    for target in (tmp_path / "folder", tmp_path / "one.wbspec"):
        write_files(target, files)
        found = verify(target)
        assert found.ok
        assert found.state == "measured"
        assert found.to_json()["checks"][-1]["id"] == "dossier"
        assert read_bundle(target).files == files


NAMES = ["manifest.json", "spec.json", "plan.json", "measurement.json", "tensors.safetensors", "dossier.html"]
NAMES += [f"outcomes/{axis}.parquet" for axis in ("resistance", "compliance", "cue")]


def flipped(data, at, bit):
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_of_any_file_fails_verification_and_names_the_file(files, name):
    generator = np.random.default_rng(len(name))
    for at in [0, len(files[name]) - 1, *generator.integers(0, len(files[name]), 30)]:
        found = verify_files({**files, name: flipped(files[name], int(at), int(generator.integers(8)))})
        assert not found.ok, at
        assert name in found.checks[-1].message, (at, found.checks[-1])


def read_one(files, name, manifest):
    """Run the checks that a single file meets: its own strict reading, then the manifest."""
    if name in DOCUMENTS:
        document = DOCUMENTS[name].from_bytes(files[name], path=name)
        manifest = document if name == "manifest.json" else manifest
    elif name == "tensors.safetensors":
        read_tensors(files[name], path=name)
    check_manifest(files, manifest)


@pytest.mark.parametrize("name", NAMES)
def test_no_flipped_bit_passes_the_checks_of_its_file(files, name):
    """Every bit of files up to 1.2 kB; of larger ones one bit of every fifth to every 61st byte."""
    data, manifest = files[name], Manifest.from_bytes(files["manifest.json"])
    small = len(data) <= 1200
    step = 1 if small else 5 if len(data) <= 8000 else 61
    for at in range(0, len(data), step):
        for bit in range(8) if small else [at % 8]:
            with pytest.raises(BundleError) as refusal:
                read_one({**files, name: flipped(data, at, bit)}, name, manifest)
            assert name in str(refusal.value), (at, bit)


def test_any_flipped_bit_of_an_archive_is_refused(files):
    small = {name: files[name] for name in ("plan.json", "tensors.safetensors", "manifest.json")}
    data = pack(small)
    for at in range(0, len(data), 3):
        broken = bytearray(data)
        broken[at] ^= 1 << at % 8
        with pytest.raises(BundleError) as refusal:
            unpack(bytes(broken), path="one.wbspec")
        assert refusal.value.check == "archive"
        assert "one.wbspec" in str(refusal.value)


def test_an_archive_cut_anywhere_is_refused(files):
    data = pack({"plan.json": files["plan.json"]})
    for end in range(0, len(data), 7):
        with pytest.raises(BundleError):
            unpack(data[:end], path="one.wbspec")


# ---- archive and folder


def entry(name, data, *, flags=0, method=0, external=0, packed=None, crc=None):
    """One zip entry, free to lie: local part and directory part."""
    packed = data if packed is None else packed
    crc = zlib.crc32(data) if crc is None else crc
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, flags, method, 0, 33, crc, len(packed), len(data), len(name), 0)
    central = struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", 20, 20, flags, method, 0, 33, crc, len(packed), len(data), len(name), 0, 0, 0, 0,
        external, 0,
    )  # fmt: skip
    return local + name + packed, central + name


def zipped(*entries):
    body, directory = b"", b""
    for local, central in entries:
        directory += central[:42] + struct.pack("<L", len(body)) + central[46:]
        body += local
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return body + directory + end


@pytest.mark.parametrize("name", [b"../spec.json", b"/spec.json", b"a/../../b", b"..\\spec.json", b"c:/spec.json"])
def test_an_entry_that_leads_out_of_the_archive_is_refused(name):
    with pytest.raises(BundleError, match="leads out"):
        unpack(zipped(entry(name, b"{}")), path="x.wbspec")


@pytest.mark.parametrize(
    ("words", "lie"),
    [
        ("encrypted", {"flags": 1}),
        ("symbolic link", {"external": (stat.S_IFLNK | 0o777) << 16}),
        ("compressed", {"method": 8, "packed": zlib.compress(b"{}" * 9)[2:-4]}),
        ("checksum", {"crc": 1}),
        ("re-packing", {"external": 0o644 << 16}),
        ("re-packing", {"flags": 0x800}),
    ],
)
def test_an_entry_that_is_not_stored_plainly_is_refused(words, lie):
    with pytest.raises(BundleError, match=words):
        unpack(zipped(entry(b"spec.json", b"{}" * 9, **lie)), path="x.wbspec")


def test_a_bomb_is_refused_before_anything_is_inflated():
    bomb = zlib.compress(b"\0" * 50_000_000, 9)[2:-4]
    with pytest.raises(BundleError, match="compressed"):
        unpack(zipped(entry(b"spec.json", b"\0" * 50_000_000, method=8, packed=bomb)), path="x.wbspec")


def test_sizes_beyond_the_limits_are_refused_before_they_are_read(files, tmp_path, monkeypatch):
    folder, one = write_files(tmp_path / "b", files), write_files(tmp_path / "b.wbspec", files)
    for limit, value, path, words in (
        ("MAX_TOTAL", 1000, folder, "more than"),
        ("MAX_TOTAL", 1000, one, "at most 1000 are read"),
        ("MAX_FILE", 1000, folder, "more than"),
        ("MAX_FILE", 1000, one, "at most 1000 are read"),
        ("MAX_FILES", 3, folder, "more than 3 files"),
        ("MAX_FILES", 3, one, "9 entries, at most 3 are read"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(archive, limit, value)
            found = verify(path)
        assert not found.ok, (limit, path)
        assert words in found.checks[0].message
    with monkeypatch.context() as patch:
        patch.setattr(archive, "MAX_TOTAL", 1000)
        with pytest.raises(BundleError, match="more than 1000 bytes in all"):
            unpack(pack(files), path="x.wbspec")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda data: data[:-1], "does not end as an archive does"),
        (lambda data: data + b"x", "does not end as an archive does"),
        (lambda data: data[:-6] + b"\1\0\0\0" + data[-2:], "not where the archive says"),
        (lambda data: data[:-12] + b"\2\0\2\0" + data[-8:], "not where|truncated|damaged"),
        (lambda data: data.replace(b"PK\x01\x02", b"PK\x01\x03"), "directory of entries is damaged"),
    ],
)
def test_a_damaged_directory_of_entries_is_refused(damage, words):
    with pytest.raises(BundleError, match=words):
        unpack(damage(pack({"plan.json": b"{}"})), path="x.wbspec")


def test_an_entry_that_claims_more_bytes_than_there_are_is_refused():
    local, central = entry(b"plan.json", b"{}")
    longer = central[:20] + struct.pack("<LL", 500, 500) + central[28:]
    with pytest.raises(BundleError, match="the entry is truncated"):
        unpack(zipped((local, longer)), path="x.wbspec")


def test_a_device_or_pipe_in_place_of_a_bundle_is_refused(tmp_path):
    os.mkfifo(tmp_path / "x.wbspec")
    assert "neither a folder nor a plain file" in verify(tmp_path / "x.wbspec").checks[0].message


def test_a_doubled_entry_is_refused():
    with pytest.raises(BundleError, match="twice"):
        unpack(zipped(entry(b"spec.json", b"{}"), entry(b"spec.json", b"[]")), path="x.wbspec")


def test_an_entry_that_has_no_place_is_refused():
    for name in (b"hooks.py", b"inner.wbspec", b"outcomes/deeper/x.parquet", b"SPEC.json", b"spec.json\0"):
        with pytest.raises(BundleError, match="no place"):
            unpack(zipped(entry(name, b"x")), path="x.wbspec")


def test_too_many_entries_are_refused():
    many = [entry(b"outcomes/a%d.parquet" % k, b"") for k in range(archive.MAX_FILES + 1)]
    with pytest.raises(BundleError, match="entries"):
        unpack(zipped(*many), path="x.wbspec")


def test_bytes_before_between_or_behind_entries_are_refused(files):
    data = pack({"plan.json": files["plan.json"]})
    local, central = entry(b"plan.json", files["plan.json"])
    for broken in (b"MZ" + data, data + b"\0", zipped((local + b"hidden", central))):
        with pytest.raises(BundleError):
            unpack(broken, path="x.wbspec")


def test_an_ordinary_zip_of_the_same_files_is_refused_with_a_reason(files, tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "x.wbspec", "w", zipfile.ZIP_DEFLATED) as target:
        for name in sorted(files):
            target.writestr(name, files[name])
    found = verify(tmp_path / "x.wbspec")
    assert not found.ok
    assert "compressed" in found.checks[0].message


def test_an_archive_opens_in_an_ordinary_zip_reader(files):
    import zipfile

    with zipfile.ZipFile(io.BytesIO(pack(files))) as opened:
        assert opened.testzip() is None
        assert {name: opened.read(name) for name in opened.namelist()} == files


@pytest.mark.parametrize("kind", ["symlink", "folder_symlink", "fifo", "extra", "extra_folder", "missing"])
def test_a_folder_that_holds_anything_else_is_refused(files, tmp_path, kind):
    folder = write_files(tmp_path / "b", files)
    if kind == "symlink":
        (folder / "plan.json").rename(tmp_path / "plan.json")
        (folder / "plan.json").symlink_to(tmp_path / "plan.json")
    elif kind == "folder_symlink":
        (folder / "outcomes").rename(tmp_path / "outcomes")
        (folder / "outcomes").symlink_to(tmp_path / "outcomes")
    elif kind == "fifo":
        (folder / "plan.json").unlink()
        os.mkfifo(folder / "plan.json")
    elif kind == "extra":
        (folder / "notes.txt").write_text("hello")
    elif kind == "extra_folder":
        (folder / "outcomes" / "more").mkdir()
    else:
        (folder / "plan.json").unlink()
    found = verify(folder)
    assert found.checks[-1].id == "archive"
    words = {
        "symlink": "plan.json: is a symbolic link",
        "folder_symlink": "outcomes: is a symbolic link",
        "fifo": "plan.json: is not a plain file",
        "extra": "notes.txt: has no place",
        "extra_folder": "outcomes/more: has no place",
        "missing": "plan.json: is missing",
    }[kind]
    assert words in found.checks[-1].message


@pytest.mark.parametrize("content", [None, b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + b"\0" * 18])
def test_a_path_that_holds_no_bundle_is_refused_without_an_exception(tmp_path, content):
    if content is not None:
        (tmp_path / "x.wbspec").write_bytes(content)
    found = verify(tmp_path / "x.wbspec")
    assert not found.ok
    assert found.checks[0].message.startswith("x.wbspec: ")


def test_nothing_is_written_where_something_is_or_where_the_bundle_would_be_refused(files, parts, tmp_path):
    target = tmp_path / "b.wbspec"
    write_files(target, files)
    with pytest.raises(InputError, match="immutable"):
        write_files(target, files)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not lose me")
    with pytest.raises(InputError, match="left alone"):
        write_files(tmp_path / "mine", files, overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not lose me"
    spec, plan, measurement = parts.documents()
    parts.tensors["edit0.W_dec"] = parts.tensors["edit0.W_dec"] + 1
    with pytest.raises(BundleError, match="would be refused"):
        write_bundle(tmp_path / "new", spec, plan, measurement, parts.tensors, parts.outcomes)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.wbspec", "mine"]


@pytest.mark.parametrize("name", ["b", "b.wbspec"])
def test_overwriting_replaces_a_bundle_whole(files, tmp_path, name):
    target = write_files(tmp_path / name, {**files, "outcomes/old.parquet": b"old"})
    write_files(target, files, overwrite=True)
    assert read_files(target) == files
    assert [path.name for path in tmp_path.iterdir()] == [name]


# ---- strict JSON and schema


@pytest.mark.parametrize(
    ("old", "new", "check", "words"),
    [
        (b'"value":2.5', b'"value":NaN', "json", "NaN is not a number"),
        (b'"value":2.5', b'"value":-Infinity', "json", "Infinity is not a number"),
        (b'"value":2.5', b'"value":1e999', "json", "1e999 is too large"),
        (b'"value":2.5', b'"value":2.5,"value":99', "json", "'value' stands twice"),
        (b'"value":2.5', b'"value":2.50', "json", "not in canonical form"),
        (b'"value":2.5', b'"value": 2.5', "json", "not in canonical form"),
        (b'"value":2.5', b'"value":9007199254740993', "json", "beyond 2^53"),
        (b'"value":2.5', b'"value":"2.5"', "schema", "value"),
        (b'"value":2.5', b'"value":true', "schema", "value"),
        (b'"value":2.5', b'"value":2000000', "schema", "less than or equal"),
        (b'"value":2.5', b'"value":2.5,"vigour":1', "schema", "unknown field"),
        (b'"value":2.5', b'"value":null', "schema", "add needs a value"),
        (b'"kind":"edit"', b'"kind":"patch"', "schema", "kind"),
        (b'"workbench.spec/1"', b'"workbench.spec/2"', "schema", "schema_version"),
        (b'"supersedes":null,', b"", "schema", "absent that must be written out: supersedes"),
        (b'"title":', b'"title\\ud800":', "json", "surrogate"),
        (b'"limitations":["Measured on made-up numbers."]', b'"limitations":[]', "schema", "limitations"),
        (b"{", b"\xef\xbb\xbf{", "json", "byte-order mark"),
        (b"made-up", b"made-\xff", "json", "not UTF-8"),
        (b"[", b"[" * 4000, "json", "spec.json"),
    ],
)
def test_a_spec_that_two_readers_could_read_differently_is_refused(files, old, new, check, words):
    refused(changed(files, "spec.json", one=(old, new)), check, "spec.json", words)


def test_deep_nesting_is_refused_by_its_depth(files):
    refused({**files, "plan.json": b"[" * 40 + b"]" * 40}, "json", "plan.json", "nested deeper than 32")
    refused({**files, "plan.json": b"[" * 100_000 + b"]" * 100_000}, "json", "plan.json", "nested deeper than 32")


def test_a_huge_document_is_refused_by_its_size(files):
    refused({**files, "plan.json": b" " * (16 * 2**20 + 1)}, "json", "plan.json", "bytes of JSON")


def test_a_newline_at_the_end_is_not_canonical(files):
    refused({**files, "plan.json": files["plan.json"] + b"\n"}, "json", "plan.json", "canonical")


# ---- tensors


def header(files):
    data = files["tensors.safetensors"]
    size = struct.unpack_from("<Q", data)[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def with_header(files, head, body):
    raw = head if isinstance(head, bytes) else canonical_bytes(head)
    raw += b" " * (-len(raw) % 8)
    return {**files, "tensors.safetensors": struct.pack("<Q", len(raw)) + raw + body}


def test_a_pickle_is_refused_as_one(files):
    refused({**files, "tensors.safetensors": pickle.dumps({"edit0.W_enc": [1.0]})}, "tensors", "pickle")


def test_a_torch_checkpoint_is_refused_as_one(files):
    refused({**files, "tensors.safetensors": b"PK\x03\x04" + b"\0" * 60}, "tensors", "PyTorch checkpoint")


def test_a_header_bomb_is_refused_before_it_is_read(files):
    refused({**files, "tensors.safetensors": struct.pack("<Q", 10**15) + b"{}"}, "tensors", "header says")


def test_truncated_tensors_are_refused(files):
    for end in (0, 5, 8, 100, len(files["tensors.safetensors"]) - 4):
        cut = {**files, "tensors.safetensors": files["tensors.safetensors"][:end]}
        refused(cut, "tensors", "tensors.safetensors")


def test_trailing_bytes_are_refused(files):
    refused({**files, "tensors.safetensors": files["tensors.safetensors"] + b"EVIL"}, "tensors", "4 bytes follow")


def test_a_gap_and_an_overlap_are_refused(files):
    for shift, words in ((4, "gap"), (-4, "overlaps")):
        head, body = header(files)
        name = sorted(head)[3]
        head[name]["data_offsets"] = [end + shift for end in head[name]["data_offsets"]]
        refused(with_header(files, head, body), "tensors", words)


@pytest.mark.parametrize("dtype", ["F64", "BF16", "I32", "f32", 5])
def test_another_dtype_is_refused(files, dtype):
    head, body = header(files)
    head[sorted(head)[0]]["dtype"] = dtype
    refused(with_header(files, head, body), "tensors", "only F32")


@pytest.mark.parametrize(
    ("shape", "words"),
    [([-1, 16], "counts"), ([2**40, 2**40], "bytes for the shape"), ([True], "counts"), ("16", "counts")],
)
def test_an_impossible_shape_is_refused(files, shape, words):
    head, body = header(files)
    head[sorted(head)[0]]["shape"] = shape
    refused(with_header(files, head, body), "tensors", words)


def test_free_metadata_and_duplicate_header_keys_are_refused(files):
    head, body = header(files)
    refused(with_header(files, {"__metadata__": {"a": "b"}, **head}, body), "tensors", "free metadata")
    raw = canonical_bytes(head)
    doubled = raw[:-1] + b',"edit0.W_dec":' + canonical_bytes(head["edit0.W_dec"]) + b"}"
    refused(with_header(files, doubled, body), "tensors", "stands twice")


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"[]      ", "not an object"),
        (b'{"a":1} ', "expected dtype, shape and data_offsets"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}', "not two integers"),
        (b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"x":1}}', "expected dtype, shape and data_offsets"),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', "ends at 16, the file has 4 bytes"),
        (b"{", "header: not JSON"),
    ],
)
def test_a_header_that_is_no_table_of_tensors_is_refused(files, head, words):
    refused(with_header(files, head, b"\0\0\0\0"), "tensors", words)


def test_a_header_longer_than_its_file_is_refused(files):
    refused({**files, "tensors.safetensors": struct.pack("<Q", 500) + b"{}"}, "tensors", "truncated: the header")


def test_a_header_spelt_differently_is_refused(files):
    head, body = header(files)
    refused(with_header(files, json.dumps(head).encode(), body), "tensors", "canonical form")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_tensor_value_that_is_not_finite_is_refused(files, value):
    data = bytearray(files["tensors.safetensors"])
    data[-4:] = struct.pack("<f", value)
    refused(
        {**files, "tensors.safetensors": bytes(data)}, "tensors", "tensors.safetensors: tensor edit1.write holds NaN"
    )


def test_a_row_that_was_changed_a_little_is_refused_by_its_declared_norm(files):
    data = bytearray(files["tensors.safetensors"])
    data[-2] ^= 1
    refused({**files, "tensors.safetensors": bytes(data)}, "tensors", "norm", "spec.json declares")


def test_a_spare_a_missing_and_a_reshaped_tensor_are_refused(files):
    tensors = spec_bundle.tensors()
    spare = {**tensors, "spare": np.ones(3, np.float32)}
    reshaped = {**tensors, "edit0.W_enc": tensors["edit0.W_enc"].reshape(4, 4)}
    fewer = {name: array for name, array in tensors.items() if name != "edit0.b_enc"}
    for found, words in ((spare, "not declared ['spare']"), (fewer, "missing ['edit0.b_enc']"), (reshaped, "[4, 4]")):
        refused({**files, "tensors.safetensors": write_tensors(found)}, "tensors", words)


def test_a_turned_row_of_equal_norm_is_refused_by_the_chain(parts):
    parts.tensors["edit1.write"] = -parts.tensors["edit1.write"]
    refused(parts.files(), "chain", "tensors.safetensors")
    parts.spec["tensors"]["sha256"] = sha256_hex(parts.files()["tensors.safetensors"])
    refused(parts.files(), "chain", "plan.json", "edits and their tensors")


# ---- manifest


def test_files_that_the_manifest_does_not_list_or_lists_in_vain_are_refused(files):
    spare = {**files, "outcomes/spare.parquet": b"x"}
    refused(spare, "manifest", "outcomes/spare.parquet", "not listed", sealed=False)
    refused(
        {k: v for k, v in files.items() if not k.endswith("cue.parquet")},
        "manifest",
        "manifest.json: lists",
        sealed=False,
    )
    refused(spare, "outcomes", "outcomes/spare.parquet", "belongs to no axis")


# ---- chain: re-hashed forgeries


def resealed(parts, document, **fields):
    """Change a document and bind the manifest and the measurement's digest of the plan anew, nothing else."""
    getattr(parts, document).update(fields)
    return parts.files()


def test_a_changed_strength_is_refused_though_everything_was_rehashed(parts):
    parts.spec["edits"][0]["value"] = 3.5
    refused(parts.files(), "chain", "plan.json", "edits")


def test_a_changed_gate_threshold_is_refused_though_everything_was_rehashed(parts):
    parts.spec["edits"][1]["gate"]["threshold"] = 0.1
    refused(parts.files(), "chain", "plan.json", "edits")


def test_a_plan_that_was_relaxed_after_measuring_is_refused(parts):
    parts.plan["axes"][1]["margin"] = 0.5
    refused(parts.files(), "chain", "measurement.json", "plan.json")


def test_a_measurement_of_another_edit_or_model_is_refused(parts):
    refused(resealed(parts, "measurement", edits=spec_bundle.sha("other")), "chain", "measurement.json", "edits")
    parts.seal()
    refused(resealed(parts, "measurement", subject=spec_bundle.sha("x")), "chain", "measurement.json", "subject")


def test_a_swapped_model_is_refused(parts):
    parts.spec["subject"]["digests"]["tokenizer"] = spec_bundle.sha("another tokenizer")
    refused(parts.files(), "chain", "plan.json", "subject")


def test_a_swapped_dictionary_is_refused(parts):
    parts.spec["dictionaries"][0]["digest"] = spec_bundle.sha("another dictionary")
    refused(parts.files(), "chain", "plan.json", "dictionaries")


def test_a_measurement_begun_before_the_plan_was_frozen_is_refused(parts):
    refused(resealed(parts, "measurement", started="2026-11-20T08:00:00Z"), "chain", "before the plan was frozen")


def test_a_dropped_axis_is_refused(parts, files):
    parts.measurement["axes"] = [axis for axis in parts.measurement["axes"] if axis["axis"] != "compliance"]
    with pytest.raises(BundleError, match="axis compliance was promised and is missing"):
        parts.files()
    forged = {**files, "measurement.json": parts.documents()[2].to_bytes()}
    refused(forged, "chain", "measurement.json: axis compliance was promised and is missing")


def test_rows_of_another_width_are_refused(parts):
    parts.tensors["edit1.read"] = parts.tensors["edit1.read"][:8].copy()
    parts.seal()
    refused(parts.files(), "chain", "edit1.read", "the site needs [16]")


def test_a_dictionary_of_another_width_than_its_site_is_refused(parts):
    parts.spec["sites"][1]["width"] = 32
    refused(parts.files(), "chain", "dictionary resid.1 is not as wide as the sites")


def test_axes_in_another_order_than_promised_are_refused(parts, files):
    parts.measurement["axes"].reverse()
    forged = {**files, "measurement.json": parts.documents()[2].to_bytes()}
    refused(forged, "chain", "measures the axes ['cue', 'compliance', 'resistance']")


# ---- known answers


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda known: [a["firings"][1].update(positions=0) for a in known["answers"]],
            "edit 1 acts in no",
        ),
        (lambda known: [a.update(edited=a["base"]) for a in known["answers"]], "moves no listed logit"),
        (lambda known: known["answers"][2].update(token_ids=[1, 2, 99]), "known answer 2: a token or length"),
        (lambda known: known["answers"][2].update(token_ids=[1] * 65), "known answer 2: a token or length"),
        (lambda known: known["answers"][2]["base"].reverse(), "descending order"),
        (lambda known: known["answers"][3]["firings"].pop(), "once per edit"),
        (lambda known: known["answers"][3]["firings"][0].update(positions=30), "more positions"),
        (lambda known: known["answers"][1]["base"].pop(), "4 logits unedited, 5 edited"),
        (lambda known: known["tolerance"].pop("float32"), "no tolerance"),
    ],
)
def test_known_answers_that_prove_nothing_are_refused(parts, break_it, words):
    break_it(parts.spec["known_answers"])
    refused(parts.files(), "known_answers", "spec.json", words)


def test_fewer_than_eight_known_answers_are_refused(parts):
    parts.spec["known_answers"]["answers"].pop()
    with pytest.raises(BundleError, match="at least 8 are needed"):
        parts.files()


# ---- outcomes and verdicts


def measured_again(parts, axis, columns, *, judged=True):
    """Put other outcomes in and record their digest, as a forger would; estimates are kept unless judged again."""
    parts.outcomes[axis] = columns
    record = next(one for one in parts.measurement["axes"] if one["axis"] == axis)
    data = columns.to_bytes()
    record["outcomes"] |= {"sha256": sha256_hex(data), "rows": len(columns)}
    return parts.files()


def test_a_dropped_control_is_refused(parts):
    columns = spec_bundle.without_control(parts.outcomes["resistance"], "control:017")
    refused(measured_again(parts, "resistance", columns), "outcomes", "control:017 was promised and is missing")


def test_an_arm_that_was_never_declared_is_refused(parts):
    columns = parts.outcomes["cue"]
    arm = np.where(columns.arm == "difference_of_means", "probe", columns.arm).astype(object)
    message = refused(measured_again(parts, "cue", replace(columns, arm=arm)), "outcomes", "outcomes/cue.parquet")
    assert "difference_of_means was promised and is missing" in message


def test_a_prompt_that_was_left_out_of_one_arm_is_refused(parts):
    columns = parts.outcomes["cue"]
    prompt = columns.prompt.copy()
    prompt[3] = 4
    refused(measured_again(parts, "cue", replace(columns, prompt=prompt)), "outcomes", "every prompt once")


def with_arm(columns, arm, source):
    """Give outcomes with one more arm, a copy of another."""
    rows = columns.arm == source
    names = ("prompt", "cue", "item", "sample", "value", "mass")
    more = {name: np.concatenate([getattr(columns, name), getattr(columns, name)[rows]]) for name in names}
    return replace(columns, **more, arm=np.concatenate([columns.arm, np.array([arm] * rows.sum(), object)]))


def test_an_arm_that_was_never_declared_is_refused_even_beside_all_that_were(parts):
    columns = with_arm(parts.outcomes["cue"], "probe", "candidate")
    refused(measured_again(parts, "cue", columns), "outcomes", "probe was measured and never declared")


def test_fewer_prompts_than_promised_are_refused(parts):
    columns = parts.outcomes["cue"]
    kept = columns.prompt < 50
    names = ("prompt", "cue", "item", "arm", "sample", "value", "mass")
    fewer = replace(columns, **{name: getattr(columns, name)[kept] for name in names})
    parts.measurement["axes"][2]["prompts"] = parts.measurement["axes"][2]["prompts"][:50]
    refused(measured_again(parts, "cue", fewer), "outcomes", "50 prompts, 60 were promised")


def test_a_prompt_that_was_measured_twice_in_one_arm_is_refused(parts):
    columns = parts.outcomes["cue"]
    rows = np.r_[np.arange(len(columns)), 0]
    names = ("prompt", "cue", "item", "arm", "sample", "value", "mass")
    more = replace(columns, **{name: getattr(columns, name)[rows] for name in names})
    refused(measured_again(parts, "cue", more), "outcomes", "do not cover 3 arms × 60 prompts evenly")


def test_a_probability_mass_above_one_is_refused(parts):
    columns = parts.outcomes["cue"]
    mass = columns.mass.copy()
    mass[0] = 1.2
    refused(measured_again(parts, "cue", replace(columns, mass=mass)), "outcomes", "probability mass outside 0–1")


def test_a_row_count_that_is_not_the_files_is_refused(parts):
    parts.measurement["axes"][2]["outcomes"]["rows"] += 1
    refused(parts.files(), "outcomes", "holds 180 outcomes, measurement.json says 181")


def test_outcomes_that_are_not_there_are_refused(files):
    refused({k: v for k, v in files.items() if not k.endswith("cue.parquet")}, "outcomes", "cue.parquet: is missing")


def test_cluster_labels_that_differ_between_arms_are_refused(parts):
    columns = parts.outcomes["cue"]
    cue = columns.cue.copy()
    cue[5] = "another cue"
    refused(measured_again(parts, "cue", replace(columns, cue=cue)), "outcomes", "other cues or items")


def test_a_no_op_that_changed_something_is_refused(parts):
    columns = parts.outcomes["resistance"]
    value = columns.value.copy()
    value[np.flatnonzero(columns.arm == "noop")[0]] += 1e-15
    files = measured_again(parts, "resistance", replace(columns, value=value))
    refused(files, "outcomes", "no-op changed the outcome")


def test_a_probability_outside_its_range_is_refused(parts):
    columns = parts.outcomes["cue"]
    value = columns.value.copy()
    value[0] = 1.5
    refused(measured_again(parts, "cue", replace(columns, value=value)), "outcomes", "outside 0–1")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_outcome_that_is_not_finite_is_refused(parts, value):
    columns = parts.outcomes["cue"]
    values = columns.value.copy()
    values[0] = value
    with pytest.raises(BundleError, match="not finite"):
        spec_bundle.arrange_from_bytes(replace(columns, value=values))


def test_outcomes_in_any_other_form_of_parquet_are_refused(files):
    data = files["outcomes/cue.parquet"]
    table = pq.read_table(pa.BufferReader(data))
    for options in ({}, {"compression": "gzip"}, {"use_dictionary": False, "compression": "none"}):
        sink = io.BytesIO()
        pq.write_table(table, sink, **options)
        with pytest.raises(BundleError, match="outcomes are written"):
            read_outcomes(sink.getvalue(), path="outcomes/cue.parquet")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a Parquet file"),
        (b"PAR1PAR1", "page is missing"),
        (b"PAR1" + b"\xff" * 40 + b"PAR1", "page is missing"),
    ],
)
def test_what_only_looks_like_parquet_is_refused(data, words):
    with pytest.raises(BundleError, match=words):
        read_outcomes(data, path="outcomes/cue.parquet")


def test_outcomes_damaged_anywhere_are_refused_or_read_as_what_they_say(files):
    """Re-hashed damage: no byte makes the reader fail, hang or give two readings of one table."""
    data, generator = files["outcomes/cue.parquet"], np.random.default_rng(0)
    accepted = 0
    for _ in range(1500):
        broken = bytearray(data)
        kind, at = generator.integers(4), int(generator.integers(len(data)))
        if kind == 0:
            broken[at] = generator.integers(256)
        elif kind == 1:
            del broken[at : at + int(generator.integers(1, 30))]
        elif kind == 2:
            broken[at:at] = generator.bytes(int(generator.integers(1, 9)))
        else:
            broken[at : at + 4] = b"\xff\xff\xff\x7f"
        try:
            found = read_outcomes(bytes(broken), path="outcomes/cue.parquet")
        except BundleError as refusal:
            assert refusal.check == "outcomes"  # noqa: PT017
        else:
            accepted += 1
            assert found.to_bytes() == bytes(broken)
    assert 0 < accepted < 900


def test_outcomes_swapped_between_axes_are_refused(parts, files):
    swapped = {
        **files,
        "outcomes/cue.parquet": files["outcomes/compliance.parquet"],
        "outcomes/compliance.parquet": files["outcomes/cue.parquet"],
    }
    refused(swapped, "outcomes", "not the file that measurement.json names")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("candidate", 0.95),
        ("low", 0.4),
        ("rank_p", 0.005),
        ("verdict", "underpowered"),
        ("holds", False),
        ("n_clusters", 60),
        ("mass_candidate", 0.99),
        ("wrong_way", 0.5),
        ("reason", "it is all fine"),
        ("seed", "12"),
    ],
)
def test_a_stored_estimate_that_the_outcomes_do_not_give_is_refused_by_name(parts, field, value):
    parts.measurement["axes"][0]["estimate"][field] = value
    message = refused(parts.files(), "verdicts", "measurement.json", "axis resistance", field)
    assert re.search(rf"{field} is stored as", message)


def test_a_control_that_was_made_weaker_in_the_stored_list_is_refused(parts):
    parts.measurement["axes"][0]["estimate"]["controls"][5] -= 0.2
    refused(parts.files(), "verdicts", "controls is stored as")


def test_outcomes_that_were_improved_after_judging_are_refused(parts):
    columns = parts.outcomes["resistance"]
    value = np.where(columns.arm == "candidate", np.minimum(columns.value + 0.05, 1), columns.value)
    files = measured_again(parts, "resistance", replace(columns, value=value))
    refused(files, "verdicts", "axis resistance", "candidate is stored as")


# ---- dossier


def test_another_page_than_the_documents_render_to_is_refused(files):
    page = files["dossier.html"].replace(b"self-attested", b"peer-reviewed")
    refused({**files, "dossier.html": page}, "dossier", "dossier.html", "not what the documents render to")
    refused({**files, "dossier.html": files["dossier.html"] + b" "}, "dossier", "dossier.html")
