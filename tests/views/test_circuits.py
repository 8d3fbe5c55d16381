"""CircuitsVis pictures show the patterns that the model has, and ask the network for nothing."""

import base64
import gzip
import json
import re
import socket

import circuitsvis as cv
import pytest
import torch

import hopinterp as hi
from hopinterp import HopInterpError
from hopinterp.models.hooks import SITES
from hopinterp.views import circuits


@pytest.fixture(scope="module")
def batch(small_task):
    return small_task.sample(3, hops=3, seed=4)


@pytest.fixture(scope="module")
def example(small_model, batch):
    return circuits.read_example(small_model, batch, index=1)


def shown(picture):
    """The props as they stand in the page."""
    name, props = re.fullmatch(
        r".*CircuitsVis\.(\w+), (\{.*\})\);\n</script>\n", picture.html(bundle=False), re.DOTALL
    ).groups()
    assert name == picture.component
    return json.loads(props)


def test_tokens_are_labelled_by_letter_and_position(batch):
    labels = circuits.token_labels(batch, 1)
    assert labels[0] == "k=3"
    assert labels[1:] == [f"{'abcd'[token - 5]}{i}" for i, token in enumerate(batch.tokens[1, 1:].tolist(), start=1)]
    many = hi.HopTask(n_letters=3, alphabet_size=40, max_hops=2).from_letters([[30, 1, 2]], hops=1)
    assert circuits.token_labels(many) == ["k=1", "30:1", "1:2", "2:3"]


def test_an_example_is_what_the_model_does(small_model, batch, example):
    _, cache = small_model.run_with_cache(batch.tokens[1:2], [SITES["pattern"].at(0), SITES["pattern"].at(1)])
    torch.testing.assert_close(example.layer(1), cache[SITES["pattern"].at(1)][0])
    hooked = circuits.read_example(small_model.spec.build(small_model.parameters), batch, index=1, layers=[1])
    assert hooked.layers == (1,)
    torch.testing.assert_close(hooked.layer(1), example.layer(1), atol=1e-5, rtol=0)
    for j in (0, 1, 3):
        for i, row in enumerate(example.pairs(j)):
            place = int(batch.find[1, j, i])
            assert row.nonzero().flatten().tolist() == ([place] if place else [])


def test_an_attached_hook_shows(small_model, batch, example):
    hooked = small_model.spec.build(small_model.parameters)
    with hooked.hooks([(SITES["pattern"].at(0), lambda value, **_: torch.zeros_like(value))]):
        read = circuits.read_example(hooked, batch, index=1)
    assert not read.layer(0).any()
    assert example.layer(0).any()


def test_heads_stand_beside_find(example):
    props = shown(circuits.attention_heads(example, layers=[1], find=[1, 3]))
    assert props["attentionHeadNames"] == ["1.0", "1.1", "find^1", "find^3"]
    assert props["tokens"] == list(example.labels)
    matrices = [*example.layer(1), example.pairs(1), example.pairs(3)]
    for rows, matrix in zip(props["attention"], matrices, strict=True):
        assert [len(row) for row in rows] == list(range(1, 22))  # up to the diagonal
        for i, row in enumerate(rows):
            torch.testing.assert_close(torch.tensor(row, dtype=torch.float), matrix[i, : i + 1], atol=5.01e-4, rtol=0)
    everything = shown(circuits.attention_heads(example))
    assert everything["attentionHeadNames"] == ["0.0", "0.1", "1.0", "1.1", "find^1", "find^2", "find^3"]


def test_find_is_laid_over_a_head(example):
    plain = shown(circuits.attention_pattern(example, 1, 0))["attention"]
    overlaid = shown(circuits.attention_pattern(example, 1, 0, find=2))["attention"]
    on = example.pairs(2)
    for i, (before, after) in enumerate(zip(plain, overlaid, strict=True)):
        assert after == [value if on[i, j] else -value for j, value in enumerate(before)]
    assert on.any()


def test_props_are_those_of_circuitsvis(example):
    """Its own Python functions would give the same components the same names of props."""
    theirs = {
        "AttentionHeads": cv.attention.attention_heads(
            [[[1.0]]], ["a"], ["h"], max_value=1, min_value=-1, negative_color="r", positive_color="b", mask_upper_tri=False
        ),
        "AttentionPattern": cv.attention.attention_pattern(
            ["a"], [[1.0]], max_value=1, min_value=-1, negative_color="r", positive_color="b", mask_upper_tri=False
        ),
    }
    for picture in (circuits.attention_heads(example), circuits.attention_pattern(example, 0, 0)):
        html = theirs[picture.component].local_src
        known = json.loads(re.search(r"(\{[^{}]*\})\s*\)\s*</script>$", html)[1])
        assert set(picture.props) - {"zoomed"} == set(known)


def test_nothing_asks_the_network(example, monkeypatch):
    asked = []

    def refuse(*args, **_):
        asked.append(args)
        raise OSError("the network was asked")

    for name in ("socket", "getaddrinfo", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)
    theirs = cv.attention.attention_pattern(["a"], [[1.0]])
    theirs._repr_html_()
    assert asked  # as CircuitsVis's own object does, which swallows the refusal
    asked.clear()
    html = circuits.attention_heads(example)._repr_html_()
    assert not asked
    ours = html.replace(circuits.packed_script(), "")
    assert len(html) - len(ours) < 600_000
    assert "http" not in ours
    script = circuits.bundled_script()
    assert gzip.decompress(base64.b64decode(circuits.packed_script())).decode() == script
    assert script.count("var CircuitsVis=") == 1
    assert "unpkg" not in script
    assert "sourceMappingURL" not in script
    assert "</script" not in script  # it does not close an element that it stands in


def test_it_draws_itself_offline(example, browser):
    """As a notebook's cell does: twice on one page, from the packed script."""
    pictures = [circuits.attention_heads(example), circuits.attention_pattern(example, 1, 0, find=2)]
    page = f"<html><head></head><body>{''.join(one._repr_html_() for one in pictures)}</body></html>"
    visit = browser(page, "await wait(1500); result.drawn = document.querySelectorAll('canvas').length;")
    assert not visit.problems
    assert not visit.requested
    assert visit.result["drawn"] > len(example.patterns[0])
    assert repr(pictures[0]) == "<Picture: CircuitsVis AttentionHeads, 21 tokens>"


def test_pictures_on_one_page_have_their_own_places(example):
    pictures = [circuits.attention_pattern(example, 0, 0).html(bundle=False) for _ in range(2)]
    places = [re.search(r'<div id="([^"]+)"', html)[1] for html in pictures]
    assert places[0] != places[1]
    assert all(html.count(place) == 2 for html, place in zip(pictures, places, strict=True))


def test_what_is_not_there_is_named(small_model, batch, example):
    wrong = {
        "index is 3; this batch has": lambda: circuits.read_example(small_model, batch, index=3),
        "layer is 2; this model has 0 to 1": lambda: circuits.read_example(small_model, batch, layers=[2]),
        "layer is 4; this example has 0, 1": lambda: circuits.attention_heads(example, layers=[4]),
        "nothing to show": lambda: circuits.attention_heads(example, layers=[], find=[]),
        r"no find\^5": lambda: circuits.attention_heads(example, find=[5]),
        "head is 2; block 0 has 0 to 1": lambda: circuits.attention_pattern(example, 0, 2),
    }
    for message, call in wrong.items():
        with pytest.raises(HopInterpError, match=message):
            call()
