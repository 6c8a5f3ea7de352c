"""An atlas reads back what was harvested and refuses what is damaged, unfinished or another dictionary's."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from workbench.core.errors import DictionaryError, InputError
from workbench.features.aggregate import Aggregate, Layout
from workbench.features.atlas import Atlas, Origin, write_atlas

ORIGIN = Origin("organism", "aa", "resid.2", "bb" * 32, "stories", "cc", "workbench 0")


@pytest.fixture
def atlas(tmp_path):
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 9, 20)
    document = np.repeat(np.arange(20), lengths)
    position = np.concatenate([np.arange(n) for n in lengths]).astype(np.int32)
    dense = np.maximum(generator.normal(size=(len(document), 6)), 0).astype(np.float32)
    dense[:, 5] = 0
    token, feature = np.nonzero(dense)
    aggregate = Aggregate(Layout(6, top=3, sample=8))
    aggregate.add(feature, token, dense[token, feature], document=document, position=position)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return write_atlas(tmp_path / "atlas", ORIGIN, aggregate, np.arange(len(document)), offsets), aggregate, dense


def test_what_was_harvested_reads_back_equal(atlas):
    opened, aggregate, dense = atlas
    again = Atlas.open(opened.folder, dictionary_digest=ORIGIN.dictionary_digest)
    again.check()
    read = again.aggregate()
    assert (read.fires == aggregate.fires).all()
    assert (read.top.document == aggregate.top.document).all()
    assert (read.sample.value == aggregate.sample.value).all()
    row = again.row(2)
    assert row["density"] == pytest.approx((dense[:, 2] > 0).mean())
    assert sum(row["histogram"].values()) + row["not_fired"] == len(dense)
    value, document, position = again.top(2)[0]
    assert value == dense[:, 2].max()
    assert dense[int(again.document(document)[position]), 2] == value


def test_quantile_examples_are_ranks_of_the_uniform_sample(atlas):
    opened, _, _ = atlas
    values = [value for value, _, _ in opened.quantiles(1, 5)]
    held = sorted((value for value, _, _ in opened.sample(1)), reverse=True)
    assert values == sorted(values, reverse=True)
    assert (values[0], values[-1], len(values)) == (held[0], held[-1], 5)


def test_a_dead_feature_has_an_honest_row(atlas):
    opened, _, _ = atlas
    row = opened.row(5)
    assert (row["fires"], row["mean"], opened.top(5), opened.quantiles(5, 4)) == (0, None, [], [])


def test_the_table_opens_in_arrow_with_one_row_per_feature(atlas):
    opened, aggregate, _ = atlas
    table = pq.read_table(opened.table_path)
    assert table.column("fires").to_pylist() == aggregate.fires.tolist()
    assert table.column("mean").to_pylist()[5] is None


def test_another_dictionarys_atlas_is_refused_naming_both(atlas):
    with pytest.raises(DictionaryError, match=r"belongs to dictionary resid\.2 \(bbbb.*not to the one in hand \(dddd"):
        Atlas.open(atlas[0].folder, dictionary_digest="dd" * 32)


def test_an_unfinished_a_truncated_and_a_changed_atlas_are_refused_by_name(atlas):
    folder = atlas[0].folder
    changed = (folder / "fires.npy").read_bytes()
    (folder / "fires.npy").write_bytes(changed[:-1] + bytes([changed[-1] ^ 1]))
    with pytest.raises(InputError, match=r"fires\.npy is not what was written"):
        Atlas.open(folder).check()
    (folder / "fires.npy").write_bytes(changed[:-3])
    with pytest.raises(InputError, match=r"fires\.npy has \d+ bytes, expected"):
        Atlas.open(folder)
    (folder / "fires.npy").unlink()
    with pytest.raises(InputError, match=r"fires\.npy is missing"):
        Atlas.open(folder)
    manifest = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(manifest[: len(manifest) // 2])
    with pytest.raises(InputError, match="manifest is damaged"):
        Atlas.open(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(InputError, match="no finished atlas"):
        Atlas.open(folder)


def test_a_feature_out_of_range_is_an_error(atlas):
    with pytest.raises(InputError, match="no feature 6: there are 6"):
        atlas[0].row(6)
