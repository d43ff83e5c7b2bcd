"""`feathervlm diagnose` on the embedded model: known biases are found, pages are whole, errors are short."""

import json
import re
from dataclasses import dataclass
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from families.processors import PROCESSORS
from family_cases import FAMILY_CASES
from feathervlm import Schedule, Stage, Top, embedded
from feathervlm.cli.main import app
from feathervlm.core.candidates import Criterion
from feathervlm.core.errors import PruningError
from feathervlm.core.selectors.base import Selector
from feathervlm.diagnosis.findings import grouped
from feathervlm.diagnosis.run import DiagnosisRequest, diagnose
from feathervlm.evaluation.samples import unpack
from feathervlm.methods import get

FEW = 4


@pytest.fixture(scope="module")
def loaded():
    model, processor = embedded.load()
    return {"model": model, "processor": processor}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 255, (90, 120, 3), np.uint8)) for _ in range(FEW)]


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """Pictures with awkward names, beside what is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, picture in zip(("b.png", "a <b>&.jpg", "c.webp", "d.BMP"), pictures, strict=True):
        picture.save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    (folder / "more.png").mkdir()
    return folder


def kinds(diagnosis, level=None):
    return {one.kind for one in diagnosis.findings if level in (None, one.level)}


def cli(*arguments):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)])


class ByRow(Criterion):
    """The lower, or the further right, the better; equal on a row."""

    def __init__(self, axis, sign):
        self.axis, self.sign = axis, sign

    def signals(self):
        return ()

    def score(self, tokens):
        return self.sign * getattr(tokens.geometry, self.axis).float()


def leaning(axis, sign, keep=0.25):
    return Schedule(Stage(3, Top(ByRow(axis, sign), keep=keep)))


@pytest.mark.parametrize(
    ("axis", "sign", "kind"), [("row", 1, "bottom"), ("row", -1, "top"), ("col", -1, "left"), ("col", 1, "right")]
)
def test_a_known_bias_is_found(axis, sign, kind, loaded, pictures):
    found = diagnose(leaning(axis, sign), images=pictures, **loaded)
    warned = kinds(found, "warning")
    assert kind in warned
    assert not warned & ({"bottom", "top", "left", "right"} - {kind})
    assert {"hole", "empty"} <= warned
    number = found.stages[0].numbers[kind]
    assert number.value == pytest.approx(1)
    assert number.even == pytest.approx(1 / 3)
    text = next(one.text for one in found.findings if one.kind == kind)
    assert "100 % of the tokens" in text
    assert "localization will suffer" in text
    assert "fixed" in kinds(found)


def test_the_profiles_of_a_known_bias(loaded, pictures):
    stage = diagnose(leaning("row", 1), images=pictures, **loaded).stages[0]
    assert stage.rows == pytest.approx([0] * 12 + [0.25] * 4)
    assert stage.columns == pytest.approx([1 / 16] * 16)
    assert stage.heat[12:].min() == 1
    assert stage.heat[:12].max() == 0
    assert stage.numbers["mean_row"].value == pytest.approx(14 / 16)
    assert stage.numbers["hole"].value == pytest.approx(12 / 16)
    assert stage.row_test[1] < 1e-9
    assert stage.numbers["prior_correlation"].value > 0.2  # RoPE looks down, too


def test_a_pruner_that_does_nothing(loaded, pictures):
    found = diagnose("fastv:layer=3,keep=1.0", images=pictures, **loaded)
    assert kinds(found, "alarm") == {"inert"}
    assert "did nothing" in str(found)
    assert kinds(found, "warning") == set()
    assert found.flops_ratio.value == 1


def test_no_token_left(loaded, pictures):
    found = diagnose("text-only", images=pictures, **loaded)
    assert kinds(found, "alarm") == {"blind"}
    json.dumps(found.to_dict(), allow_nan=False)


def test_fixed_places_are_said_to_be_fixed(loaded, pictures):
    found = diagnose("uniform:layer=3", images=pictures, **loaded)
    fixed = next(one for one in found.findings if one.kind == "fixed")
    assert fixed.level == "note"  # by design
    assert "same fixed places" in fixed.text
    assert found.stages[0].numbers["alike"].value == 1
    assert kinds(found, "warning") == set()
    assert kinds(found, "good") == {"well"}
    same = diagnose("fastv:layer=3", images=[pictures[0]] * 3, **loaded)
    assert "fixed" not in kinds(same)  # one picture three times proves nothing


def test_two_stages_with_foresight_and_overlap(loaded, pictures):
    found = diagnose("feather", images=pictures, **loaded)
    first, second = found.stages
    assert "foresight" not in first.numbers
    foresight = second.numbers["foresight"]
    shares = [len(one.kept[1]) / len(one.kept[0]) for one in found.observations]
    assert foresight.even == pytest.approx(np.mean(shares))
    assert first.numbers["empty"].value == 0  # the grid
    assert all(set(one.kept[1]) <= set(one.kept[0]) for one in found.observations)
    assert 0 < found.average_tokens.value < 256
    assert "few" in kinds(found, "note")


def test_random_numbers_are_what_random_tokens_have(loaded, pictures):
    numbers = diagnose("random:layer=3,seed=5", images=pictures, **loaded).stages[0].numbers
    for name in ("mean_row", "bottom", "border", "hole", "prior_overlap"):
        assert numbers[name].value == pytest.approx(numbers[name].even, abs=0.12), name


def test_moved_positions_have_no_prior(loaded, pictures):
    found = diagnose("pyramiddrop", images=pictures[:2], **loaded)
    assert found.stages[0].prior is not None
    assert found.stages[1].prior is None
    assert "moves positions" in found.stages[1].why_no_prior
    assert "no-prior" in kinds(found, "note")


def test_one_picture_has_no_intervals(loaded, pictures):
    found = diagnose("feather", images=pictures[:1], **loaded)
    assert all(number.low is None for stage in found.stages for number in stage.numbers.values())
    assert found.stages[0].numbers["alike"].value is None
    json.dumps(found.to_dict(), allow_nan=False)


def test_nothing_stays_on_the_model(loaded, pictures):
    diagnose("fastv:layer=2", images=pictures[:1], **loaded)
    assert not any(module._forward_pre_hooks for module in loaded["model"].modules())
    assert "generate" not in vars(loaded["model"])


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]


@pytest.fixture(scope="module")
def written(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("written") / "new"
    return out, cli("--images", folder, "--method", "feather", "--out", out, "--limit", 3)


def test_the_page_is_whole(written):
    out, result = written
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in out.iterdir()) == ["diagnosis.html", "diagnosis.json"]
    text = (out / "diagnosis.html").read_text(encoding="utf-8")
    ElementTree.fromstring(text.encode())  # as strict as XML
    page = Page()
    page.feed(text)
    assert "script" not in page.tags
    assert "link" not in page.tags
    assert page.links
    assert all(link.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,")) for link in page.links)
    assert not re.search(r"@import|url\(|https?://", re.sub(r"base64,[\w+/=]+", "", text))
    assert sum(link.startswith("data:image/jpeg") for link in page.links) == 3
    assert "a &lt;b&gt;&amp;.jpg" in text
    assert "nan" not in re.findall(r">([^<]*)</td>", text)


def test_the_numbers_have_provenance(written, folder):
    out, _ = written

    def refuse(constant):
        raise AssertionError(constant)

    document = json.loads((out / "diagnosis.json").read_text(), parse_constant=refuse)
    about = document["about"]
    assert about["images"] == ["a <b>&.jpg", "b.png", "c.webp"]  # sorted, up to the limit
    assert (about["model"], about["method"], about["prompt"]) == ("embedded", "feather", "what is the background ?")
    assert {"feathervlm", "transformers", "torch"} <= set(about["versions"])
    assert about["command"].startswith("feathervlm diagnose --model embedded --method feather --images ")
    assert len(document["stages"]) == 2
    first = document["pictures"][0]
    mask = unpack(first["kept"][0], first["grid"])
    assert mask.mean() == pytest.approx(document["stages"][0]["numbers"]["kept"]["value"], abs=0.03)


def test_the_terminal_shows_the_same(written):
    out, result = written
    for text in ("before layer", "in the bottom third", "prefill FLOPs", "Look at the page", "note: Only 3 pictures"):
        assert text in result.stdout
    assert str(out / "diagnosis.html") in result.stdout.replace("\n", "")


def test_json_on_stdout_and_drawn_scenes(tmp_path):
    result = cli("--limit", 2, "--seed", 7, "--out", tmp_path, "--json", "--method", "uniform")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document["about"]["images"] == ["scene 0", "scene 1"]
    assert document["files"] == [str(tmp_path / "diagnosis.html"), str(tmp_path / "diagnosis.json")]


def test_the_same_seed_says_the_same(loaded, pictures):
    one, other = (diagnose("fastv:layer=2", images=pictures[:2], seed=1, **loaded).to_dict() for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--images", "{empty}"], "There is no picture in"),
        (["--images", "{empty}/nowhere"], "There is no directory"),
        (["--images", "{broken}"], "cannot be read as an image"),
        (["--method", "magic"], "There is no method 'magic'"),
        (["--method", "fastv:layer=99"], "beyond this model's"),
        (["--model", "nowhere"], "Only the embedded model draws its own pictures"),
        (["--model", "nowhere", "--images", "{good}"], "There is no model directory"),
        (["--prompt", "describe the weather"], "does not know 'describe', 'weather'"),
        (["--out", __file__], "cannot be made (File exists)"),
        (["--device", "abacus"], "There is no device 'abacus'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, folder, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    places = {name: tmp_path / name for name in ("empty", "broken")} | {"good": folder}
    filled = [argument.format(**places) for argument in arguments]
    result = cli("--limit", 1, "--out", tmp_path / "out", *filled)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert re.fullmatch(r"error: [^\n]+\n", result.stderr), result.stderr
    assert said in result.stderr
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": []}, "no picture in the list"),
        ({"images": ["a.png"]}, "str is not a picture"),
        ({"limit": 0}, "limit=0"),
        ({"processor": None}, "needs its processor"),
    ],
)
def test_mistakes_in_a_notebook(options, said, loaded, pictures):
    with pytest.raises(PruningError, match=said):
        diagnose("feather", **{"images": pictures, **loaded, **options})


def test_a_request_says_it_all(loaded):
    with pytest.raises(PruningError, match="put images into it"):
        diagnose(DiagnosisRequest("feather"), images=[])
    assert DiagnosisRequest(get("feather"), **loaded).command is None


def test_help_has_examples():
    result = cli("--help")
    assert result.exit_code == 0
    assert "Examples:" in result.stdout
    assert "feathervlm diagnose" in result.stdout


@dataclass(frozen=True)
class Alternating(Selector):
    """Another half for every picture."""

    generator: torch.Generator

    def select(self, tokens):
        return (torch.rand(tokens.present.shape, generator=self.generator) < 0.5) & tokens.present

    def expected(self, image):
        return image.current / 2


def test_other_tokens_for_every_picture_are_well(loaded, pictures):
    found = diagnose(Schedule(Stage(3, Alternating(torch.Generator().manual_seed(0)))), images=pictures, **loaded)
    assert kinds(found) == {"well", "few"}
    assert found.about["method"] == "schedule"
    assert found.stages[0].numbers["alike"].value == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("name", "has_prior"), [("internvl", True), ("qwen2_vl", True), ("gemma3", True), ("aya_vision", False)]
)
def test_pictures_of_other_shapes_on_other_families(name, has_prior, pictures):
    """Tiles, grids of the picture's own shape, no chat template, layers without rotation."""
    shapes = [pictures[0], pictures[1].rotate(90, expand=True)]
    model, processor = FAMILY_CASES[name].model(), PROCESSORS[name]()
    found = diagnose("fastv:layer=2", images=shapes, model=model, processor=processor)
    stage = found.stages[0]
    assert (stage.prior is not None) == has_prior
    assert ("no-prior" in kinds(found, "note")) != has_prior
    assert stage.rows.sum() == pytest.approx(1)
    assert found.about["prompt"].endswith("Describe the image.")
    ElementTree.fromstring(found.to_html().encode())
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_same_remedy_is_said_once(loaded, pictures):
    found = diagnose("fastv:layer=2,keep=0.1", images=pictures, **loaded)
    groups = grouped(found.findings)
    assert sum(len(texts) for _, texts, _ in groups) == len(found.findings)
    remedies = [remedy for _, _, remedy in groups if remedy]
    assert len(remedies) == len(set(remedies))
