"""plan: every word against shapes counted by hand, every refusal, and the poolings to the bit."""
import math
from fractions import Fraction

import jax
import numpy as np
import pytest
from hypothesis import given, strategies as st

import oracle
import plan
from conftest import IMAGE
from deploy import planes
from formats import earlier


def shapes(line, shape=IMAGE, classes=10):
    """The shape after each step."""
    return [step.after for step in plan.parse(line, shape, classes)]


@pytest.mark.parametrize("line, shape, expected", [
    ("", IMAGE, [(10,)]), ("256 128", IMAGE, [(256,), (128,), (10,)]), ("7", (5,), [(7,), (10,)]),
    ("crop24", IMAGE, [(24, 24, 1), (10,)]), ("crop28", IMAGE, [(28, 28, 1), (10,)]),
    ("crop3", (5, 8, 3), [(3, 3, 3), (10,)]), ("crop1", (1, 4, 2), [(1, 1, 2), (10,)]),
    ("crop9", (1, 20, 3), [(1, 9, 3), (10,)]),                  # 1 along an axis of 1
    ("mean2", IMAGE, [(14, 14, 1), (10,)]), ("mean2", (5, 8, 3), [(2, 4, 3), (10,)]),
    ("mean2", (1, 9, 3), [(1, 4, 3), (10,)]), ("mean2", (1, 1, 3), [(1, 1, 3), (10,)]),
    ("mean2 mean2", IMAGE, [(14, 14, 1), (7, 7, 1), (10,)]),
    ("crop20 mean2 5", IMAGE, [(20, 20, 1), (10, 10, 1), (5,), (10,)]),
    ("conv5x8", IMAGE, [(24, 24, 8), (10,)]), ("conv5x8/1", IMAGE, [(24, 24, 8), (10,)]),
    ("conv5x8/2", IMAGE, [(12, 12, 8), (10,)]), ("conv5x8/3", IMAGE, [(8, 8, 8), (10,)]),
    ("conv7x2/3", (7, 9, 3), [(1, 1, 2), (10,)]), ("conv1x4", (2, 3, 1), [(2, 3, 4), (10,)]),
    ("conv5x16/2", (1, 128, 9), [(1, 62, 16), (10,)]), ("conv7x3", (1, 1, 1), [(1, 1, 3), (10,)]),
    ("conv3x4 max2", (9, 10, 1), [(7, 8, 4), (3, 4, 4), (10,)]),
    ("conv1x4 max2 max2 max2", (1, 9, 1), [(1, 9, 4), (1, 4, 4), (1, 2, 4), (1, 1, 4), (10,)]),
    ("conv5x16/2 conv3x32 max2 conv3x48 9", IMAGE,
     [(12, 12, 16), (10, 10, 32), (5, 5, 32), (3, 3, 48), (9,), (10,)])])
def test_words_lead_to_the_documented_shapes(line, shape, expected):
    assert shapes(line, shape) == expected
    steps = plan.parse(line, shape, 10)
    assert [step.before for step in steps] == [shape, *expected[:-1]]
    assert plan.inputs(steps) == math.prod(shape)


@pytest.mark.parametrize("line, shape, weights", [
    ("256 128", IMAGE, [(784, 256), (256, 128), (128, 10)]), ("", (5,), [(5, 10)]),
    ("mean2 conv3x4 max2 6", (9, 10, 3), [(27, 4), (4, 6), (6, 10)]),
    ("conv5x4/2", (1, 21, 3), [(15, 4), (36, 10)])])            # a patch of 1 x 5, 3 channels
def test_weights_of_a_step_are_a_patch_by_channels(line, shape, weights):
    steps = plan.parse(line, shape, 10)
    assert [step.weights for step in steps if step.has_weights] == weights


MAPS = st.tuples(st.integers(1, 14), st.integers(1, 14), st.sampled_from([1, 2, 3]))
WORDS = st.one_of(
    st.just("mean2"), st.just("max2"), st.integers(0, 16).map("crop{}".format),
    st.integers(1, 20).map(str),
    st.builds("conv{}x{}/{}".format, st.integers(1, 7), st.integers(1, 4), st.integers(1, 3)))


def spelled(word, channels):
    """(kind, size, stride, channels after it) of one of WORDS."""
    if word.isdigit():
        return "dense", None, None, int(word)
    if word.startswith("crop"):
        return "crop", int(word[4:]), None, channels
    if word.startswith("conv"):
        return "conv", int(word[4]), int(word[-1]), int(word[6:-2])
    return word[:-1], 2, 2, channels


LATE = {"crop": ("mean", "conv", "dense"), "mean": ("conv", "dense"), "conv": ("dense",),
        "max": ("dense",), "dense": ()}         # what may not stand before it


def expected_shapes(words, shape):
    """Shapes by counting the windows that fit, or None where a word may not stand."""
    found, seen = [], []
    for word in words:
        kind, size, stride, channels = spelled(word, shape[-1])
        if any(other in LATE[kind] for other in seen) or (kind == "max" and "conv" not in seen):
            return None
        if kind == "dense":
            shape = (channels,)
        elif size == 0 or any(1 < length < size for length in shape[:2]):
            return None
        elif kind == "crop":
            shape = (*(min(length, size) for length in shape[:2]), channels)
        else:
            shape = (*(1 if length == 1 else sum(start + size <= length
                                                 for start in range(0, length, stride))
                       for length in shape[:2]), channels)
        found.append(shape)
        seen.append(kind)
    return [*found, (3,)]


@given(words=st.lists(WORDS, max_size=7), shape=MAPS)
def test_any_line_has_the_shapes_that_counting_gives_or_is_refused(words, shape):
    expected = expected_shapes(words, shape)
    line = " ".join(words)
    if expected is None:
        with pytest.raises(ValueError) as caught:
            plan.parse(line, shape, 3)
        assert "\n" not in str(caught.value)
    else:
        assert shapes(line, shape, 3) == expected


@given(words=st.lists(WORDS, max_size=7), shape=MAPS)
def test_a_line_and_its_steps_say_the_same(words, shape):
    """What to_line writes of steps is parsed to these steps, however the line was written."""
    try:
        steps = plan.parse("  ".join(words), shape, 3)
    except ValueError:
        return
    line = plan.to_line(steps)
    assert plan.parse(line, shape, 3) == steps
    if min(shape[:2]) > 1 and all(min(step.before[:2]) > 1 for step in steps):  # nothing is cut
        assert line == " ".join(words).replace("/1", "")
    assert plan.to_line(plan.centred(steps)) == line


@pytest.mark.parametrize("line", ["crop24 mean2 134 80 54", "conv5x16/2 conv3x32 max2 conv3x48",
                                  "256 128", ""])
def test_to_line_gives_back_what_was_written(line):
    assert plan.to_line(plan.parse(line, IMAGE, 10)) == line
    assert plan.parse(f"  {line}\t ", IMAGE, 10) == plan.parse(line, IMAGE, 10)


BAD = {
    "unknown": ("convolution", IMAGE, "'convolution' is none of crop24, mean2"),
    "half a word": ("conv5", IMAGE, "'conv5' is none of"),
    "a comma": ("256,128", IMAGE, "'256,128' is none of"),
    "a sign": ("-3", IMAGE, "'-3' is none of"),
    "capitals": ("CONV5x16", IMAGE, "none of"),
    "other digits": ("٣", IMAGE, "none of"),
    "other pooling": ("mean3", IMAGE, "none of"), "padding": ("conv3x4p1", IMAGE, "none of"),
    "a long word": ("a" * 1_000, IMAGE, "'a{40}' is none of"),
    "no kernel": ("conv0x4", IMAGE, "conv0x4: a kernel is 1 to 7 wide, a stride 1 to 3"),
    "kernel": ("conv8x4", IMAGE, "conv8x4: a kernel is 1 to 7"),
    "no stride": ("conv3x4/0", IMAGE, "conv3x4/0: .* a stride 1 to 3"),
    "stride": ("conv3x4/4", IMAGE, "conv3x4/4: .* a stride 1 to 3"),
    "no channels": ("conv3x0", IMAGE, "conv3x0 leads from 784 numbers to 0; give 1 to 65,536"),
    "no width": ("0", IMAGE, "0 leads from 784 numbers to 0"),
    "width": ("65537", IMAGE, "65537 leads from 784 numbers to 65,537"),
    "late crop": ("mean2 crop9", IMAGE, "crop9 stands in the wrong place: crop and mean2 come "),
    "crop of codes": ("conv3x2 crop9", IMAGE, "crop9 stands in the wrong place"),
    "mean of codes": ("conv3x2 mean2", IMAGE, "mean2 stands in the wrong place"),
    "mean of features": ("5 mean2", IMAGE, "mean2 stands in the wrong place"),
    "max of bytes": ("max2 5", IMAGE, "max2 stands in the wrong place"),
    "max of means": ("mean2 max2", IMAGE, "max2 stands in the wrong place"),
    "max after widths": ("conv3x2 5 max2", IMAGE, "max2 stands in the wrong place"),
    "conv after widths": ("5 conv3x2", IMAGE, "conv3x2 stands in the wrong place"),
    "crop of features": ("crop2", (6,), "crop2 needs a picture or a window, not 6 features"),
    "mean of a table": ("mean2", (6,), "mean2 needs a picture or a window"),
    "conv of features": ("conv1x2", (6,), "conv1x2 needs a picture or a window"),
    "no crop": ("crop0", IMAGE, "crop0 does not fit a map of 28 x 28"),
    "large crop": ("crop29", IMAGE, "crop29 does not fit a map of 28 x 28"),
    "one side": ("crop9", (9, 8, 1), "crop9 does not fit a map of 9 x 8"),
    "small map": ("conv3x2", (2, 9, 1), "conv3x2 does not fit a map of 2 x 9"),
    "what is left": ("conv5x2/2 max2 max2 conv4x2", IMAGE, "conv4x2 does not fit a map of 3 x 3"),
    "patch": ("conv7x2000 conv7x1", IMAGE, "leads from 784 numbers to 968,000"),
    "steps": (" ".join(["1"] * 64), IMAGE, "65 steps are more than 64"),
    "weights": ("65536 256", (255,), "[0-9,]+ weights, more than 16,777,216")}


@pytest.mark.parametrize("line, shape, reason", BAD.values(), ids=BAD)
def test_a_bad_line_is_one_clear_reason(line, shape, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        plan.parse(line, shape, 10)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.parametrize("line", ["crop24 5 mean2 max2", "conv9x1/9", "", "999999"])
def test_words_alone_are_checked_before_the_data_are_known(line):
    plan.check_words(line)
    with pytest.raises(ValueError, match="'conv' is none of"):
        plan.check_words(f"{line} conv")


@pytest.mark.parametrize("widths, reason", [
    ((5, 0, 3), "0 leads from 5 numbers to 0"), ((-1, 3), "leads from -1"),
    ((0, 3), "leads from 0"), ((65_537, 1), "leads from 65,537"), ((5, 65_537), "to 65,537"),
    ((5, 0), "to 0"), ((1,) * 66, "65 steps"),
    ((plan.MAX_WIDTH, plan.MAX_WEIGHTS // plan.MAX_WIDTH, 1), "weights")])
def test_sizes_beyond_the_limits_are_refused(widths, reason):
    with pytest.raises(ValueError, match=reason):
        plan.parse(" ".join(map(str, widths[1:-1])), widths[:1], widths[-1])


@pytest.mark.parametrize("widths", [
    (1, 1), (1,) * 65, (65_536, 1, 65_536),
    (plan.MAX_WIDTH, plan.MAX_WEIGHTS // plan.MAX_WIDTH)])
def test_sizes_at_the_limits_are_legal(widths):
    steps = plan.parse(" ".join(map(str, widths[1:-1])), widths[:1], widths[-1])
    assert plan.sizes(steps) == widths


def test_limits_of_a_map_count_what_lies_between():
    """An image, a map and a patch have 65,536 numbers at most."""
    plan.parse("conv1x16", (64, 64, 1), 2)
    for line, shape in (("conv1x17", (64, 64, 1)), ("", (256, 257, 1)), ("", (65_537,)),
                        ("conv7x1", (7, 7, 1_338))):
        with pytest.raises(ValueError, match="give 1 to 65,536"):
            plan.parse(line, shape, 2)
    plan.parse("conv7x1", (7, 7, 1_337), 2)


def test_a_perceptron_is_told_by_its_arrays():
    weights = [np.zeros((6, 5)), np.zeros((5, 4))]
    assert plan.perceptron(weights) == plan.parse("5", (6,), 4)
    with pytest.raises(ValueError, match="one layer or more"):
        plan.perceptron([])


@pytest.mark.parametrize("side, sizes, line, shape", [
    (28, (784, 256, 10), "256", IMAGE), (28, (30, 4), "", (30,)), (28, (36, 4), "", (6, 6, 1)),
    (14, (196, 10), "mean2", IMAGE), (12, (144, 9, 10), "crop24 mean2 9", IMAGE),
    (10, (100, 10), "crop20 mean2", IMAGE)])
def test_networks_of_earlier_files_are_told_by_their_line(side, sizes, line, shape):
    assert earlier.from_sizes(side, sizes) == (line, shape)
    steps = plan.parse(line, shape, sizes[-1])
    assert plan.sizes(steps) == sizes
    assert plan.describe(steps) == "-".join(map(str, sizes))
    if side != 28:
        for wrong in (784, side**2 - 1, side**2 + 1):
            with pytest.raises(ValueError, match=f"{side**2} inputs, not {wrong}"):
                earlier.from_sizes(side, (wrong, *sizes[1:]))


def test_what_an_export_does_not_know_is_refused_in_one_line():
    convolutions = plan.parse("conv5x8/2 max2 9", IMAGE, 10)
    assert plan.describe(convolutions) == "conv5x8/2 max2 9"
    with pytest.raises(ValueError, match="has convolutions"):
        plan.sizes(convolutions)
    assert planes.source_of(plan.parse("crop22 mean2", IMAGE, 10)) == (87, 56, 28, 11, 11)
    assert planes.source_of(plan.parse("crop21", (28, 30, 2), 10)) == (188, 60, 0, 21, 42)
    for line, shape in (("mean2", (8, 8, 3)), ("mean2", (1, 8, 1))):
        with pytest.raises(ValueError, match=f"begins with '{line}', which firmware does not"):
            planes.source_of(plan.parse(line, shape, 10))


def seen_by_the_first_layer(steps, images):
    """What crop and mean2 leave, as the walk hands it on: [N, I]."""
    return plan.walk(steps, images, lambda i, x: x)


def pooled_in_both(line, images):
    """The codes that the first dense layer reads, in NumPy and, jitted, in JAX."""
    steps = plan.parse(line, images.shape[1:], 10)
    in_jax = jax.jit(seen_by_the_first_layer, static_argnames="steps")
    return [np.asarray(walk(steps, images)) for walk in (seen_by_the_first_layer, in_jax)]


@pytest.mark.parametrize("side, line", [(14, "mean2"), (12, "crop24 mean2"), (10, "crop20 mean2")])
def test_every_sum_of_pixels_is_pooled_half_to_even(rng, side, line):
    images = oracle.images_of_every_sum(rng, side).reshape(-1, *IMAGE)
    expected = np.resize([round(Fraction(s, 4)) for s in range(1021)], (len(images), side**2))
    for codes in pooled_in_both(line, images):
        assert codes.dtype == np.uint8
        np.testing.assert_array_equal(codes, expected)


@pytest.mark.slow
def test_every_sum_of_two_pixels_is_pooled_half_to_even():
    """Along an axis of 1 a mean is of two numbers."""
    pairs = np.stack(np.divmod(np.arange(256**2), 256), 1).astype(np.uint8)
    expected = [[round(Fraction(int(a) + int(b), 2))] for a, b in pairs]
    for shape in ((1, 2, 1), (2, 1, 1)):
        for codes in pooled_in_both("mean2", pairs.reshape(-1, *shape)):
            np.testing.assert_array_equal(codes, expected)
    for codes in pooled_in_both("mean2", pairs.reshape(-1, 1, 1, 2)):
        np.testing.assert_array_equal(codes, pairs)             # of one number, itself


@given(shape=MAPS, side=st.integers(1, 14), mean=st.integers(0, 2), data=st.data())
def test_pooling_equals_exact_rounding(shape, side, mean, data):
    """By Python's own integers; odd margins have their smaller half above and on the left."""
    line = " ".join([f"crop{side}"] * (side <= min(length for length in (*shape[:2], 14)
                                                   if length > 1)) + ["mean2"] * mean)
    if expected_shapes(line.split(), shape) is None:
        return
    content = data.draw(st.binary(min_size=math.prod(shape), max_size=math.prod(shape)))
    image = np.frombuffer(content, np.uint8).reshape(1, *shape)
    steps = plan.parse(line, shape, 3)
    codes = seen_by_the_first_layer(steps, image)
    assert codes.tolist() == [oracle.pool(image, steps)]
    np.testing.assert_array_equal(codes, oracle.pool_all(image, steps))


def test_a_patch_is_rows_of_columns_of_channels():
    """Channels fastest, as the weights file says: a patch in C is runs of k * C bytes."""
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(1, 4, 5, 3)
    patches = []
    plan.walk(plan.parse("conv2x1/3", (4, 5, 3), 2), image,
              lambda i, x: patches.append(x) or x[..., :1])
    assert patches[0].shape == (1, 1, 2, 12)
    for column in (0, 3):
        expected = [image[0, row, column + j, c]
                    for row in (0, 1) for j in (0, 1) for c in range(3)]
        assert patches[0][0, 0, column // 3].tolist() == expected


def test_maximum_before_requantizing_is_the_maximum_after_it(rng):
    """It is monotone, so that an engine may do either."""
    acc = rng.integers(-2**24 + 1, 2**24, (5, 6, 6, 2)).astype(np.int32)
    steps = plan.parse("conv1x2 max2", (6, 6, 2), 3)
    for shift in (1, 9, 18):
        after = plan.walk(steps, acc, lambda i, x, shift=shift: plan.shift_half_even(x, shift)
                          .clip(0, 255) if i == 0 else x)
        before = plan.walk(steps, acc, lambda i, x: x)
        np.testing.assert_array_equal(after, plan.shift_half_even(before, shift).clip(0, 255))


@pytest.mark.parametrize("count, block, sizes", [
    (7, 0, [7]), (7, 7, [7]), (7, 8, [7]), (7, 3, [3, 3, 1]), (6, 3, [3, 3]), (0, 3, [0])])
def test_blocks_are_the_batch_in_order(count, block, sizes):
    images = np.arange(count)
    parts = plan.blocks(images, block)
    assert [len(part) for part in parts] == sizes
    np.testing.assert_array_equal(np.concatenate(parts), images)


def test_block_size_keeps_the_patches_of_a_block_in_their_bounds(monkeypatch):
    """Of the largest layer of patches, as float32; an image at least; 0: all at once."""
    steps = plan.parse("conv3x8 conv3x8 max2 5", (10, 10, 1), 3)
    assert plan.block_size(steps) == plan.BLOCK_BYTES // (4 * 6 * 6 * 72)
    monkeypatch.setattr(plan, "BLOCK_BYTES", 1)
    assert plan.block_size(steps) == 1
    assert plan.block_size(plan.parse("mean2 5", IMAGE, 10)) == 0
