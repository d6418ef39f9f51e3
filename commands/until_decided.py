"""Seeds where they decide something: of each study the next look of the claims that are open, within a budget."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from commands.console import Table, count, make_console, print_json, print_prose, say
from experiments.runs.states import State
from simsiam.errors import SettingsError

if TYPE_CHECKING:
    import pandas as pd

    from analysis.verdicts.verdicts import Verdict
    from experiments.plan import Plan, PlannedCell
    from experiments.studies.study import Scale, Study

UntilDecided = Annotated[
    bool, typer.Option("--until-decided", help="Add seeds, look by look, only where a claim is open.")
]
Budget = Annotated[
    Optional[str],  # noqa: UP045 - typer reads it at run time
    typer.Option("--budget", metavar="TIME", help="With --until-decided: hours of a core or GPU, e.g. 6h or 90min."),
]
MaxSeeds = Annotated[
    Optional[int],  # noqa: UP045
    typer.Option("--max-seeds", min=2, metavar="N", help="With --until-decided: at most N seeds of each variant."),
]


@dataclass(frozen=True)
class Limits:
    """What may be spent."""

    hours: float = math.inf  # of a core, or of a GPU where the runs are on one
    seeds: int = 1000


def limits_of(until_decided: bool, budget: str | None, max_seeds: int | None, seeds: str | None) -> Limits:
    """The limits that the options name. Raises SettingsError for options that do not go together."""
    if not until_decided:
        for name, value in (("budget", budget), ("max-seeds", max_seeds)):
            if value is not None:
                raise SettingsError(f"{name}: {value} needs --until-decided  [--{name}]")
        return Limits()
    if seeds is not None:
        raise SettingsError(
            f"seeds: {seeds} and --until-decided do not go together, which chooses the seeds itself  [--seeds]"
        )
    if budget is None:
        return Limits(seeds=max_seeds or 1000)
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(h|min)", budget.strip())
    if not match or float(match[1]) == 0:
        raise SettingsError(f"budget: {budget!r} must be a time such as 6h or 90min  [--budget]")
    return Limits(float(match[1]) / (1 if match[2] == "h" else 60), max_seeds or 1000)


@dataclass(frozen=True)
class Need:
    """An open claim, and what its next look and its decision would take."""

    study: Study
    verdict: Verdict
    look: int | None  # None: there is none within the limits
    cells: tuple[PlannedCell, ...]  # of the next look that are not done
    hours: float  # of them
    chance: float | None  # that seeds within the limits decide it; None before its first look
    seeds: int | None  # at which it should be decided
    hours_to_decide: float
    most_seeds: int

    @property
    def gives_up(self) -> str:
        """Why no more seeds are spent on it; "" if they are."""
        from analysis.verdicts.outlook import FUTILE

        if self.look is None:
            last = self.verdict.design.last
            if last <= self.most_seeds:
                return f"can't be decided at this scale: its last look, at {last} seeds, is over"
            return f"open: its next look needs more than the {self.most_seeds} seeds of --max-seeds"
        if self.chance is not None and self.chance < FUTILE:
            return f"given up: the chance that more seeds decide it is {100 * self.chance:.0f} %"
        return ""

    @property
    def line(self) -> str:
        name = f"{self.study.name}: {self.verdict.claim.name}"
        if self.gives_up:
            return f"{name}: {self.gives_up}."
        chance = "" if self.chance is None else f", with a chance of {100 * self.chance:.0f} % within the limits"
        if self.seeds is None:
            decides = "more seeds than may be had"
        elif self.seeds > self.most_seeds:  # the cells beyond are not planned, so what they take is not known
            decides = f"about {self.seeds} seeds, more than the {self.most_seeds} of --max-seeds"
        else:
            decides = f"about {self.seeds} seeds, {self.hours_to_decide:.2g} h"
        return (
            f"{name}: next look at {self.look} seeds, {count(len(self.cells), 'run')}, {self.hours:.2g} h; deciding it"
            f" takes {decides}{chance}."
        )


@dataclass
class Campaign:
    """Studies whose claims are to be decided."""

    studies: list[Study]
    scale: Scale
    overrides: list[str]
    runs: Path
    data: Path
    limits: Limits
    guess: int = 8  # seeds that a claim is taken to need before its first look
    began_with: float | None = field(default=None, init=False)  # hours that the runs had taken at the beginning

    def plan(self) -> Plan:
        """All cells up to the last look of each study."""
        from experiments.plan import make_plan, merge

        plans = [
            make_plan(study, self.scale, list(range(self._most(study))), self.overrides, self.runs, self.data)
            for study in self.studies
        ]
        return merge(plans)

    def _most(self, study: Study) -> int:
        return max(1, min(self.limits.seeds, study.design.last))

    def needs(self, made: Plan) -> tuple[list[Need], list[Verdict]]:
        """The open claims, and all verdicts."""
        from analysis.frames.load import device_hours
        from analysis.report.one_study import gather, report_variants
        from analysis.verdicts.verdicts import verdicts

        statuses = made.statuses()
        todo = {run for run, status in statuses.items() if status.state != State.DONE}
        found: list[Need] = []
        everything: list[Verdict] = []
        gathered = []
        for study in self.studies:
            points, frame = gather(report_variants(study, made, None), self.runs)
            gathered.append((study, points, frame.assign(hours=device_hours(frame))))
        hours = Hours(made, [frame for _, _, frame in gathered])
        self.spent = hours.total
        if self.began_with is None:
            self.began_with = hours.total
        for study, points, frame in gathered:
            judged = verdicts(study.claims, points, frame, self.scale.name, study.design, study.name)
            everything += judged
            cells = [planned for planned in made.cells if planned.study == study.name and planned.run_id in todo]
            found += [
                self._need(study, verdict, cells, hours)
                for verdict in judged
                if verdict.outcome == "undecided" and verdict.findings
            ]
        return found, everything

    def _need(self, study: Study, verdict: Verdict, cells: Sequence[PlannedCell], hours: Hours) -> Need:
        from analysis.verdicts.outlook import chance_to_decide

        most, design = self._most(study), study.design
        wanted: dict[str, int] = {}  # seeds by variant, up to the next look of each open check
        to_decide: list[int | None] = []
        is_first = False
        for finding in verdict.findings:
            if finding.outcome != "undecided":
                continue
            look = design.next_look(finding.num_settled)
            is_first |= finding.num_settled < design.looks[0]
            to_decide.append(finding.seeds_to_decide)
            for variant in finding.check.variants():
                wanted[variant] = max(wanted.get(variant, 0), look if look is not None and look <= most else 0)
        look = max(wanted.values()) or None
        known = [each for each in to_decide if each is not None]
        guessed = next((each for each in design.looks if each >= self.guess), design.last)
        seeds = guessed if is_first else max(known) if len(known) == len(to_decide) else None
        next_cells = tuple(each for each in cells if each.cell.seed < wanted.get(each.cell.variant, 0))
        upto = min(most, seeds or most)
        until_decided = [each for each in cells if each.cell.variant in wanted and each.cell.seed < upto]
        return Need(
            study, verdict, look, next_cells, hours.of(next_cells),
            chance_to_decide(verdict, most), seeds, hours.of(until_decided), self.limits.seeds,
        )  # fmt: skip

    def next_cells(self) -> Plan | None:
        """What is to be trained next, after saying how all stands; None if nothing is left to do."""
        made = self.plan()
        needs, judged = self.needs(made)
        self._tell(needs, judged)
        left = self.limits.hours - (self.spent - (self.began_with or 0.0))
        chosen: dict[str, PlannedCell] = {}
        over = []
        hours = 0.0
        for need in sorted((need for need in needs if not need.gives_up), key=lambda need: need.hours):
            new = {each.run_id: each for each in need.cells if each.run_id not in chosen}
            share = need.hours * len(new) / max(len(need.cells), 1)
            if hours + share > left:
                over.append(need)
                continue
            hours += share
            chosen |= new
        if over:
            say(f"{count(len(over), 'open claim')}: the next look takes more than the {max(left, 0):.2g} h left.")
        if not chosen:
            say("Nothing more to train." if needs else "Every claim is decided.")
            return None
        return replace(made, cells=tuple(planned for planned in made.cells if planned.run_id in chosen))

    def _tell(self, needs: Sequence[Need], judged: Sequence[Verdict]) -> None:
        from analysis.report.all_studies import in_words

        say(f"\n{in_words(judged)}")
        console = make_console()
        for need in needs:
            print_prose(console, f"  {need.line}")

    def show_plan(self, as_json: bool) -> None:
        """What is open and what deciding it would cost; trains nothing."""
        from analysis.report.all_studies import in_words

        made = self.plan()
        needs, judged = self.needs(made)
        going_on = [need for need in needs if not need.gives_up]
        total = {each.run_id: each for need in going_on for each in need.cells}
        if as_json:
            return print_json({"scale": self.scale.name, "open": [_plain(need) for need in needs]})
        table = Table("study", "claim", "next look>", "runs>", "hours>", "decided at>", "hours until then>", "chance>")
        for need in needs:
            table.add_row(
                need.study.name,
                need.verdict.claim.name,
                "-" if need.gives_up else str(need.look),
                str(len(need.cells)),
                f"{need.hours:.2g}",
                "-" if need.seeds is None else str(need.seeds),
                f"{need.hours_to_decide:.2g}",
                "-" if need.chance is None else f"{100 * need.chance:.0f} %",
            )
        make_console().print(table)
        say(f"\n{in_words(judged)}")
        say(
            f"The next looks need {count(len(total), 'run')}; runs that claims share are trained once. Hours are of a"
            f" core or GPU, as runs took so far, else as on {self.scale.speed.device}. Before its first look a claim is"
            f" taken to need {self.guess} seeds (--guess); after it, what the spread seen so far says."
        )


def _plain(need: Need) -> dict[str, Any]:
    return {
        "study": need.study.name,
        "claim": need.verdict.claim.name,
        "next_look": need.look,
        "runs": [each.run_id for each in need.cells],
        "hours": need.hours,
        "seeds_to_decide": need.seeds,
        "hours_to_decide": need.hours_to_decide,
        "chance": need.chance,
        "given_up": need.gives_up or None,
    }


class Hours:
    """What runs take: as others of the same settings did, else as estimated, corrected by how estimates did."""

    def __init__(self, made: Plan, frames: Sequence[pd.DataFrame]) -> None:
        import pandas as pd

        from experiments.plan import estimate

        ended = pd.concat(frames, ignore_index=True).drop_duplicates("run")
        ended = ended[(ended["state"] == "done") & ended["hours"].notna()]
        self.total = float(ended["hours"].sum())
        self.measured = {str(name): float(value) for name, value in ended.groupby("config")["hours"].mean().items()}
        self.estimated = {
            planned.config_id: estimate(planned.cell.settings, made.scale).seconds / 3600
            for planned in {planned.config_id: planned for planned in made.cells}.values()
        }
        both = self.measured.keys() & self.estimated.keys()
        ratios = [self.measured[name] / self.estimated[name] for name in both]
        self.correction = sum(ratios) / len(ratios) if ratios else 1.0

    def of(self, cells: Sequence[PlannedCell]) -> float:
        """Of the runs of cells, each once."""
        runs = {planned.run_id: planned.config_id for planned in cells}
        return sum(self.measured.get(name, self.correction * self.estimated[name]) for name in runs.values())
