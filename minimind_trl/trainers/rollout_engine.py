"""How the online trainers generate: prompts in, completions with log-probabilities and rewards out."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import GenerationConfig
from trl.models import unwrap_model_for_generation
from trl.trainer.utils import pad

from ..evaluation.answers import render_prompt, until_end
from ..internals import replaced
from ..models.decoding import can_sample, sample
from ..tokenization.masks import token_ids
from .layer_compilation import LayerCompilation
from .lm_head import base_model
from .rollout import Rollout, joined, loss_mask, weighted_sums
from .rollout_tools import TEMPLATE_KWARGS, RolloutTools


class RolloutEngine(LayerCompilation, RolloutTools):
    """Generation for GRPOTrainer: our decoding loop, and chat template arguments from the rows."""

    def generate_rollout(self, rows: list[dict]) -> Rollout:
        """Answer the rows' prompts and score the answers."""
        rows = self.with_rendered_prompts(rows)
        seen = self.state.num_input_tokens_seen
        tensors, generation = self.generate_and_score(rows)
        self.state.num_input_tokens_seen = seen  # GRPOTrainer counts generated tokens; we count those trained on
        ids, tool_mask, device = generation.completion_ids, generation.tool_mask, self.accelerator.device
        lengths = map(len, ids) if tool_mask is None else map(sum, tool_mask)
        return Rollout(
            rows=rows,
            prompts=generation.prompts,
            completions=generation.completions,
            completion_ids=ids,
            tensors=tensors,
            mask=loss_mask(tensors),
            logps=tensors.get("old_per_token_logps"),
            ref_logps=tensors.get("ref_per_token_logps"),
            rewards=self.own_part(weighted_sums(generation.rewards, self.reward_weights), len(rows)),
            all_rewards=generation.rewards,
            lengths=torch.tensor(list(lengths), device=device),
            ended=torch.tensor([one[-1] in self.eos_token_ids for one in ids], device=device),
            tool_use=self.tool_use(generation),
        )

    # Prompts

    def with_rendered_prompts(self, rows: list[dict]) -> list[dict]:
        """The rows with `rendered_prompts`, the prompt as the model reads it."""
        if self.environment_factories is not None:  # environments change the prompt
            return rows
        rendered: dict[str, str] = {}  # the answers of a group share their prompt
        for row in rows:
            if (key := _prompt_key(row)) not in rendered:
                rendered[key] = self._render(row)
        return [row | {"rendered_prompts": rendered[_prompt_key(row)]} for row in rows]

    def _render(self, row: dict) -> str:
        prompt = row["prompt"]
        if isinstance(prompt, str):
            return prompt
        kwargs = self.template_kwargs_of(row) | {"chat_template": self.chat_template}
        return render_prompt(self.processing_class, prompt, self.shown_tools(row) or None, **kwargs)

    def tokenize_prompts(self, prompts: list, rows: list[dict]) -> list[list[int]] | None:
        if isinstance(prompts[0], str):
            return None
        if all(map(self._fits_kept_ids, rows)):
            return [row["prompt_ids"] for row in rows]
        if self.environment_factories is not None:  # which have changed the prompts
            texts = [self._render(row | {"prompt": prompt}) for row, prompt in zip(rows, prompts, strict=True)]
        else:
            texts = [row["rendered_prompts"] for row in rows]
        return token_ids(self.text_tokenizer, texts, add_special_tokens=False)

    def _fits_kept_ids(self, row: dict) -> bool:
        """Whether the mixture has tokenized this prompt as it is asked here: without tools and other arguments."""
        asked_otherwise = self.tools or row.get("tools") or self.template_kwargs_of(row) or self.chat_template
        return row.get("prompt_ids") is not None and not asked_otherwise

    # Completions

    def generate_completions(self, prompt_ids: list[list[int]]) -> list[list[int]] | None:
        if self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return None
        with unwrap_model_for_generation(
            self.model_wrapped,
            self.accelerator,
            generation_kwargs=self.generation_kwargs,
            gradient_checkpointing_kwargs=self.args.gradient_checkpointing_kwargs,
        ) as policy:
            return self.complete(policy, prompt_ids)

    def complete(self, model: nn.Module, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Completions by a model that shares the policy's tokens, sampled like the policy's; each ends with its EOS.

        Computed in the type that updates are computed in, so that both see the same probabilities.
        """
        if self.use_transformers_continuous_batching:
            return self._complete_by_transformers(model, prompt_ids)
        prompts = [torch.tensor(ids) for ids in prompt_ids]
        ids = pad(prompts, padding_value=self.text_tokenizer.pad_token_id, padding_side="left")
        mask = pad([torch.ones_like(prompt) for prompt in prompts], padding_value=0, padding_side="left")
        device = self.accelerator.device
        use_own_loop = can_sample(model.config, self.generation_config, device)
        with torch.no_grad(), self.accelerator.autocast(), self.without_compilation():
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=self.generation_config,
                custom_generate=sample if use_own_loop else None,
            )
        return [until_end(completion, self.eos_token_ids) for completion in output[:, ids.shape[1] :].tolist()]

    def _complete_by_transformers(self, model: nn.Module, prompt_ids: list[list[int]]) -> list[list[int]]:
        """Completions by transformers' continuous batching; TRL's own call casts the weights and calls `train()`.

        Its cache has the type of the weights, so it runs the class's `forward` and not accelerate's with autocast.
        """
        training, without_autocast = model.training, nullcontext()
        if "forward" in vars(model):
            without_autocast = replaced(model, forward=MethodType(type(model).forward, model))
        with torch.no_grad(), without_autocast, self.without_compilation():
            outputs = model.generate_batch(
                prompt_ids,
                generation_config=self.generation_config,
                continuous_batching_config=self.continuous_batching_config,
            )
        model.train(training)
        completions = [output.generated_tokens for output in outputs.values()]
        if len(completions) < len(prompt_ids) or not all(completions):
            raise RuntimeError("transformers' continuous batching failed, see its error above")
        return [until_end(completion, self.eos_token_ids) for completion in completions]

    @contextmanager
    def sampling_at(self, temperature: float) -> Iterator[None]:
        """Within the block, generate at this temperature, one completion per prompt; 0 is greedy."""
        if self.use_vllm:
            sampling = replaced(self.vllm_generation, temperature=temperature)
        else:
            greedy = {"do_sample": False, **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))}
            kwargs = self.generation_kwargs | ({"temperature": temperature} if temperature else greedy)
            config = GenerationConfig(**kwargs, disable_compile=True)
            sampling = replaced(self, generation_kwargs=kwargs, generation_config=config)
        with sampling, replaced(self, num_generations_eval=1):
            yield

    # Log-probabilities

    def logps_of(self, model: nn.Module, tensors: dict[str, Any], entropy: bool = False) -> tuple[Tensor, Any]:
        """(B, T) log-probabilities of the completions of a rollout, and (B, T) entropies if asked for."""
        training, args = self.model.training, self.args
        size = args.per_device_train_batch_size if training else args.per_device_eval_batch_size
        return self.logps_and_entropies(model, *joined(tensors), tensors["completion_ids"].shape[1], size, entropy)

    def token_mean(self, values: Tensor, mask: Tensor, inputs: dict[str, Any]) -> Tensor:
        """This minibatch's part of the mean over all tokens of an optimizer step: the parts add up to that mean."""
        share = inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes
        if self.model.training:
            share = share * self.current_gradient_accumulation_steps / self.args.steps_per_generation
        return (values * mask).sum() / share

    # Several processes, and figures

    def record(self, **figures: float) -> None:
        """Add figures to the next log. Several values of one name are averaged; NaN is left out."""
        for name, value in figures.items():
            if not math.isnan(value := float(value)):
                self.current_metrics[name].append(value)

    def record_means(self, mask: Tensor, **values: Tensor) -> dict[str, float]:
        """Record means of (B, T) values over the mask of all processes, and return them; NaN for an empty mask."""
        sums = torch.stack([(value * mask).sum() for value in values.values()] + [mask.sum()])
        *sums, count = self.sum_over_processes(sums.double()).tolist()
        means = {name: part / count if count else math.nan for name, part in zip(values, sums, strict=True)}
        self.record(**means)
        return means

    @property
    def current_metrics(self) -> dict[str, list[float]]:
        """Figures of the next log, of training or of evaluation."""
        return self.metrics_to_log["train" if self.model.training else "eval"]

    def sum_over_processes(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, "sum")

    def gather_objects(self, values: list) -> list:
        """Python values of all processes, in the order of their ranks."""
        return gather_object(values) if self.accelerator.num_processes > 1 else values

    def own_part(self, values: Any, count: int) -> Any:
        """This process's `count` of the values of all processes."""
        first = self.accelerator.process_index * count
        return values[first : first + count]

    def base_policy(self) -> nn.Module:
        """The policy without wrappers and without PEFT's model around it."""
        return base_model(self.accelerator.unwrap_model(self.model))


def _prompt_key(row: dict) -> str:
    return json.dumps([row["prompt"], row.get("tools"), row.get(TEMPLATE_KWARGS)], default=repr)
