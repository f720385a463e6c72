"""Sender and receiver derive the same buckets and the same digest from one manifest."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from common.codec import pack_manifest, unpack_manifest
from common.weight_layout import Canary, TensorSpec, WeightManifest, plan_buckets
from tests.builders import version


def spec(name: str, *shape: int, dtype: str = "float32", digest: int = 1) -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape, digest=f"{digest:016x}")


def test_buckets_keep_the_order_and_stay_below_their_size() -> None:
    tensors = [spec("a", 4), spec("b", 4), spec("c", 100), spec("d", 2), spec("e", 2)]
    plan = [[tensor.name for tensor in bucket] for bucket in plan_buckets(tensors, 32)]
    assert plan == [["a", "b"], ["c"], ["d", "e"]]


def test_a_bucket_holds_one_element_type() -> None:
    tensors = [spec("a", 2), spec("b", 2, dtype="bfloat16"), spec("c", 2)]
    assert [len(bucket) for bucket in plan_buckets(tensors, 1 << 20)] == [1, 1, 1]


@given(st.lists(st.integers(0, 64), max_size=30), st.integers(1, 200))
def test_every_tensor_is_in_exactly_one_bucket(sizes: list[int], bucket_bytes: int) -> None:
    tensors = [spec(f"t{position}", size) for position, size in enumerate(sizes)]
    flat = [tensor for bucket in plan_buckets(tensors, bucket_bytes) for tensor in bucket]
    assert flat == tensors


def test_the_manifest_digest_sees_a_changed_and_a_swapped_tensor() -> None:
    def digest(*values: int) -> str:
        tensors = tuple(spec(f"t{i}", 2, digest=value) for i, value in enumerate(values))
        return WeightManifest(version=version(1), tensors=tensors).digest()

    assert digest(5, 6) == digest(5, 6)
    assert digest(5, 7) != digest(5, 6)
    assert digest(6, 5) != digest(5, 6)


def test_a_manifest_survives_the_wire() -> None:
    manifest = WeightManifest(
        version=version(3, 1),
        tensors=(spec("a", 2, 3, digest=2**64 - 1),),
        canary=Canary(token_ids=((1, 2),), logprobs=((-0.5,),), tolerance=1e-3),
    )
    assert unpack_manifest(pack_manifest(manifest)) == manifest
    assert manifest.num_bytes == 24
