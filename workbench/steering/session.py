"""How interventions reach the residual stream and the MLPs' neurons: the hooks of one model.

One `Session` per model holds the hooks, on the twin and on the bridge, so that whatever runs is steered. It
looks at every forward pass once (`Pass`) and lets each `Run`, one intervention that is on, edit the output of
each block, or what its down projection is given or returns, in the order in which the interventions were switched on.

What is fixed at the prompt (gate, read position, shift) is a `Prompt`. It belongs to the key-value cache that
the prompt's pass filled, so that interleaved generations do not mix, and a cache filled elsewhere is refused.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from ..errors import WorkbenchError
from ..models import Model, residual
from .passes import Pass, Prompt, read_pass
from .run import Run


class _Reached(Exception):
    """Ends a dry pass at the layer that was wanted."""

    def __init__(self, hidden: torch.Tensor):
        self.hidden = hidden


class Session:
    """The hooks of one model, shared by all runs that are on; they exist only while there is one."""

    def __init__(self, model: Model):
        self.model = model
        self.runs: list[Run] = vars(model).setdefault("active", [])
        self.call: object | None = None  # the `generate` of the model that is running, if any
        self._looked_at: object | None = None  # the last such call whose first pass was seen
        self._depth, self._dry, self._until = 0, False, -1
        self._stacks: list[tuple[nn.Module, list[str], Sequence[nn.Module]]] = []
        self._now: Pass | None = None
        self._undo: list[Callable[[], Any]] = []
        self._at_mlps: set[tuple[str, int]] = set()  # (site, layer) of down projections that are hooked too

    @staticmethod
    def of(model: Model) -> "Session":
        """The model's session; it lives as long as the model."""
        if "_session" not in vars(model):
            vars(model)["_session"] = Session(model)
        return vars(model)["_session"]

    @contextmanager
    def on(self, run: Run) -> Iterator[Run]:
        """Inside, whatever the model runs is steered by `run` too."""
        if not run.steer.layers:
            yield run
            return
        try:
            if not self._undo:
                self._hook()
            if run.steer.site != "residual":
                self._hook_mlps(run.steer.site, run.steer.layers)
            self.runs.append(run)
            yield run
        finally:
            if run in self.runs:
                self.runs.remove(run)
            run.release()
            if not self.runs:
                self._unhook()

    def _hook(self) -> None:
        twin, bridge = self.model.twin, self.model.bridge
        bridged, wrapped = bridge.original_model, list(bridge.blocks)
        if not self._stacks:
            for root, held, blocks in (  # TransformerLens' own hook points then see the steered stream
                (twin, self.model.blocks, self.model.blocks),
                (bridged, wrapped, [block.original_component for block in wrapped]),
            ):
                owner = _owner(root, held)
                self._stacks.append((owner, list(inspect.signature(owner.forward).parameters), blocks))
        for owner, signature, blocks in self._stacks:
            for handle in (
                owner.register_forward_pre_hook(self._before(signature), with_kwargs=True, prepend=True),
                owner.register_forward_hook(self._after),
                # First, so that every other hook sees the steered stream.
                *(block.register_forward_hook(self._block(layer), prepend=True) for layer, block in enumerate(blocks)),
            ):
                self._undo.append(handle.remove)
        for module, name in (
            (twin, "generate"),
            (bridged, "generate"),
            (bridge, "generate"),
            (bridge, "hf_generate"),
        ):
            if name not in vars(module):
                vars(module)[name] = self._as_one_call(getattr(module, name))
                self._undo.append(partial(vars(module).pop, name, None))

    def _hook_mlps(self, site: str, layers: Sequence[int]) -> None:
        """Hooks of a site at the down projections of twin and bridge, where TransformerLens sees what they made."""
        for layer in layers:
            if (site, layer) in self._at_mlps:
                continue
            self._at_mlps.add((site, layer))
            own, bridged = self.model.neurons(layer), self.model.bridge.blocks[layer].mlp.out
            if site == "neurons":
                hooks = [p.register_forward_pre_hook(self._neurons(layer), prepend=True) for p in (own, bridged)]
            else:
                projections = (own, bridged.original_component)
                hooks = [p.register_forward_hook(self._mlp_out(layer), prepend=True) for p in projections]
            self._undo += [handle.remove for handle in hooks]

    def _unhook(self) -> None:
        while self._undo:
            self._undo.pop()()
        self._now = None
        self._at_mlps.clear()

    # -- hooks -----------------------------------------------------------------------------------------------

    def _before(self, signature: Sequence[str]) -> Callable[..., None]:
        def before(owner: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._dry or not self.runs:
                return
            arguments = {**dict(zip(signature, args, strict=False)), **kwargs}
            if arguments.get("input_ids") is None and arguments.get("inputs_embeds") is None:
                return  # the model's own error is clearer
            first = self.call is not None and self._looked_at is not self.call
            self._looked_at = self.call
            now = self._now = read_pass(arguments, self.model, first)
            for run in self.runs:
                now.prompts[run] = run.prompt(now, self.call)
            for run in self.runs:
                self._prepare(run, owner, now)

        return before

    def _prepare(self, run: Run, owner: nn.Module, now: Pass) -> None:
        """What has to be known before the steered pass: a gate behind steered layers, another method's shifts."""
        prompt, read = now.prompts[run], run.gate_layer
        if prompt.open is None and read is None:
            run.decide(now)
        elif prompt.open is None and read is not None:
            if others := [on.steer for on in self.runs if on.steer.edits_before(read)]:
                if run.per_token:
                    raise WorkbenchError(
                        f"{run.steer} was to ask its gate about each token.",
                        found=f"layers below the gate's, {read}, that {others[0]} steers",
                        allowed="a gate per token only at or below the first steered layer",
                    )
                run.decide(now, self._dry_pass(owner, now, read))
        if run.steer.matched is not None and not run.anew and not prompt.shift:
            model_run = Run(run.steer.matched, self.model)
            open_to_all = torch.ones(now.rows, dtype=torch.bool)
            now.prompts[model_run] = own = Prompt(prompt.lengths, 0, prompt.end, open=open_to_all)
            self._dry_pass(owner, now, max(run.steer.layers), [model_run])
            prompt.shift = {layer: run.steer.redirect(layer, shift) for layer, shift in own.shift.items()}

    def _dry_pass(self, owner: nn.Module, now: Pass, until: int, runs: Sequence[Run] = ()) -> torch.Tensor:
        """The prompt once more, without cache and under `runs` alone, up to the output of block `until`."""
        arguments = {**now.arguments, "past_key_values": None, "use_cache": False}
        kept, self.runs, self._dry, self._until = self.runs, list(runs), True, until
        try:
            with torch.no_grad():
                owner(**arguments)
        except _Reached as reached:
            return reached.hidden
        finally:
            self.runs, self._dry = kept, False
        raise WorkbenchError(
            f"The residual stream after block {until} was to be read before steering.",
            found="its hook never fired",
        )

    def _block(self, layer: int) -> Callable[..., Any]:
        def block(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
            now = self._passing(f"Block {layer}")
            if now is None:
                return None
            before = residual(output)
            if not self._dry:
                for run in self.runs:
                    if run.gate_layer == layer and now.prompts[run].open is None:
                        run.decide(now, before)
            hidden = self._steer("residual", layer, before, now)
            if self._dry and layer == self._until:
                raise _Reached(hidden)
            if hidden is before:
                return None
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return block

    def _neurons(self, layer: int) -> Callable[..., Any]:
        def neurons(module: nn.Module, args: tuple[Any, ...]) -> Any:
            now = self._passing(f"The MLP of block {layer}")
            return None if now is None else (self._steer("neurons", layer, args[0], now), *args[1:])

        return neurons

    def _mlp_out(self, layer: int) -> Callable[..., Any]:
        def mlp_out(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> Any:
            now = self._passing(f"The MLP of block {layer}")
            return None if now is None else self._steer("mlp_out", layer, output, now, args[0])

        return mlp_out

    def _passing(self, asked: str) -> Pass | None:
        """The pass that is running; None where there is nothing to steer."""
        if not self.runs and not self._dry:
            return None
        if self._now is None:
            raise WorkbenchError(
                f"{asked} ran while an intervention is on.",
                found="no forward pass round it",
                do="Run the whole model, or leave the context first.",
            )
        return self._now

    def _steer(
        self, site: str, layer: int, hidden: torch.Tensor, now: Pass, read: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What all runs make of what stands at a site (row, column, d), in their order; `read` as in `Run.edit`."""
        if not self._dry:
            now.fired.add((site, layer))
        for run in self.runs:
            if layer in run.fired and run.steer.site == site:
                hidden = run.edit(layer, hidden, now, read)
        return hidden

    def _after(self, owner: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        now, self._now = self._now, self._now if self._dry else None
        if self._dry or not self.runs or now is None:
            return
        if now.cache is None:  # made inside the pass
            now.cache = getattr(output, "past_key_values", None)
        for run in self.runs:
            run.close(now)

    def _as_one_call(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A `generate` of the model is one prompt, cached or not."""

        def generate(*args: Any, **kwargs: Any) -> Any:
            self._depth += 1
            self.call = self.call or object()
            try:
                return original(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.call = None

        return generate


def _owner(root: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
    """The module that runs the blocks: it is given ids, mask and cache."""
    for module in root.modules():
        for child in module.children():
            if isinstance(child, nn.ModuleList) and len(child) == len(blocks) and child[0] is blocks[0]:
                return module
    raise WorkbenchError(
        f"The blocks of {type(root).__name__} were to be steered.",
        found="no module that holds them as a list",
    )
