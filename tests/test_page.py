"""The page for pictures and for numbers: what it shows is what the integer engine answers."""
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image

import oracle
import plan
from deploy import engines, to_web
from formats import encode
from formats.checkpoint import Facts

WAIT = "document.querySelector('#scores li.best')"


@pytest.fixture
def opened(need, tmp_path):
    """opened(network, facts, sample) -> the page in a browser, from disk, where an error fails."""
    stack = ExitStack()

    def open_one(network, facts, sample=None):
        path = tmp_path / "mlp.html"
        path.write_text(to_web.export(network, facts, sample), "utf-8")
        return need(stack.enter_context, engines.open_page(path))
    with stack:
        yield open_one


def scores(page):
    """The integer scores that the page shows, class by class."""
    return [int(text.replace(",", "")) for text in
            page.locator("#scores li > span:last-child").all_inner_texts()]


def make(rng, line, shape, bits=(4, 4)):
    return oracle.random_network(rng, plan.parse(line, shape, 3), *bits)


@pytest.mark.parametrize("shape", [(12, 10, 3), (9, 28, 1), (28, 28, 3)])
def test_picture_of_the_networks_shape_gives_the_oracles_scores(rng, opened, tmp_path, shape):
    network = make(rng, "conv3x5/2 max2 9", shape)
    pixels = rng.integers(0, 256, shape, np.uint8)
    Image.fromarray(pixels.squeeze()).save(tmp_path / "p.png")
    page = opened(network, Facts(classes=("cat", "<b>dog", "é")))
    assert not page.locator("#pad").is_visible() and "picture" in page.title()
    page.set_input_files("#file", tmp_path / "p.png")
    page.wait_for_function(WAIT)
    want = oracle.run(network, pixels.reshape(1, -1))[0]
    assert scores(page) == want.tolist()
    assert page.locator("#digit").inner_text() == ("cat", "<b>dog", "é")[want.argmax()]
    (tmp_path / "no.png").write_bytes(b"not a picture")
    page.set_input_files("#file", tmp_path / "no.png")
    page.wait_for_function("find('said').textContent.includes('no picture')")
    assert scores(page) == want.tolist()        # of the last one that was


@pytest.mark.parametrize("line, shape", [("8", (5,)), ("conv3x4 max2", (1, 9, 2))])
def test_numbers_give_the_oracles_scores(rng, opened, line, shape):
    network, channels = make(rng, line, shape), shape[-1]
    values = rng.normal(0, 100, int(np.prod(shape))).astype(np.float32)
    encoding = encode.Encoding(rng.normal(-150, 9, channels).astype(np.float32),
                               rng.integers(-1, 3, channels))
    facts = Facts(classes=("a", "b", "c"), low=encoding.low, exponent=encoding.exponent)

    def want(values):
        codes = encode.encode(values.reshape(1, -1, channels), encoding).reshape(1, -1)
        return oracle.run(network, codes)[0].tolist()
    page = opened(network, facts, values)       # it begins with a real example
    assert scores(page) == want(values)
    other = values[::-1].copy()
    other[:2] = np.nan, 3e38
    page.fill("#numbers", "; ".join(map(str, other.tolist())))
    page.wait_for_function("find('counted').textContent.startsWith(`${inputs} of`)")
    page.wait_for_timeout(100)
    assert scores(page) == want(other)
    for text, said in (("1 2", f"2 of {len(values)}"), ("1,x<b>,3", "x<b> is no number")):
        page.fill("#numbers", text)
        page.wait_for_function(f"find('counted').textContent.includes({said!r})")
        page.wait_for_function("find('digit').textContent === '–'")
