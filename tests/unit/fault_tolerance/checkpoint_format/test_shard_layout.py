"""A shard's header says where each tensor lies: aligned, without gap or overlap, from a page on."""

from __future__ import annotations

import itertools
import json

import safetensors
from hypothesis import given, settings
from hypothesis import strategies as st

from production_ml.fault_tolerance.checkpoint_format.element_types import ELEMENT_BYTES
from production_ml.fault_tolerance.checkpoint_format.shard_layout import HEADER_LENGTH, PAGE_BYTES, lay_out

SHAPES = st.lists(st.integers(0, 9), max_size=3).map(tuple)
TENSORS = st.lists(
    st.tuples(st.text(min_size=1), st.sampled_from(sorted(ELEMENT_BYTES)), SHAPES),
    max_size=6,
    unique_by=lambda tensor: tensor[0],
)


@settings(max_examples=40, deadline=None)
@given(TENSORS)
def test_every_tensor_is_aligned_and_no_byte_belongs_to_two_or_none(tensors):
    layout = lay_out(tensors)

    assert set(layout.extents) == {key for key, _, _ in tensors}
    assert len(layout.header) % PAGE_BYTES == 0
    ends = [len(layout.header), *(extent.end for extent in layout.extents.values())]
    for begin, extent in zip(ends, layout.extents.values(), strict=False):
        assert extent.begin == begin
        assert extent.begin % ELEMENT_BYTES[extent.dtype] == 0
    assert ends[-1] == layout.size_bytes
    assert all(one <= other for one, other in itertools.pairwise(ends))


@settings(max_examples=40, deadline=None)
@given(TENSORS)
def test_the_safetensors_library_takes_the_header(tensors):
    tensors = [tensor for tensor in tensors if tensor[0] != "__metadata__"]
    layout = lay_out(tensors)

    found = safetensors.deserialize(layout.header + bytes(layout.size_bytes - len(layout.header)))

    assert {name: len(described["data"]) for name, described in found} == {
        key: extent.size_bytes for key, extent in layout.extents.items()
    }


def test_a_shard_without_tensors_is_one_page_of_header():
    layout = lay_out([])

    assert layout.size_bytes == len(layout.header) == PAGE_BYTES
    (length,) = HEADER_LENGTH.unpack(layout.header[:8])
    assert length == PAGE_BYTES - 8
    assert json.loads(layout.header[8:]) == {}
