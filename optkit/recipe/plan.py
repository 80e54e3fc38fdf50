"""What a run will do: the recipe checked, every variant named, before any work."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from optkit.core.cores import default_threads
from optkit.core.engine import Engine
from optkit.core.errors import PlanError, UserError
from optkit.core.instantiate import TARGET
from optkit.core.processes import current
from optkit.core.seeds import derive_seed
from optkit.core.source_digest import code_elsewhere
from optkit.core.stage import ChecksModel, KeyContext, Stage
from optkit.core.store import check_store
from optkit.core.task import HasPrompts, SealedTask, Task
from optkit.core.threads import use_threads
from optkit.core.variant import variant_id
from optkit.engines.registry import is_registered
from optkit.measure import tasks_to_measure
from optkit.measure.config import check_prompts
from optkit.models import ModelSpec
from optkit.recipe.chain import check_names, traits_after
from optkit.recipe.controls import SMALLER_DENSE, Numbered, control_chain
from optkit.recipe.keys import dependencies, identity_of, keyed_params_of, of_task, pool_of, sources, target_of, within
from optkit.recipe.recipe import AUTO, MODEL, Recipe

if TYPE_CHECKING:
    import torch
    from torch import nn

OWN, OTHER = "own", "other"


@dataclass(frozen=True)
class PlannedStep:
    """A stage in its place in a chain; `stage` is None for the model as loaded.

    Attributes:
        number: its place after the baseline, which is 0; stages that make the baseline have negative ones. In a control
            it is that of the stage it stands for.
        chain: names of the stages from the one after the baseline to this.
        of: `OWN` in the recipe's own chain, `OTHER` in other chains of its stages, or the name of a control.
    """

    name: str
    stage: Stage | None
    id: str
    parent: str | None
    seed: int
    number: int
    chain: tuple[str, ...] = ()
    of: str = OWN

    @property
    def control(self) -> str | None:
        return None if self.of in (OWN, OTHER) else self.of

    @property
    def folder(self) -> str:
        """Its name among the variants of a run."""
        if self.of == OTHER:
            return f"{self.number}-{'+'.join(self.chain)}"
        return f"{self.control}-{self.number}-{self.name}" if self.control else f"{self.number}-{self.name}"


@dataclass(frozen=True)
class Plan:
    """What a run will do: every step from the model as loaded, of which those from `baseline` on are measured.

    The steps of the recipe's chain come first, then those in which other chains part from it; a step's parent stands
    before it.

    Attributes:
        recipe: what was planned.
        digest: 8 hex digits that tell it from other plans.
        spec: of the recipe's model.
        steps: all of them.
        trusted: see `trusted_names`.
        is_study: whether it has other chains than the recipe's.
    """

    recipe: Recipe
    digest: str
    spec: ModelSpec
    steps: tuple[PlannedStep, ...]
    trusted: tuple[str, ...]
    is_study: bool = False

    @property
    def run(self) -> str:
        """Name of the run, and of its folder."""
        return f"{self.recipe.name}-{self.digest}"

    @property
    def threads(self) -> int:
        """Torch threads to train, serve and measure with."""
        return threads_of(self.recipe)

    def placed(self, *, name: str, out: str, store: str) -> Plan:
        """The same plan, to be run under another name and in other folders."""
        return replace(self, recipe=replace(self.recipe, name=name, out=out, store=store))

    @property
    def baseline(self) -> PlannedStep:
        return next(step for step in self.steps if step.number == 0)

    @property
    def last(self) -> PlannedStep:
        """The end of the recipe's own chain."""
        return [step for step in self.steps if step.of == OWN][-1]

    @property
    def measured(self) -> tuple[PlannedStep, ...]:
        return tuple(step for step in self.steps if step.number >= 0)


def check_chain(recipe: Recipe) -> None:
    """Refuses a chain that cannot work. Looks at no data.

    Raises:
        PlanError: an unknown or repeated name, a stage that lacks a trait, a baseline that is not in the chain.
        UserError: an engine that is not there, or a chain whose last variant no engine runs.
    """
    traits = check_names(recipe.chain, recipe.stages, recipe.controls, recipe.baseline, recipe.traits)
    at_baseline = traits_after(recipe.chain[: baseline_place(recipe)], recipe.stages, recipe.traits)
    if reason := recipe.reference.unsupported(at_baseline):
        message = f"the baseline must run on {recipe.reference.name}: {reason}"
        if "float" in recipe.traits:
            raise PlanError(message, key="baseline", value=recipe.baseline, fix="name an earlier stage")
        raise PlanError(message, key="model.variant", fix="start from a variant that is float")
    check_engines(recipe.engines)
    reasons = {name: engine.unsupported(traits) for name, engine in recipe.engines.items()}
    if all(reasons.values()):
        message = "no engine runs the last variant: " + "; ".join(f"{n}: {r}" for n, r in reasons.items())
        raise PlanError(message, key="engines", fix="add one, such as +engine@engines.inductor=inductor")


def check_engines(engines: Mapping[str, Engine]) -> None:
    """Raises UserError for an engine that does not work on this machine."""
    for name, engine in engines.items():
        if reason := engine.unavailable():
            raise UserError(
                f"does not work here: {reason}", key=f"engines.{name}", fix=f"or leave it out: ~engines.{name}"
            )


def not_run_on(engines: Mapping[str, Engine], traits: frozenset[str]) -> dict[str, str]:
    """Why engines do not run a variant with these traits, by engine; those that do are left out."""
    reasons = {name: engine.unsupported(traits) for name, engine in engines.items()}
    return {name: reason for name, reason in reasons.items() if reason is not None}


@dataclass
class Shared:
    """What many plans have in common, made once.

    Attributes:
        models: with their identities, by what builds them.
        fitting: the task that each of the models was last found to fit.
        others: identities of other models, teachers, by what builds them.
    """

    models: dict[str, tuple[nn.Module, list[Any]]] = field(default_factory=dict)
    fitting: dict[str, Task] = field(default_factory=dict)
    others: dict[str, list[Any]] = field(default_factory=dict)

    def model(self, spec: ModelSpec, seed: int) -> tuple[nn.Module, list[Any], str]:
        """The model as built, in eval mode, its identity and what it is found by here."""
        key = json.dumps([asdict(spec), seed], sort_keys=True, default=str)
        if key not in self.models:
            built = spec.build(seed).eval()
            self.models[key] = built, spec.identity(built)
        return *self.models[key], key


def make_plan(recipe: Recipe, chains: Sequence[Sequence[str]] = (), shared: Shared | None = None) -> Plan:
    """Plans the whole chain; loads the data, whose fingerprint is part of every variant's id.

    Args:
        recipe: what to run.
        chains: other chains of the recipe's stages, from the model as loaded; they share what they begin with.
        shared: what earlier plans have made that this one takes; what it makes is added.

    Raises:
        UserError: a mistake in the recipe, or data or a model that do not fit.
    """

    check_chain(recipe)
    if not recipe.fresh:
        check_store(recipe.store or f"{recipe.out}/store")
    with use_threads(threads_of(recipe)):
        return _plan(recipe, chains, shared or Shared())


def threads_of(recipe: Recipe) -> int:
    """Torch threads of a recipe's run: those that it asks for, or the cores that this process may use."""
    return recipe.threads or default_threads().count


def _plan(recipe: Recipe, chains: Sequence[Sequence[str]], shared: Shared) -> Plan:
    import torch

    spec = ModelSpec.from_config(recipe.model, recipe.task.model_defaults())
    # a checkpoint that does not fit is found here, not after the data is decoded
    model, identity, built = shared.model(spec, recipe.seed)
    first = baseline_place(recipe)
    # training keeps the epoch that is best by the first metric
    code = [torch.__version__, *of_task(recipe.task)]
    start = variant_id(MODEL, identity, recipe.seed, recipe.task.fingerprint, code)
    for task in tasks_to_measure(recipe.task, recipe.measure):
        if shared.fitting.get(built) is not task:
            _check_fit(model, task)
            shared.fitting[built] = task
    if isinstance(recipe.task, HasPrompts):
        check_prompts(recipe.measure, getattr(model, "longest", None))
    _check_stages(model, recipe)
    if SMALLER_DENSE in recipe.controls and (origin := spec.start()) is not None and origin.variant.surgeries:
        message = f"'{SMALLER_DENSE}' starts from a fresh dense model, and this variant is changed already"
        raise PlanError(message, key="controls", fix="leave it out")
    steps = {start: PlannedStep(MODEL, None, start, None, recipe.seed, -first)}
    own = _numbered(recipe, recipe.chain, first)
    context = KeyContext(None, _identify(recipe, shared.others), work_device(), threads_of(recipe))
    _grow(steps, recipe, context, start, own, OWN)
    cut = [step.id for step in steps.values() if step.stage and "cut" in step.stage.adds]
    for control in recipe.controls:
        _grow(steps, recipe, context, start, control_chain(control, own, cut[-1] if cut else None), control)
    for chain in chains:
        _grow(steps, recipe, context, start, _numbered(recipe, chain, first), OTHER)
    engines = recipe.engines.values()
    measured = [asdict(e) | {"is": target_of(e), **code_elsewhere([type(e)])} for e in engines]  # type: ignore[call-overload]
    what = {name: value for name, value in asdict(recipe.measure).items() if name != "when"}
    # the first metric is part of what is trained; the others are only measured
    tasks = tasks_to_measure(recipe.task, recipe.measure)
    others = [identity_of(metric) for task in tasks for metric in task.metrics[1:]]
    run = variant_id(list(steps), first, recipe.chain, measured, what, recipe.threads, *others)
    trusted = trusted_names(recipe, str(spec.skeleton(model)["target"]))
    return Plan(recipe, run[:8], spec, tuple(steps.values()), trusted, is_study=bool(chains))


def trusted_names(recipe: Recipe, builder: str | None = None) -> tuple[str, ...]:
    """What the variants and sessions of a run may name: what its recipe names, and nothing else of the same packages.

    Args:
        recipe: of the run.
        builder: the dotted path of what builds its model; None takes the recipe's. A recipe that starts from a variant
            has none, and names its own code in ``model.trust``.
    """
    built = builder or recipe.model.get(TARGET)
    engines = (engine for engine in recipe.engines.values() if not is_registered(engine))
    of_variant = recipe.model.get("trust") or () if TARGET not in recipe.model else ()
    named = {*of_variant, *map(target_of, recipe.stages.values()), *map(target_of, engines)}
    return tuple(sorted(named | ({str(built)} if built else set())))


def _numbered(recipe: Recipe, chain: Sequence[str], first: int) -> list[Numbered]:
    """A chain's stages with their names and numbers; the baseline's last is 0."""
    return [(name, recipe.stages[name], place - first) for place, name in enumerate(chain, 1)]


def _grow(
    steps: dict[str, PlannedStep], recipe: Recipe, context: KeyContext, start: str, chain: Sequence[Numbered], of: str
) -> None:
    """Adds the steps of a chain that are not there yet, by id.

    What a control has made already is made again for another chain: a variant stands in the ledger once, as either.
    """
    last = steps[start]
    for place, (name, stage, number) in enumerate(chain, 1):
        seed = derive_seed(recipe.seed, "stage", place)
        # the recipe's own chain comes first, so that others find the baseline
        baseline = next((step.id for step in steps.values() if step.number == 0), None)
        depends_on = dependencies(stage, replace(context, baseline=baseline))
        made = variant_id(
            last.id, target_of(stage), keyed_params_of(stage), seed, recipe.max_steps, sources(stage), depends_on,
            *pool_of(stage, recipe.task),
        )  # fmt: skip
        if made in steps and steps[made].of not in (OWN, of):
            made = variant_id(made, of)
        names = (*last.chain, name) if number > 0 else ()
        last = steps.setdefault(made, PlannedStep(name, stage, made, last.id, seed, number, names, of))


def _check_fit(model: nn.Module, task: Task) -> None:
    """Whether the model takes the task's inputs, and its output is what the task asks for.

    Raises:
        UserError: it does not.
    """
    from optkit.models.compatibility import answer_to

    reason = task.mismatch(answer_to(task.example(2), model, "model"), 2)
    if reason is not None:
        message = f"{type(model).__name__} does not fit this task: {reason}"
        raise UserError(message, key="model", fix="change the model, or the task")


def _check_stages(model: nn.Module, recipe: Recipe) -> None:
    """Whether every stage of the chain, and every stage within one, can work on such a model, as far as it can tell.

    Raises:
        UserError: one cannot.
    """
    todo: list[tuple[str, Any]] = [(f"stages.{name}", recipe.stages[name]) for name in recipe.chain]
    while todo:
        path, stage = todo.pop(0)
        todo += [(f"{path}.{name}", inner) for name, inner in within(stage).items()]
        if isinstance(stage, ChecksModel):
            try:
                stage.check(model, SealedTask(recipe.task))
            except UserError as error:
                key = f"{path}.{error.key}" if error.key else path
                raise type(error)(error.message, key=key, value=error.value, fix=error.fix) from error


def baseline_place(recipe: Recipe) -> int:
    """How many stages of the chain belong to making the baseline."""
    if recipe.baseline == MODEL:
        return 0
    if recipe.baseline != AUTO:
        return recipe.chain.index(recipe.baseline) + 1
    opening = 0
    while opening < len(recipe.chain) and recipe.stages[recipe.chain[opening]].technique == "train":
        opening += 1
    return opening


def work_device() -> torch.device:
    """Where stages train and calibrate: a process of several has a GPU of its own."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", current().local_rank) if current().several else torch.device("cuda")


def build_other(recipe: Recipe, node: dict[str, Any]) -> tuple[ModelSpec, nn.Module]:
    """Another model than the recipe's, for its task: a teacher. Raises UserError."""
    spec = ModelSpec.from_config(node, recipe.task.model_defaults(), "teacher")
    return spec, spec.build(derive_seed(recipe.seed, "other model"), "teacher")


def _identify(recipe: Recipe, found: dict[str, list[Any]]) -> Callable[[dict[str, Any]], Any]:
    """Gives the identity of another model; each is built once, however many chains it is in."""
    defaults = recipe.task.model_defaults()

    def identity(node: dict[str, Any]) -> list[Any]:
        key = json.dumps([node, recipe.seed, defaults], sort_keys=True, default=str)
        if key not in found:
            spec, module = build_other(recipe, node)
            found[key] = spec.identity(module)
        return found[key]

    return identity
