from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from xml.etree import ElementTree

import pytest

from apps.gantt import draw_bars
from converter.presets import PRESETS
from edge.errors import SourceNotFound, UsageError
from edge.jobs import CPU, NPU, Job, Part
from edge.schedule import IN_ORDER, simulate
from npu.soc import validate
from npu.soc.socs import SOCS
from tests.apps.conftest import Lutra
from tests.converter.sources.test_packed import write
from tests.gguf_files import split_gguf, write_gguf

JOBS = (
    Job(0, "qkv", Part(NPU), 1),
    Job(1, "qkv", Part(NPU), 1),
    Job(0, "attention", Part(CPU), 2, (0, 1)),
)


def test_json_has_what_scripts_read(lutra: Lutra, bundle: Path) -> None:
    ran = lutra("plan", bundle, "--prompt", 48, "--generate", 8, "--chunk", 16, "--json")
    values = ran.json
    assert ran.code == 0
    assert values["figures"] == "modelled"
    assert values["prefill_tok_s"] == pytest.approx(48 / values["first_token_s"])
    for order in ("in_order", "out_of_order"):
        assert values["lower_bound_s"] <= values[order]["makespan_s"] < values["first_token_s"] * 2
        assert 0 <= values[order]["bubble_share"] < 1
    assert values["decode_tok_s"] > 0
    assert values["prefill_j_per_token"] > 0
    assert values["decode_j_per_token"] > values["prefill_j_per_token"] / 100
    assert values["subgraphs"] == {"shared": 10, "total": 12}


def test_a_bundle_its_checkpoint_and_its_config_plan_alike(
    lutra: Lutra, bundle: Path, checkpoint: Path
) -> None:
    options = ("--prompt", 30, "--generate", 4, "--weights", "w4g64", "--json")
    plans = [
        {**lutra("plan", source, *options).json, "model": ""}
        for source in (bundle, checkpoint, checkpoint / "config.json")
    ]
    assert plans[0] == plans[1] == plans[2]


def test_whatever_is_converted_is_planned(lutra: Lutra, checkpoint: Path, tmp_path: Path) -> None:
    """A GGUF file, parts of one in a folder, and packed weights, as the checkpoint itself."""
    gguf = write_gguf(checkpoint, tmp_path / "model.gguf")
    (tmp_path / "parts").mkdir()
    split_gguf(gguf, tmp_path / "parts", 3)
    write("gptq 4 bits", tmp_path / "gptq")
    options = ("--prompt", 30, "--generate", 4, "--json")
    expected = {**lutra("plan", checkpoint, *options).json, "model": ""}
    for source in (gguf, tmp_path / "parts"):
        assert {**lutra("plan", source, *options).json, "model": ""} == expected
        assert "not converted" in lutra("inspect", source).out
    assert lutra("plan", tmp_path / "gptq", *options).code == 0
    assert f"{gguf} is a checkpoint, not a bundle" in lutra("run", gguf).err


def test_fewer_bits_decode_faster_and_the_npu_too(lutra: Lutra) -> None:
    def rate(*options: object) -> float:
        ran = lutra("plan", "tiny", "--prompt", 64, *options, "--json")
        return float(ran.json["decode_tok_s"])

    assert rate("--weights", "w2g64") > rate("--weights", "w8gc")
    assert rate("--decode", "npu") > rate("--decode", "cpu")
    assert rate("--generate", 8) > rate("--generate", 500)


def test_whole_layers_on_the_npu_take_half_the_memory_and_no_order(lutra: Lutra) -> None:
    both = {
        mode: lutra("plan", "tiny", "--prompt", 600, "--mode", mode, "--json").json
        for mode in ("w8a8", "w4a16")
    }
    assert both["w4a16"]["in_order"]["bubble_share"] == pytest.approx(0)
    npu = {mode: values["memory"]["npu_weight_bytes"] for mode, values in both.items()}
    assert npu["w8a8"] == 2 * npu["w4a16"]
    assert both["w4a16"]["subgraphs"] == {"shared": 2, "total": 2}


def test_for_people(lutra: Lutra) -> None:
    ran = lutra("plan", "tiny", "--soc", "sm8750", "--prompt", 600, "--plot")
    assert ran.code == 0
    assert "tiny on SM8750 (Snapdragon 8 Elite), modelled" in ran.out
    assert "lower bound" in ran.out
    assert "10 of 12" in ran.out
    assert "out of order: " in ran.out


def test_a_model_beyond_the_npus_addresses_is_split(lutra: Lutra, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(PRESETS["llama3.2-1b"] | {"num_hidden_layers": 60}))
    ran = lutra("plan", config, "--soc", "SM8550", "--prompt", 1, "--chunk", 32)
    assert "in 2 sessions of at most 2,147.48 MB" in ran.out


def test_plot_and_trace_have_every_job_of_both_schedules(lutra: Lutra, tmp_path: Path) -> None:
    svg, trace = tmp_path / "plan.svg", tmp_path / "plan.json"
    options = ("--prompt", 512, "--plot", svg, "--trace", trace, "--quiet")
    assert lutra("plan", "tiny", *options).code == 0
    events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert {event["pid"] for event in events} == {1, 2}
    titles = ElementTree.parse(svg).getroot().findall(".//{*}rect/{*}title")
    assert len(titles) == len(events)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "plan.svg"]


def test_bars_show_chunks_and_waiting() -> None:
    lines = list(draw_bars([("in order", simulate(JOBS, IN_ORDER))], "measured"))
    assert lines[0] == "in order: 4.000 s, a column is 40.00 ms (measured)"
    assert lines[1:] == [
        "   npu " + "0" * 25 + "1" * 25 + "." * 50,
        "   cpu " + "." * 50 + "0" * 50,
    ]


def test_values_have_sources(lutra: Lutra) -> None:
    ran = lutra("plan", "--values", "--soc", "SC8380XP", "--json")
    assert "notebookcheck.net" in ran.out
    assert ran.json["dram_bytes_s"]["origin"] == "stated"
    assert ran.json.keys() == SOCS["SC8380XP"].values.keys()


def test_validate_prints_the_tables(lutra: Lutra, monkeypatch: pytest.MonkeyPatch) -> None:
    few = validate.prefill_rows
    monkeypatch.setattr(validate, "prefill_rows", lambda soc: islice(few(soc), 1))
    ran = lutra("plan", "--validate", "--json")
    assert ran.code == 0
    assert len(ran.json["rows"]) == validate.ROW_COUNT - 24
    assert {"what", "published", "modelled", "error"} <= ran.json["rows"][0].keys()
    assert 0 < ran.json["median_error"] < 0.15
    assert "T-MAN table 3" in lutra("plan", "--validate").out


def test_the_prompt_is_what_a_short_context_leaves(lutra: Lutra) -> None:
    for model, tokens in (("tiny", 1024 - 128), ("pocket", 256 - 128)):
        assert lutra("plan", model, "--json").json["prompt_tokens"] == tokens


@pytest.mark.parametrize(
    ("words", "error", "match"),
    [
        ((), UsageError, "no model"),
        (("tiny", "--soc", "SM1"), UsageError, "SM1"),
        (("tiny", "--prompt", "0"), UsageError, "--prompt 0"),
        (("tiny", "--chunk", "0"), UsageError, "--chunk 0"),
        (("tiny", "--prune-outliers", "1.5"), UsageError, "--prune-outliers 1.5"),
        (("tiny", "--prompt", "1000", "--generate", "25"), UsageError, "tiny holds 1024"),
        (("nothing",), SourceNotFound, "nothing"),
    ],
)
def test_plan_refuses(lutra: Lutra, words: tuple[str, ...], error: type, match: str) -> None:
    ran = lutra("plan", *words)
    assert ran.code == error.exit_code
    assert match in ran.err
