"""The model card: TRL's draft, corrected for these models and completed with what the run knows."""

import re
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from huggingface_hub import ModelCard, ModelCardData
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import CONFIG_NAME

from ..data import DatasetMixer
from ..data.schemas import PHASES
from ..evaluation.measures import short_number
from ..files import atomic_path
from ..models import MiniMindForSequenceClassification
from ..models.stored import find_file
from .card_metadata import eval_results, hub_datasets
from .run_context import RunContext

_HYPERPARAMETERS = (
    *("learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps", "num_train_epochs"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing", "weight_decay"),
    *("adam_beta2", "max_grad_norm", "beta", "lmbda", "bf16", "seed", "reward_funcs", "reward_weights"),
)
_OF_SCRATCH = "apache-2.0"  # the license of the model code saved beside the weights
_UNKNOWN_LICENSE = "unknown"


def complete_card(trainer, run: RunContext, record: dict[str, Any], metrics: dict[str, dict]) -> None:
    """Rewrite the model card that TRL has drafted in the output folder.

    Metadata and quick start are replaced, since TRL's know neither local checkpoints nor adapters and always show a
    chat. Results, command, hyperparameters and mixture are added.

    Args:
        record: from `run_record`.
        metrics: held-out figures `before` and `after` training, if measured.
    """
    args, mixer, folder = run.args, run.mixer, Path(trainer.args.output_dir)
    card = ModelCard.load(folder / "README.md")
    model = trainer.accelerator.unwrap_model(trainer.model)
    _set_metadata(card.data, model, args, trainer.args)
    lock = mixer.lock()
    card.data.datasets = hub_datasets(lock) or None
    if results := eval_results(metrics, lock, card.data.pipeline_tag):
        card.data.model_name, card.data.eval_results = folder.name, results
    text = re.sub(
        r"This model is a fine-tuned version of .*?\nIt has been trained using",
        lambda _: f"{_start(model, args)}\nIt has been trained using",
        card.text.strip(),
        flags=re.DOTALL,
    )
    text = re.sub(
        r"## Quick start\n.*?(?=## Training procedure)",
        lambda _: _quick_start(trainer, model, args, mixer),
        text,
        flags=re.DOTALL,
    )
    if stage := getattr(trainer.args, "stage", None):  # SFTTrainer also pretrains
        text = text.replace("was trained with SFT.", f"was trained with TRL's SFTTrainer (stage: {stage}).")
    options = record["options"] | {"processes": record["processes"]}
    chosen = [(name, options[name]) for name in (*_HYPERPARAMETERS, "processes") if options.get(name) is not None]
    no_results = "Training has not ended yet." if trainer.is_in_train else _not_measured(mixer)
    parts = [
        text,
        "## Results on held-out data",
        _results(metrics) if "after" in metrics else no_results,
        *(["![curves](curves.png)"] if (folder / "curves.png").is_file() else []),
        "## How to repeat it",
        f"```bash\n{record['command']}\n```",
        "| hyperparameter | value |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in chosen),
        "## Training data",
        mixer.markdown(),
        *_dropped(record["rows"]),
    ]
    card.text = "\n\n".join(parts)
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text(str(card), encoding="utf-8")


# --- metadata ---------------------------------------------------------------------------------------------------------


def _set_metadata(data: ModelCardData, model, args, config) -> None:
    is_reward = _is_reward(model)
    data.pop("licence", None)  # TRL's placeholder
    parent = _card_of(args.from_weight) if args.from_weight else None
    data.license = _OF_SCRATCH if not args.from_weight else (parent and parent.license) or _UNKNOWN_LICENSE
    data.base_model = _base_model(args.from_weight, parent, config.push_to_hub)
    data.library_name = "peft" if is_peft_model(model) else "transformers"
    data.pipeline_tag = "text-classification" if is_reward else "text-generation"
    tags = {*(data.tags or []), "minimind"} | ({"lora"} if is_peft_model(model) else set())
    data.tags = sorted(tags)


def _base_model(start: str | None, parent: ModelCardData | None, is_published: bool) -> str | None:
    """The Hub model that this one derives from; else the local path, unless the card is published."""
    if not start or not Path(start).exists():
        return start
    further = parent.base_model if parent else None
    if isinstance(further, str) and not Path(further).exists():
        return further
    return None if is_published else start


def _card_of(name: str) -> ModelCardData | None:
    """The metadata of a checkpoint's card, on the Hub or from a local run; None if there is no readable card."""
    if Path(name).is_file():
        return None
    folders = [name]
    if Path(name).name.startswith(PREFIX_CHECKPOINT_DIR):
        folders.insert(0, str(Path(name).parent))  # a run's card lies beside its checkpoints
    for folder in folders:
        try:
            if found := find_file(folder, "README.md"):
                return ModelCard.load(found).data
        except (OSError, ValueError):  # the Hub is unreachable, or the file is not a card
            continue
    return None


# --- text -------------------------------------------------------------------------------------------------------------


def _start(model, args) -> str:
    kind = "This adapter (LoRA) belongs to" if is_peft_model(model) else "This model starts from"
    if not args.from_weight:
        return f"{kind} scratch (the preset {args.preset})."
    is_local = Path(args.from_weight).exists()
    link = f"`{args.from_weight}`" if is_local else f"[{args.from_weight}](https://huggingface.co/{args.from_weight})"
    return f"{kind} {link}."


def _quick_start(trainer, model, args, mixer: DatasetMixer) -> str:
    name = trainer.hub_model_id or _folder_of_weights(trainer)
    if _is_reward(model):
        said, use = "It gives a conversation a number, higher for the better answer.", _USE_OF_REWARD
    elif PHASES[mixer.mixture.metadata.phase][0] == "text":
        said, use = "It has read text, and was not trained to answer.", _USE_OF_TEXT
    else:
        said, use = "", _USE_OF_CHAT
    code = f'name = "{name}"\n{_TOKENIZER}{_loaded(model, args.from_weight)}\n{use}'
    return "\n\n".join(filter(None, ["## Quick start", said, f"```python\n{_imports(code)}\n\n{code}```"])) + "\n\n"


def _folder_of_weights(trainer) -> str:
    """The output folder; during training, the checkpoint about to be saved in it."""
    folder = trainer.args.output_dir
    return f"{folder}/{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}" if trainer.is_in_train else str(folder)


def _loaded(model, start: str | None) -> str:
    """The line that loads the model with its own code, so that it works without this package."""
    task = "SequenceClassification" if _is_reward(model) else "CausalLM"
    if not is_peft_model(model):
        return f"model = AutoModelFor{task}.from_pretrained(name, trust_remote_code=True)\n"
    base = Path(start)
    if base.exists() and not (base / CONFIG_NAME).is_file():  # a .pth or another adapter, which PEFT cannot load
        return "model = load_model(name)\n" if task == "CausalLM" else f"model = load_model(name, MiniMindFor{task})\n"
    labels = ", num_labels=1" if _is_reward(model) else ""
    return f"model = AutoPeftModelFor{task}.from_pretrained(name, trust_remote_code=True{labels})\n"


def _imports(code: str) -> str:
    modules = {
        "minimind_trl.models": (MiniMindForSequenceClassification.__name__, "load_model"),
        "peft": ("AutoPeftModelForCausalLM", "AutoPeftModelForSequenceClassification"),
        "transformers": ("AutoModelForCausalLM", "AutoModelForSequenceClassification", "AutoTokenizer"),
    }
    used = {module: [name for name in names if re.search(rf"\b{name}\b", code)] for module, names in modules.items()}
    return "\n".join(f"from {module} import {', '.join(names)}" for module, names in used.items() if names)


_TOKENIZER = "tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)\n"
_USE_OF_CHAT = """\
messages = [{"role": "user", "content": "What is the capital of France?"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=128)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
_USE_OF_TEXT = """\
ids = tokenizer("The capital of France is Paris.", return_tensors="pt")["input_ids"]
print(model(input_ids=ids, labels=ids).loss.item())  # nats per token
"""
_USE_OF_REWARD = """\
messages = [
    {"role": "user", "content": "What is the capital of France?"},
    {"role": "assistant", "content": "Paris."},
]
inputs = tokenizer.apply_chat_template(messages, return_dict=True, return_tensors="pt")
print(model(**inputs).logits.item())
"""


def _is_reward(model) -> bool:
    inner = model.get_base_model() if is_peft_model(model) else model
    return isinstance(inner, MiniMindForSequenceClassification)


def _dropped(rows: dict[str, Any] | None) -> list[str]:
    """A sentence on the rows that the trainer dropped, if any."""
    if not rows or not rows["dropped"]:
        return []
    told = "; ".join(
        f"{count:,} {split} rows ({reason})"
        for split, reasons in rows["dropped"].items()
        for reason, count in reasons.items()
    )
    trained = "" if rows["train_rows"] is None else f" {rows['train_rows']:,} train rows are left."
    return [f"Of these the trainer dropped {told}.{trained}"]


def _not_measured(mixer: DatasetMixer) -> str:
    held_out = mixer.mixture.validation is not None
    return f"Not measured ({'`--eval_interval 0`' if held_out else 'the mixture holds no rows out'})."


def _results(metrics: dict[str, dict]) -> str:
    timing = ("_runtime", "_per_second", "_preparation_time")
    names = [name for name in metrics["after"] if name.startswith("eval_") and not name.endswith(timing)]
    figures = [(name, metrics["before"].get(name, float("nan")), metrics["after"][name]) for name in names]
    rows = [
        f"| {name.removeprefix('eval_')} | {short_number(before)} | {short_number(after)} |"
        for name, before, after in figures
    ]
    return "| figure | before | after |\n|---|---|---|\n" + "\n".join(rows)
