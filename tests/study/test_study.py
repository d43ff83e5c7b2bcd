"""The whole study on a tiny random model: files, resuming after a stop, two processes, refusals, the report."""

import copy
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from feathervlm import methods
from feathervlm.cli.main import app
from feathervlm.core.errors import PruningError
from feathervlm.evaluation.samples import Sample
from feathervlm.evaluation.store import AnswerStore
from feathervlm.inference.model_spec import UNPRUNED
from feathervlm.study import ModelSpec, StudyQuestions, StudyRequest, report, run
from feathervlm.study.experiments import EXPERIMENTS
from feathervlm.study.plan import Plan, feather

VERDICTS = {"reproduced", "partly", "not"}


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory, demo: Path) -> StudyQuestions:
    folder = tmp_path_factory.mktemp("questions")
    lines: list[dict[str, object]] = []
    for number in range(6):
        Image.radial_gradient("L").rotate(30 * number).resize((120, 90 + number)).save(folder / f"{number}.png")
        where = {"box": [10, 5 + 12 * number, 40, 20 + 12 * number]} if number % 2 else {"answer": "left"}
        lines.append({"image": f"{number}.png", "prompt": f"Where is {number}?", **where})
    (folder / "mine.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return StudyQuestions.of([str(folder / "mine.jsonl")])


@pytest.fixture(scope="module")
def spec(demo: Path) -> ModelSpec:
    return ModelSpec(str(demo), max_new_tokens=2, batch=3)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, spec: ModelSpec, questions: StudyQuestions) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(StudyRequest(spec, questions, out, quick=True, processes=1))
    return out


def answers(out: Path) -> dict[str, list[str]]:
    """Sorted lines of every run; which chunk came first is no matter."""
    return {path.name: sorted(path.read_text().splitlines()) for path in (out / "answers").glob("*.jsonl")}


def findings(out: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((out / "findings.json").read_text())["findings"]
    return found


def test_every_experiment_writes_its_numbers_and_figures(whole: Path) -> None:
    for experiment in EXPERIMENTS:
        document = json.loads((whole / f"{experiment.name}.json").read_text(), parse_constant=pytest.fail)
        assert document["title"] == experiment.title
        assert document["figures"]
        for figure in document["figures"]:
            for ending in ("png", "svg"):
                assert (whole / "figures" / f"{figure['file']}.{ending}").stat().st_size > 1000
        for table in document["tables"]:
            assert {len(row) for row in table["rows"]} == {len(table["columns"])}, table["title"]
        for finding in document["findings"]:
            assert finding["verdict"] in VERDICTS
            assert finding["measured"]
    names = Counter(finding["id"] for finding in findings(whole))
    assert max(names.values()) == 1


def test_the_report_tells_every_finding_and_stands_alone(whole: Path) -> None:
    text, page = ((whole / name).read_text() for name in ("report.md", "report.html"))
    for finding in findings(whole):
        assert finding["claim"] in text
    for name in re.findall(r"\]\((figures/[^)]+)\)", text):
        assert (whole / name).exists()
    assert not re.findall(r'src="(?!data:)', page)
    assert "{{" not in text + page
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in tables)


def test_a_run_that_was_stopped_goes_on_without_loss_or_double_counting(
    tmp_path: Path, whole: Path, spec: ModelSpec, questions: StudyQuestions
) -> None:
    request = StudyRequest(spec, questions, tmp_path, quick=True, processes=1, experiments=EXPERIMENTS[:2])

    def stop(what: str, done: int, total: int) -> None:
        if done >= total // 3 > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(request, stop)
    files = sorted((tmp_path / "answers").glob("*.jsonl"))
    assert files
    assert not (tmp_path / "report.md").exists()
    files[0].write_bytes(files[0].read_bytes()[:-7])  # killed while writing
    seen = []
    run(request, lambda what, done, total: seen.append(done))
    assert seen == sorted(seen)
    expected, found = answers(whole), answers(tmp_path)
    assert found == {name: expected[name] for name in found}
    names = {finding["id"] for finding in findings(tmp_path)}
    assert findings(tmp_path) == [finding for finding in findings(whole) if finding["id"] in names]
    assert names
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").iterdir()}
    run(request)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "answers").iterdir()} == before, "nothing asked again"


@pytest.mark.full
def test_two_processes_answer_as_one(tmp_path: Path, whole: Path, spec: ModelSpec, questions: StudyQuestions) -> None:
    run(StudyRequest(spec, questions, tmp_path, quick=True, processes=2, experiments=EXPERIMENTS[:1]))
    expected = answers(whole)
    found = answers(tmp_path)
    assert found
    assert found == {name: expected[name] for name in found}


def test_studies_beside_this_one_are_compared_with_each_other(whole: Path) -> None:
    """Two studies that differ in one verdict and one number; with a single one there is nothing to compare."""
    first = json.loads((whole / "findings.json").read_text())
    documents = [json.loads((whole / f"{experiment.name}.json").read_text()) for experiment in EXPERIMENTS]
    changed = first["findings"][0]
    (name,) = list(changed["measured"])[:1]
    twins = [copy.deepcopy(first) for _ in range(2)]
    for twin, verdict, value in zip(twins, ("reproduced", "not"), (0.125, 0.75), strict=True):
        twin["findings"][0]["verdict"] = verdict
        twin["findings"][0]["measured"][name]["value"] = value
    for template, place in (("report.md.j2", None), ("report.html.j2", whole / "figures")):
        page = report.render(template, first["about"], documents, twins, place)
        table = page[page.index("Agreement between studies") :].split("##")[0].split("</table>")[0]
        assert f"{len(first['findings']) - 1} of {len(first['findings'])} verdicts are shared" in table
        (row,) = (line for line in re.split(r"\n(?=\||<tr>)", table) if changed["claim"] in line)
        assert "0.125 to 0.750" in row
        assert "varies" in row
        assert table.count("all agree") == len(first["findings"]) - 1
        assert "Agreement between studies" not in report.render(template, first["about"], documents, twins[:1], place)
    twins[1]["findings"][0]["measured"]["of another layer"] = {"value": 0.5, "low": None, "high": None}
    page = report.render("report.md.j2", first["about"], documents, twins)
    assert "0.125 to" not in page, "numbers that do not belong together are not compared"


def test_another_study_beside_this_one(tmp_path: Path, whole: Path, spec: ModelSpec, questions: StudyQuestions) -> None:
    run(StudyRequest(spec, questions, tmp_path, quick=True, processes=1, beside=(whole,), experiments=EXPERIMENTS[:1]))
    table = (tmp_path / "report.md").read_text().split("## 1.")[0]
    assert table.count(spec.model) == 2, "in the text and as a column"
    with pytest.raises(PruningError, match="There is no finished study in"):
        run(StudyRequest(spec, questions, tmp_path, beside=(tmp_path / "nowhere",)))


@pytest.mark.full
def test_questions_without_boxes_or_with_boxes_alone(
    tmp_path: Path, spec: ModelSpec, questions: StudyQuestions
) -> None:
    asked, folder = questions.sets[0].questions, questions.sets[0].task.data
    for kind, rows in (("other", asked[::2]), ("localization", asked[1::2])):
        lines = [
            {"image": str(folder / row.image), "prompt": row.prompt}
            | ({"box": row.box} if row.box else {"answers": row.target})
            for row in rows
        ]
        path = tmp_path / f"{kind}.jsonl"
        path.write_text("\n".join(map(json.dumps, lines)))
        done = run(StudyRequest(spec, StudyQuestions.of([str(path)]), tmp_path / kind, quick=True, processes=1))
        assert len(done.experiments) == len(EXPERIMENTS)
        assert bool(done.findings)


def test_another_data_set_in_the_same_folder_is_refused(
    whole: Path, spec: ModelSpec, questions: StudyQuestions
) -> None:
    other = ModelSpec(spec.model, max_new_tokens=3, batch=3)
    with pytest.raises(PruningError, match="holds a study of something else"):
        run(StudyRequest(other, questions, whole, quick=True))


def test_records_say_what_was_kept(whole: Path, spec: ModelSpec, questions: StudyQuestions) -> None:
    plan = Plan(4, (1, 8, 8), quick=True)
    fastv = str(methods.FastV(layer=plan.early))
    assert [set(chunk) for chunk in questions.sets[0].chunks] == [{0, 2, 4}, {1, 3, 5}], "by task"
    store = AnswerStore(whole / "answers", json.loads((whole / "answers" / "key.json").read_text()))
    for record in questions.read(store, fastv).values():
        assert record.shape == (1, 8, 8)
        assert record.tokens == pytest.approx(16 + 48 * plan.early / 4)
        assert bin(int(record.kept[0], 16)).count("1") == 16
        assert (record.target is None) == (record.question % 2 == 0)
    assert all(record.kept == () for record in questions.read(store, UNPRUNED).values())


@pytest.mark.full
def test_a_finished_study_is_reported_again_without_its_model(
    tmp_path: Path, whole: Path, spec: ModelSpec, questions: StudyQuestions, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("study.model_probe.load", "inference.loading.load_model"):
        monkeypatch.setattr(f"feathervlm.{module}", lambda *_, **__: pytest.fail("weights are read"))
    expected = {path: (whole / path).read_bytes() for path in ("report.md", "runs.json", "probe.json")}
    run(StudyRequest(spec, questions, whole, quick=True, processes=1, report_only=True))
    assert {path: (whole / path).read_bytes() for path in expected} == expected


def test_a_report_alone_asks_nothing(tmp_path: Path, spec: ModelSpec, questions: StudyQuestions) -> None:
    with pytest.raises(PruningError, match=r"are missing in .*answers; leave --report-only out"):
        run(StudyRequest(spec, questions, tmp_path, quick=True, processes=1, report_only=True))


def test_questions_of_several_tasks_are_numbered_through(tmp_path: Path, questions: StudyQuestions) -> None:
    both = StudyQuestions.of(["embedded", str(questions.sets[0].task.path)], n=2, seed=3)
    counts = both.describe()["questions"]
    assert counts["mine.jsonl other"] == counts["mine.jsonl localization"] == 3
    assert {count for row, count in counts.items() if row.startswith("embedded ")} == {2}
    embedded = len(both.sets[0].questions)
    assert both.item(embedded)[0].prompt == "Where is 0?"
    assert both.kinds[both.tasks[embedded + 1]] == "localization"
    store = AnswerStore(tmp_path / "answers", {})
    samples = [Sample(number, "", "", "x", 1.0) for number in both.sets[1].chunks[0]]
    store.append(both.sets[1], UNPRUNED, samples)
    assert set(both.read(store, UNPRUNED)) == {embedded + sample.question for sample in samples}
    with pytest.raises(PruningError, match="There is no task 'nowhere'"):
        StudyQuestions.of(["nowhere"])


@pytest.mark.parametrize("depth", [4, 16, 28, 32])
def test_rivals_cost_what_feather_costs(depth: int) -> None:
    plan = Plan(depth, (1, 24, 24))
    for keep in plan.budgets:
        goal = plan.average(feather(plan, keep))
        found = dict(plan.rivals(goal))
        assert {"FastV", "uniform", "pooling", "random 0"} <= set(found)
        for name, method in found.items():
            near = 576 / depth if name in ("uniform", "pooling") else 2
            assert plan.average(method) == pytest.approx(goal, abs=near), name


def study(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["study", *map(str, arguments)])


@pytest.mark.full
def test_the_command_prints_verdicts_and_where_the_report_is(
    whole: Path, demo: Path, questions: StudyQuestions, tmp_path: Path
) -> None:
    same = (
        "--model",
        demo,
        "--data",
        questions.sets[0].task.path,
        "--quick",
        "--max-new-tokens",
        2,
        "--batch",
        3,
        "--seed",
        0,
    )
    told = study(*same, "--out", whole, "--processes", 1)
    assert told.exit_code == 0, told.output
    assert "report.html" in told.stdout
    document = json.loads(study(*same, "--out", whole, "--processes", 1, "--json").stdout)
    assert document["findings"] == findings(whole)
    assert document["about"]["data"]["questions"] == {"other": 3, "localization": 3}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"image": "scene.png", "prompt": "x"', "line 1"),
        ('{"image": "nowhere.png", "prompt": "x", "answer": "y"}', "nowhere.png"),
        ('{"image": "scene.png", "prompt": "x", "box": [9, 9, 3, 20]}', "line 1"),
    ],
)
def test_broken_data_is_one_sentence(demo: Path, tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "scene.png").write_bytes((demo / "scene.png").read_bytes())
    (tmp_path / "mine.jsonl").write_text(line + "\n")
    told = study("--model", demo, "--data", tmp_path / "mine.jsonl", "--out", tmp_path / "out")
    assert told.exit_code == 2, told.output
    assert told.stdout == ""
    assert said in told.stderr
    assert told.stderr.startswith("error: ")
    assert len(told.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "mine.jsonl", "--n", 5), "leave it out"),
        (("--data", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--model", "nowhere", "--n", 2), "nowhere"),
        (("--beside", "nowhere", "--n", 2), "no finished study in nowhere"),
    ],
)
def test_what_does_not_fit_is_one_sentence(tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    told = study("--out", tmp_path / "out", *arguments)
    assert told.exit_code == 2, told.output
    assert said in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


@pytest.mark.full
def test_the_embedded_questions_need_the_embedded_kind_of_model(tmp_path: Path, demo: Path) -> None:
    told = study("--out", tmp_path / "out", "--model", demo)
    assert told.exit_code == 2
    assert "--data FILE.jsonl" in told.stderr
