"""The bench of well-known models' convolutions and of growth: what is measured, tables and pictures; no times."""

import dataclasses
import json

import pytest
import torch

from fusedref import KERNELBENCH_73, Problem, bench, cuda
from fusedref.__main__ import main
from fusedref.bench import growth, layers
from fusedref.bench.models import BY_HAND, MODE, OURS
from fusedref.plans.choices import sizes_of

COUNTS = {
    "resnet18": 11, "resnet50": 23, "resnext50_32x4d": 24, "vgg16_bn": 9, "mobilenet_v2": 30, "mobilenet_v3_large": 44,
    "efficientnet_b0": 46, "densenet121": 66, "shufflenet_v2_x1_0": 16, "regnet_y_400mf": 34, "convnext_tiny": 8,
    "vit_b_16": 1,
}  # fmt: skip


def row(name, us, problem, precision="fp32", layout="NCHW", mode=MODE, **changes):
    return bench.Row(name, mode, precision, layout, bench.describe(problem), us, 1.0, None, 5.0, **changes)


class TestLayers:
    def test_numbers(self):
        assert {model: len(bench.model_problems((model,))) for model in bench.MODELS} == COUNTS
        assert len(bench.model_problems()) == 272

    def test_problems(self):
        found = bench.model_problems(("resnet18", "resnet50", "vit_b_16"), 32, torch.float16)
        stem = Problem(32, 3, 64, 224, 224, 7, stride=2, padding=3, bias=False, dtype=torch.float16)
        assert found[stem] == ["resnet18", "resnet50"]
        patches = Problem(32, 3, 768, 224, 224, 16, stride=16, bias=False, dtype=torch.float16)
        assert found[patches] == ["vit_b_16"]

    def test_no_two_are_the_same_convolution(self):
        problems = bench.model_problems()
        assert len({sizes_of(problem) for problem in problems}) == len(problems)

    def test_written_anew(self, monkeypatch, tmp_path):
        torchvision = pytest.importorskip("torchvision")
        monkeypatch.setattr(layers, "FILE", tmp_path / "layers.json")
        kept = json.loads((layers.Path(layers.__file__).with_name("layers.json")).read_text())
        layers.write_layers()
        written = json.loads((tmp_path / "layers.json").read_text())
        assert written == {**kept, "torchvision": torchvision.__version__.partition("+")[0]}


STEM, WIDE, DEPTHWISE = (
    Problem(32, 3, 64, 224, 224, 7, stride=2, padding=3),
    Problem(32, 64, 256, 56, 56, 1),
    Problem(1, 32, 32, 112, 112, 3, padding=1, groups=32),
)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [
        (STEM, "stem"),
        (WIDE, "1x1"),
        (DEPTHWISE, "depthwise"),
        (dataclasses.replace(WIDE, stride=2), "1x1, stride 2"),
        (Problem(32, 64, 64, 56, 56, 3, padding=1), "3x3"),
        (Problem(32, 64, 64, 56, 56, 3, padding=1, groups=4), "grouped"),
        (Problem(32, 3, 768, 224, 224, 16, stride=16), "patches"),
        (Problem(32, 64, 16, 1, 1, 1), "one pixel"),
    ],
)
def test_kinds(problem, kind):
    assert bench.kind_of(problem) == kind


ROWS = [
    row(BY_HAND, 100.0, STEM), row(OURS, 50.0, STEM),
    row(BY_HAND, 104.0, WIDE), row(OURS, 100.0, WIDE),
    row(BY_HAND, 100.0, DEPTHWISE), row(OURS, 104.0, DEPTHWISE),
    row(BY_HAND, 100.0, WIDE, "fp16", "channels_last"), row(OURS, 102.0, WIDE, "fp16", "channels_last"),
]  # fmt: skip


def test_table():
    table = bench.models_table([*ROWS, row(OURS, 1.0, WIDE, mode="eval")], "Test Card")
    assert [column.header for column in table.columns] == ["", "fp32\nNCHW", "fp16\nchannels_last"]
    assert [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)] == [
        ["1x1", "1.04 (0 of 1)", "0.98 (0 of 1)"],
        ["depthwise", "0.96 (1 of 1)", ""],
        ["stem", "2.00 (0 of 1)", ""],
        ["all", "1.26 (1 of 3)", "0.98 (0 of 1)"],
    ]


def test_picture_has_a_bar_for_each_convolution():
    figure = bench.models_picture(ROWS, "Test Card")
    heights = [[round(1 + bar.get_height(), 2) for bar in axes.patches] for axes in figure.axes]
    assert heights == [[0.96, 1.04, 2.0], [0.98]]
    assert figure.axes[0].get_title() == "fp32, NCHW: 1.26 (geometric mean of 3)"


GROWTH = [
    row(OURS, 10.0 + value, problem, mode=growth.MODE + size, kernel="folded")
    for size, problems in bench.SERIES.items()
    for value, problem in problems.items()
]


class TestGrowth:
    def test_series(self):
        """Every series has problem 73, or its filters on as many pixels."""
        for size, problems in bench.SERIES.items():
            assert KERNELBENCH_73 in problems.values(), size
            assert list(problems) == sorted(problems)
        assert {p.batch * p.height * p.width for p in bench.SERIES["image"].values()} == {128**3}

    def test_table(self):
        table = bench.growth_table(GROWTH, "Test Card")
        lines = [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]
        assert len(lines) == len(GROWTH)
        assert lines[0] == ["batch", "1", "11.0", "5.0", "2.20", "folded"]

    def test_picture(self):
        axes = bench.growth_picture(GROWTH, "Test Card").axes
        assert [one.get_title() for one in axes] == list(bench.SERIES)
        assert list(axes[2].lines[0].get_ydata()) == [10.0 + value for value in bench.SERIES["in_channels"]]


@pytest.fixture
def asked(monkeypatch):
    """Return what the command asks the bench for."""
    calls = []
    monkeypatch.setattr(cuda, "device", lambda: "gpu")
    for name in ("bench_all", "bench_growth", "bench_models"):
        monkeypatch.setattr(bench, name, lambda *given, name=name: calls.append((name, given[3:])))
    return calls


class TestCommand:
    def test_models(self, asked):
        assert main(["bench", "--models"]) == 0
        assert asked == [("bench_models", (bench.MODELS, (1, 32), tuple(bench.DTYPES), bench.LAYOUTS))]

    def test_limits(self, asked):
        words = "bench --models resnet18 vit_b_16 --batch 4 --batch 7 --precision tf32 --layout channels_last"
        assert main(words.split()) == 0
        assert asked == [("bench_models", (("resnet18", "vit_b_16"), [4, 7], ["tf32"], ["channels_last"]))]

    def test_growth(self, asked):
        assert main(["bench", "--growth"]) == 0
        assert asked == [("bench_growth", ())]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--models resnet19", "argument --models: invalid choice: 'resnet19'"),
            ("--models --batch 0", "argument --batch: must be an integer of at least 1, got '0'"),
            ("--models --batch many", "argument --batch: must be an integer of at least 1, got 'many'"),
            ("--models --precision fp8", "argument --precision: invalid choice: 'fp8'"),
            ("--models --growth", "not allowed with argument --models"),
            ("--growth --only eval", "not allowed with argument --growth"),
        ],
    )
    def test_wrong_options(self, asked, capsys, words, message):
        with pytest.raises(SystemExit):
            main(["bench", *words.split()])
        assert message in capsys.readouterr().err

    @pytest.mark.parametrize("words", ["--batch 3", "--growth --precision fp16", "--layout NCHW"])
    def test_limits_are_for_models(self, asked, capsys, words):
        assert main(["bench", *words.split()]) == 2
        assert "--batch, --precision and --layout are for --models" in capsys.readouterr().err
        assert not asked


@pytest.mark.gpu
def test_rows_on_a_gpu():
    rows = list(bench.model_rows(("vgg16_bn",), (1,), ("tf32",), ("channels_last",)))
    assert [found.name for found in rows] == [BY_HAND, OURS] * 9
    assert all(found.us > 0 and found.floor_us > 0 for found in rows)
    assert all((found.kernel is None) == (found.name == BY_HAND) for found in rows)
