"""Which plans fit: against profiles made one by one, and against brute force over the candidates."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import redistill_lib as rd
from redistill_lib.budget import Blocks, BudgetFit, Fit, fit_to_budget, plans_of
from redistill_lib.costs import Cost
from redistill_lib.memory import RUNTIMES, Runtime
from redistill_lib.memory.reuse import Runs
from redistill_lib.memory.trace import trace
from redistill_lib.red import RedBlock, insert_blocks, make_in_place

X = torch.zeros(1, 3, 64, 64)


@pytest.fixture(scope="module")
def resnet() -> BudgetFit:
    return fit_to_budget("resnet18", "96KB", X)


def test_every_legal_plan_of_the_same_total_is_looked_at(resnet: BudgetFit) -> None:
    plans = {fit.plan for fit in resnet.candidates}
    assert len(plans) == 146 and len(resnet.candidates) == 2 * 146
    assert {"2-21222", "8-11221", "1-22222", "16-11112", "2-12222"} <= plans
    assert all(rd.StridePlan.parse(plan).total == 32 for plan in plans)


def test_a_candidate_is_what_its_profile_says(resnet: BudgetFit) -> None:
    fit = next(fit for fit in resnet.candidates if (fit.plan, fit.dtype) == ("8-11221", "int8"))
    profile = rd.profile_memory(rd.create_model("resnet18-8-11221"), X, dtype="int8")
    own = profile.peak_bytes, profile.peak_op.name, profile.flops, profile.weight_count, profile.weight_bytes
    assert (fit.plan, fit.dtype, fit.plain) == ("8-11221", "int8", Cost(*own))
    assert [own.plan for own in resnet.own] == ["2-21222", "2-21222"]


def test_what_is_kept_fits_and_is_not_beaten(resnet: BudgetFit) -> None:
    def beats(a: Fit, b: Fit) -> bool:
        (peak, flops), (other, others) = ((fit.peak("published"), fit.plain.flops) for fit in (a, b))
        return a.dtype == b.dtype and peak <= other and flops >= others and (peak < other or flops > others)

    fitting = [fit for fit in resnet.candidates if fit.peak("published") <= 96 * 1024]
    best = {(f.dtype, f.peak("published"), f.plain.flops) for f in fitting if not any(beats(o, f) for o in fitting)}
    fits = [(fit.dtype, fit.peak("published"), fit.plain.flops) for fit in resnet.fits]
    assert set(fits) == best and len(fits) == len(best)
    assert [fit[2] for fit in fits] == sorted((fit[2] for fit in fits), reverse=True)
    frame = resnet.to_frame()
    assert list(frame["plan"]) == [fit.plan for fit in resnet.fits] and (frame["with RED (KiB)"] <= 96).all()
    assert resnet.fits[0].plan in str(resnet)


def test_a_network_of_ones_own_moves_its_strides_to_the_stem() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    fit = fit_to_budget(net, "64KB", X, dtypes=["fp32"])
    assert {f.plan for f in fit.candidates} == {"1-24", "2-14", "2-22", "4-21", "4-12", "8-11"}
    # Image 48 KiB throughout the stem: with stem stride 4 its output is 16 × 16² × 4 B = 16 KiB more.
    assert {f.plan for f in fit.candidates if f.plain.peak_bytes <= 64 * 1024} == {"4-21", "4-12", "8-11"}
    assert not next(net.parameters()).is_meta


def test_where_nothing_fits_the_nearest_is_named() -> None:
    fit = fit_to_budget("mobilenetv2", "1KB", X, plans=["2-1222121", "8-1211121"])
    assert fit.fits == () and fit.to_frame().empty
    told = "no plan of mobilenetv2 fits 1.0 KiB with RED blocks as published: the nearest is 8-1211121 in int8"
    assert told in str(fit) and "try a smaller input or width" in str(fit)


def test_in_place_depthwise_makes_room() -> None:
    conventions = "fused", replace(RUNTIMES["fused"], in_place_depthwise=True)
    plain, in_place = (
        fit_to_budget("mobilenetv2", 1, X, dtypes=["int8"], plans=["2-1222121"], convention=c) for c in conventions
    )
    assert in_place.closest.plain.peak_bytes < plain.closest.plain.peak_bytes


@pytest.mark.parametrize("convention", ["eager", "onnxruntime", "executorch", "litert_micro", Runtime("own")])
def test_any_rules_count_networks_in_which_the_blocks_really_stand(convention: str | Runtime) -> None:
    fit = fit_to_budget("mobilenetv2", "1KB", X, plans="4-1212112", convention=convention)
    student = rd.create_model("mobilenetv2-4-1212112")
    taps = rd.match_taps(student, rd.create_model("mobilenetv2"), X)
    red = insert_blocks(
        rd.create_model("mobilenetv2-4-1212112"), [(*t.place, RedBlock(t.channels or 0)) for t in taps]
    )
    for candidate in fit.candidates:
        for model, cost in ((student, candidate.plain), (red.eval(), candidate.published)):
            profile = rd.profile_memory(model, X, dtype=candidate.dtype, convention=convention)
            assert cost is not None and cost.peak_bytes == profile.peak_bytes and cost.flops == profile.flops
            assert cost.needed_bytes == profile.arena_bytes
    name = convention if isinstance(convention, str) else "own"
    assert fit.convention == name and f"fits 1.0 KiB under {name} with RED blocks as published" in str(fit)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="not an amount of memory"):
        fit_to_budget("mobilenetv2", "lots", X)
    with pytest.raises(ValueError, match="needs an example input"):
        fit_to_budget("mobilenetv2", "1MB")
    with pytest.raises(ValueError, match="unknown dtype 'int4'"):
        fit_to_budget("mobilenetv2", "1MB", X, dtypes=["int4"])
    with pytest.raises(ValueError, match=r"'256' has no unit: write \"256KB\""):
        fit_to_budget("mobilenetv2", "256", X)
    with pytest.raises(ValueError, match="blocks='all' is not 'none' or 'published' or 'in place' or 'narrow' or"):
        fit_to_budget("mobilenetv2", "1MB", X, blocks="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown convention 'tflite': choose from eager, fused"):
        fit_to_budget("mobilenetv2", "1MB", X, convention="tflite")
    with pytest.raises(ValueError, match="budgets cannot be counted by paper"):
        fit_to_budget("mobilenetv2", "1MB", X, convention="paper")
    with pytest.raises(ValueError, match="the network does not take images of 1×64×64: Given groups"):
        fit_to_budget("mobilenetv2", "1MB", X[:, :1])
    with pytest.raises(ValueError, match="the network does not take images of 1×64×64: Given groups"):
        fit_to_budget(rd.create_model("resnet18"), "1MB", X[:, :1])
    with pytest.raises(ValueError, match="Unknown architecture"):
        fit_to_budget("mobilnetv9", "1MB", X)


def test_a_tuple_of_the_inputs_is_unpacked() -> None:
    assert fit_to_budget("resnet18", "1MB", (X,), plans="2-21222") == fit_to_budget(  # type: ignore[arg-type]
        "resnet18", "1MB", X, plans="2-21222"
    )
    with pytest.raises(ValueError, match="takes tensors in the order of the network's arguments"):
        fit_to_budget("resnet18", "1MB", {"x": X})  # type: ignore[arg-type]


def test_one_text_is_one_plan_and_one_dtype() -> None:
    fit = fit_to_budget("mobilenetv2", "1MB", X, dtypes="int8", plans="4-1221121")
    assert [(f.plan, f.dtype) for f in fit.candidates] == [("4-1221121", "int8")]
    with pytest.raises(ValueError, match="plans is empty"):
        fit_to_budget("mobilenetv2", "1MB", X, plans=[])


def test_a_plan_that_cannot_be_derived_is_listed_and_the_others_are_there() -> None:
    class Two(nn.Module):
        """Two outputs: the first one's size leaves only the last stride free."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(k, 8, 3, 2, 1) for k in (3, 8, 8))

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z = self.b(self.a(x))
            return z, self.c(z)

    fit = fit_to_budget(Two(), "1MB", X, dtypes="fp32")
    assert {f.plan for f in fit.candidates} == {"2-22", "4-12"} and fit.refused.keys() == {"4-21", "8-11"}
    assert "outputs" in fit.refused["8-11"]


def test_a_network_with_a_single_strided_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="only one layer of this Sequential strides or pools"):
        fit_to_budget(nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1)), "1MB", X)


@pytest.mark.parametrize("budget", ["2000KB", "2600KB"])
def test_under_a_runtime_the_arena_has_to_fit(budget: str) -> None:
    """Plan 4-11214 of ResNet-50 in int8 holds 1,960 KiB at once, but is placed in more."""
    greedy = replace(RUNTIMES["executorch"], name="greedy", packer="shared objects")
    x, plans = torch.zeros(1, 3, 224, 224), ["4-11214", "16-11112"]
    how = {"dtypes": "int8", "plans": plans, "blocks": "none", "convention": greedy}
    fit = fit_to_budget("resnet50", budget, x, **how)  # type: ignore[arg-type]
    profile = rd.profile_memory(rd.create_model("resnet50-4-11214"), x, dtype="int8", convention=greedy)
    live, arena, limit = profile.peak_bytes, profile.arena_bytes, rd.memory.parse_size(budget)
    assert live < 2000 * 1024 < arena
    first = {f.plan: f.plain for f in fit.candidates}["4-11214"]
    assert (first.peak_bytes, first.arena_bytes) == (live, arena)
    assert ("4-11214" in [f.plan for f in fit.fits]) == (arena <= limit)
    assert (fit.to_frame()["arena (KiB)"] <= limit / 1024).all() and "arena" in str(fit) and "live peak" in str(fit)
    fused = fit_to_budget("resnet50", budget, x, **{**how, "convention": "fused"})  # type: ignore[arg-type]
    assert "arena (KiB)" not in fused.to_frame() and "arena" not in str(fused)


def test_plans_whose_blocks_are_not_counted_are_beaten_under_a_runtime_too() -> None:
    """An arena may shrink where blocks are added, so that what is alive has to decide."""
    fit = fit_to_budget("resnet18", "96KB", X, dtypes="int8", convention="executorch_default")
    counted = [f for f in fit.candidates if f.published and f.published.needed_bytes <= 96 * 1024]
    others = [f for f in fit.candidates if not f.published]
    assert counted and len(others) > 20
    for f in others:
        beaten = any(c.plain.flops >= f.plain.flops and c.peak("published") <= f.plain.peak_bytes for c in counted)
        assert beaten or f.plain.peak_bytes > 96 * 1024


@pytest.mark.parametrize("own", [False, True])
def test_patches_grow_where_they_are_all_the_pooling(own: bool) -> None:
    x = torch.zeros(1, 3, 128, 128)
    fit = fit_to_budget(rd.create_model("vit_pico") if own else "vit_pico", "1MB", x, dtypes="int8")
    assert [f.plan for f in fit.candidates] == ["16", "32", "64"]
    for found in fit.candidates:
        profile = rd.profile_memory(rd.create_model(f"vit_pico-{found.plan}"), x, dtype="int8")
        assert found.plain.peak_bytes == profile.peak_bytes and found.plain.flops == profile.flops
    peaks = [f.plain.peak_bytes for f in fit.candidates]
    tight = fit_to_budget("vit_pico", peaks[0] - 1, x, dtypes="int8")
    assert tight.fits[0].plan == "32" and "without RED blocks" in str(tight)
    assert not tight.untapped
    student, _ = rd.derive_student(rd.create_model("vit_pico"), plan=tight.fits[0].plan, example=x)
    assert student.name == "vit_pico-32"
    with pytest.raises(ValueError, match="larger patches are made with factor=2"):
        rd.derive_student(rd.create_model("vit_pico"), plan="24", example=x)
    assert [f.plan for f in fit_to_budget("vit_pico", "9MB", x[..., 16:, 16:], dtypes="int8").candidates] == ["16"]
    with pytest.raises(ValueError, match="cannot be cut into patches of 16"):
        fit_to_budget("vit_pico", "1MB", x[..., 3:, 3:])
    with pytest.raises(ValueError, match="plan 24 is no patch of vit_pico: give 16 or a multiple of it"):
        fit_to_budget("vit_pico", "1MB", x, plans="24")


# ------------------------------------------------------------------------------------------------------- RED blocks


def test_a_plan_fits_with_its_blocks_as_networks_that_have_them_show() -> None:
    """The numbers against networks in which the blocks really stand."""
    fit = fit_to_budget("mobilenetv2", "1MB", X, dtypes="int8", plans="4-1212112").candidates[0]
    teacher, student = rd.create_model("mobilenetv2"), rd.create_model("mobilenetv2-4-1212112")
    taps = rd.match_taps(student, teacher, X)
    red = insert_blocks(student, [(tap.layer, tap.side, RedBlock(tap.channels or 0)) for tap in taps]).eval()
    for model, cost in ((red, fit.published), (make_in_place(red, X)[0], fit.in_place)):
        profile = rd.profile_memory(model, X, dtype="int8")
        own = profile.peak_bytes, profile.peak_op.name, profile.flops, profile.weight_count, profile.weight_bytes
        assert cost is not None and cost == Cost(*own[:1], cost.peak_at, *own[2:])
        assert own[1].startswith(cost.peak_at)  # of an in-place block, the layer inside may be another


@pytest.mark.parametrize(("name", "told"), [("mobilenetv2", True), ("resnet18", False)])
def test_the_sentence_tells_what_costly_blocks_cost(name: str, told: bool) -> None:
    fit = fit_to_budget(name, "4MB", X, dtypes="int8", plans="4-1212112" if told else "8-11221")
    plain, red = fit.fits[0].plain, fit.fits[0].published
    assert red is not None and (red.flops > 2 * plain.flops) == told
    words = f"{red.flops / plain.flops:.1f} times the multiply-adds"
    assert (words in str(fit)) == told and ("its RED blocks make it" in str(fit)) == told
    assert "its RED blocks make it" not in str(fit_to_budget(name, "4MB", X, plans=fit.fits[0].plan, blocks="none"))


def pyramid() -> nn.Module:
    """Its blocks hold three maps where it holds two."""
    layers = [nn.Sequential(nn.Conv2d(k, 16, 3, s, 1), nn.ReLU()) for k, s in ((3, 1), (16, 2), (16, 2), (16, 2))]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6))


@pytest.mark.parametrize("blocks", ["none", "published", "in place"])
def test_what_is_recommended_fits_with_the_blocks_that_are_asked_for(blocks: Blocks) -> None:
    fit = fit_to_budget(pyramid(), "40KB", X, dtypes="int8", blocks=blocks)
    everything = [(f.plan, f.plain.flops, f.peak(blocks)) for f in fit.candidates]
    best = max(((flops, plan) for plan, flops, peak in everything if peak <= 40 * 1024))
    assert fit.fits[0].plan == best[1] and fit.fits[0].plan in str(fit)
    assert all(fit.fits[0].plain.flops >= f.plain.flops for f in fit.candidates if f.plain.peak_bytes <= 1024)


def test_the_three_ways_to_have_blocks_lead_to_plans_of_their_own() -> None:
    """×2: conv map 16·32·32 = 16 KiB in int8. Two of them and no more are there without blocks, three with."""
    found = {b: fit_to_budget(pyramid(), "40KB", X, dtypes="int8", blocks=b) for b in BLOCKS}
    best = {blocks: fit.fits[0].plan for blocks, fit in found.items()}
    assert best["none"] == best["in place"] == "2-122" and best["published"] != "2-122"
    kept = next(f for f in found["published"].candidates if f.plan == "2-122")
    assert kept.plain.peak_bytes == 32 * 1024 and kept.peak("published") == 48 * 1024
    assert "; with RED blocks in place 2-122 in int8 would fit too" in str(found["published"])


BLOCKS: tuple[Blocks, ...] = ("none", "published", "in place")


@pytest.mark.parametrize("blocks", ["narrow", "narrow in place"])
def test_narrow_taps_ask_for_less(blocks: Blocks) -> None:
    plan, dtype = "4-1212112", "int8"
    fit = fit_to_budget("mobilenetv2", "1KB", X, dtypes=dtype, plans=plan, blocks=blocks)
    student, teacher = rd.create_model(f"mobilenetv2-{plan}"), rd.create_model("mobilenetv2")
    taps = rd.match_taps(student, teacher, X, narrow=True)
    red = insert_blocks(student, [(*tap.place, RedBlock(tap.channels or 0)) for tap in taps]).eval()
    model = red if blocks == "narrow" else make_in_place(red, X)[0]
    profile, needed = rd.profile_memory(model, X, dtype=dtype), fit.candidates[0].needs(blocks)
    assert needed is not None and needed.peak_bytes == profile.peak_bytes and needed.flops == profile.flops
    assert needed.parameters == profile.weight_count
    wide = fit_to_budget("mobilenetv2", "1KB", X, dtypes=dtype, plans=plan).candidates[0].published
    assert wide is not None and needed.flops < wide.flops and "at narrow taps" in str(fit)


def test_the_network_as_it_is_needs_no_blocks() -> None:
    fit = fit_to_budget("resnet18", "1MB", X, dtypes="int8", plans="2-21222")
    assert fit.candidates[0].published == fit.candidates[0].in_place == fit.candidates[0].plain


def test_a_plan_without_a_place_for_blocks_is_told() -> None:
    """Of plan 4-11 the one map that changes is 1×1, and such a map is not tapped."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 1, 1))
    x = torch.zeros(1, 3, 4, 4)
    fit = fit_to_budget(net, "1MB", x, dtypes="int8", plans="4-1")
    assert fit.untapped.keys() == {"4-1"} and fit.fits == () and "1 have no place for blocks, such as 4-1" in str(fit)
    assert fit_to_budget(net, "1MB", x, dtypes="int8", plans="4-1", blocks="none").fits


@pytest.mark.parametrize(("model", "plan"), [("resnet18", "2-21122"), (pyramid(), "2-111"), (pyramid(), "3-122")])
def test_plans_of_another_total_stride_are_refused(model: nn.Module | str, plan: str) -> None:
    with pytest.raises(ValueError, match=rf"plan {plan} strides .* in all where .* strides \d+, so its last maps"):
        fit_to_budget(model, "1MB", X, plans=plan)


@pytest.mark.parametrize("arch", ["mobilenetv2", "mobilenetv3_small", "resnet18", "resnet50", "unet"])
def test_a_replayed_pass_is_the_pass(arch: str) -> None:
    inputs = rd.models.example_inputs(arch, 64)
    runs, (_, own, plans, build) = Runs(), plans_of(arch, inputs)
    for plan in [own, *plans[:: max(1, len(plans) // 4)]]:
        network = build(plan)
        assert trace(network, *inputs, runs=runs) == trace(network, *inputs)
        known = len(runs.known)
        assert trace(network, *inputs, runs=runs) == trace(network, *inputs) and known == len(runs.known)


def test_modules_that_differ_or_cannot_be_compared_are_run() -> None:
    class Scaled(nn.Module):
        def __init__(self, times: object) -> None:
            super().__init__()
            self.times, self.conv = times, nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in self.times if isinstance(self.times, list) else range(self.times):  # type: ignore[call-overload]
                x = self.conv(x)
            return x

    class Keeps(Scaled):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.kept = super().forward(x)
            return self.kept + 1

    runs, x = Runs(), torch.zeros(1, 4, 8, 8)
    nets = [
        nn.Sequential(nn.Identity(), kind(times)) for kind in (Scaled, Keeps) for times in (1, 2, 3, 2, [1], [1, 2])
    ]
    nets[0][1].register_forward_hook(lambda module, args, out: out * 2)
    for net in (*nets, nn.Sequential(*nets)):
        assert trace(net, x, runs=runs) == trace(net, x)
        assert trace(net, x[..., ::2], runs=runs) == trace(net, x[..., ::2])
