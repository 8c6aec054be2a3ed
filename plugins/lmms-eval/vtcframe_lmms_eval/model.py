"""The model of lmms-eval: it answers conversations with fewer visual tokens."""

import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.distributed as processes
from accelerate import Accelerator
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.models.model_utils.gen_metrics import log_metrics
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.utils.logging import disable_progress_bar

from vtcframe.adapters.base import adapter_for
from vtcframe.assets import bundled
from vtcframe.errors import UsageError
from vtcframe.inference.checkpoint import device_for
from vtcframe.inference.checks import check_options
from vtcframe.inference.session import Session
from vtcframe_lmms_eval.chat import Chat, chat_inputs
from vtcframe_lmms_eval.settings import Settings

DEFAULTS = {"max_new_tokens": 1024}  # default options of generate, overridden by tasks
# options of generate that tasks may set; others (such as image_aspect_ratio) are for other models
SERVED = {"max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams"}
SERVED |= {"repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping"}
PARAGRAPH = "\n\n"  # the stop that lmms-eval adds to every task without stops; its own models ignore it
DEAD = getattr(torch, "AcceleratorError", ())  # (torch >= 2.8) the device is unusable after this error
SIDE = 448  # pixels along an edge of the test picture: it has more tokens than most budgets


@dataclass(frozen=True)
class Question:
    """The question about a document, and the options with which the answer is generated."""

    id: str
    messages: Callable[..., Any]  # returns the messages; it decodes pictures, so it is called as late as possible
    options: Mapping[str, Any]


class VtcFrame(lmms):
    """A checkpoint under a pruner, or untouched; see `Settings` for model_args.

    Each process runs a separate model and answers the questions that lmms-eval assigns to it.
    """

    is_simple = False

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        self.settings = Settings.of(model_args)
        self.accelerator = Accelerator()
        if _is_distributed():  # not from the accelerator, which takes torchrun on CPUs for one process
            self._rank, self._world_size = processes.get_rank(), processes.get_world_size()
        self._device = _device(self.settings.device, self.accelerator.device, self._world_size)
        self.sums: dict[str, float] = defaultdict(float)  # statistics of the questions of this process
        self.warned: set[str] = set()
        disable_progress_bar()  # progress bars of loading weights
        model, self.processor = self.settings.backbone.load()
        self._model: Any = model.to(self._device).eval()
        self.plan = self.settings.plan
        self.vocabulary = self.settings.backbone.question_vocabulary()
        self._check()

    @classmethod
    def create_from_arg_string(cls, arg_string: Any, additional_config: Any = None) -> "VtcFrame":
        """Create the model from model_args, which override --device and --batch_size of lmms-eval.

        `arg_string` is text or, in a file of --config, a mapping.
        """
        model_args = arg_string if isinstance(arg_string, Mapping) else simple_parse_args_string(arg_string)
        defaults = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**defaults, **model_args})

    def __repr__(self) -> str:
        return f"VtcFrame({self.settings})"  # the cache of lmms-eval identifies a model object by this

    @property
    def batch_size(self) -> int:
        """Number of questions that are answered together."""
        return self.settings.batch_size

    @property
    def device(self) -> torch.device:
        """The device of the model of this process."""
        return self._device

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """Return a GenerationResult for each request, in order. A failed one is "", and the log has the reason."""
        answers = iter(self._answer_all([self._question(request) for request in requests if not _padding(request)]))
        return [GenerationResult("") if _padding(request) else next(answers) for request in requests]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Return the answers of each request, one for each round; tasks derive the next question from them."""
        starts = range(0, len(requests), self.batch_size)
        return [
            answers for start in starts for answers in self._answer_rounds(requests[start : start + self.batch_size])
        ]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Raise NotImplementedError: chat models of lmms-eval only generate."""
        raise NotImplementedError(
            "vtcframe does not score answers, because chat models of lmms-eval only generate: use a task with "
            "`output_type: generate_until`, such as seedbench in place of seedbench_ppl"
        )

    def clean(self) -> None:
        """Log statistics of all processes and release the model; lmms-eval calls this after the last answer."""
        sums: dict[str, float] = defaultdict(float)
        for of_process in _gather(dict(self.sums)):
            _add(sums, of_process)
        if self.rank == 0:
            _log_statistics(sums, self.plan)
        del self.session
        super().clean()

    def _check(self) -> None:
        """Answer a test question about a picture; UsageError if that fails, before the first question of a task."""
        scene = Image.open(f"{bundled('vtcframe:questions')}/images/scene-000.png").resize((SIDE, SIDE))
        content = [{"type": "image", "url": scene}, {"type": "text", "text": "what shape is purple ?"}]
        question = Question("the first picture", lambda: [{"role": "user", "content": content}], {"max_new_tokens": 1})
        try:
            self.session = Session(adapter_for(self._model, self.processor), self.plan)
            self._answer_batch([question])
        except Exception as error:  # an error of processor, model or component
            under = "" if self.plan is None else f" under {self.plan}"
            raise UsageError(
                f"{self.settings.pretrained} cannot answer a test question{under}: {_reason(error)}"
            ) from error
        self.sums.clear()

    def _question(self, request: Instance) -> Question:
        _, doc_to_messages, options, doc, task, split = request.arguments

        def messages(**turn: Any) -> Any:
            return doc_to_messages(self.task_dict[task][split][doc], **turn)

        return Question(f"{task} {split} {doc}", messages, options)

    def _answer_rounds(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Return the answers of each request, one for each round."""
        first = [self._question(request) for request in requests]
        answers: list[list[str]] = [[] for _ in requests]
        states: list[Any] = [None] * len(requests)  # what the task passes from a round to the next
        current = {n: question for n, question in enumerate(first) if not _padding(requests[n])}
        while current:
            for n, answer in zip(list(current), self._answer_all(list(current.values())), strict=True):
                answers[n].append(answer.text)
                round_result = first[n].messages(
                    round_idx=len(answers[n]), previous_output=list(answers[n]), previous_round_info=states[n]
                )
                if not isinstance(round_result, tuple):  # the task has a single round
                    del current[n]
                    continue
                messages, is_last, previous_answers, states[n] = round_result
                answers[n] = answers[n] if previous_answers is None else list(previous_answers)
                if is_last:
                    del current[n]
                else:
                    current[n] = replace(first[n], messages=lambda messages=messages: messages)
        return answers

    def _answer_all(self, questions: Sequence[Question]) -> list[GenerationResult]:
        """Answer in batches of questions with equal options of generate."""
        by_options = defaultdict(list)
        for n, question in enumerate(questions):
            by_options[json.dumps(question.options, sort_keys=True, default=str)].append(n)
        answers: dict[int, GenerationResult] = {}
        hidden = self.rank != 0 or len(questions) <= self.batch_size  # no progress bar for a single batch
        with tqdm(total=len(questions), disable=hidden, desc="Model Responding") as bar:
            for indices in by_options.values():
                for start in range(0, len(indices), self.batch_size):
                    batch = indices[start : start + self.batch_size]
                    answers.update(zip(batch, self._answer_or_fail([questions[n] for n in batch]), strict=True))
                    bar.update(len(batch))
        return [answers[n] for n in range(len(questions))]

    def _answer_or_fail(self, questions: Sequence[Question]) -> list[GenerationResult]:
        """Answer a batch; if that fails, one by one, so that a failing question does not affect others."""
        try:
            return self._answer_batch(questions)
        except DEAD:
            raise
        except Exception as error:  # any error: lmms-eval would lose the answers so far
            if len(questions) > 1:
                return [answer for question in questions for answer in self._answer_or_fail([question])]
            logger.error(f"vtcframe: {questions[0].id} has no answer. {_reason(error)}")
            self.sums["failed"] += 1
            return [GenerationResult("")]  # scored, but not cached

    def _answer_batch(self, questions: Sequence[Question]) -> list[GenerationResult]:
        """Answer a batch: questions with pictures together, and questions without pictures together."""
        settings = self.settings
        config = self._config(questions[0].options)
        chats = [
            Chat.of(
                ChatMessages(messages=question.messages()).messages, settings.max_num_frames, settings.system_prompt
            )
            for question in questions
        ]
        for chat in chats:
            if self.vocabulary and (unknown := self.vocabulary.describe_unknown_words(chat.question)):
                self._warn("vocabulary", f"{unknown}. Its answers to such questions are meaningless")
        answers: dict[int, GenerationResult] = {}
        sums: dict[str, float] = defaultdict(float)
        for visual in (True, False):
            indices = [n for n, chat in enumerate(chats) if chat.visual is visual]
            if indices:
                ids = [questions[n].id for n in indices]
                results = self._generate([chats[n] for n in indices], ids, config, sums)
                answers.update(zip(indices, results, strict=True))
        _add(self.sums, sums)  # only now: a batch that fails is repeated
        stops = questions[0].options.get("until") or []
        return [replace(answers[n], text=_cut(answers[n].text, stops)) for n in range(len(questions))]

    @torch.no_grad()
    def _generate(
        self, chats: Sequence[Chat], ids: Sequence[str], config: GenerationConfig, sums: dict[str, float]
    ) -> list[GenerationResult]:
        """Answer conversations that all have pictures, or all have none (untouched). Add statistics to `sums`."""
        start = time.perf_counter()
        inputs = dict(chat_inputs(self.processor, chats).to(self._device, self._model.dtype))
        lengths: list[int] = []

        def generate(arguments: dict[str, Any]) -> Tensor:
            lengths.extend(arguments["attention_mask"].sum(1).tolist())
            output: Tensor = self._model.generate(**arguments, generation_config=config)
            return output[:, arguments["input_ids"].shape[1] :]

        outcome = self.session.run(inputs, generate, ids=ids, questions=[chat.question for chat in chats])
        generated = _lengths(outcome.output, config.eos_token_id)
        texts = self.processor.batch_decode(outcome.output, skip_special_tokens=True)
        sums["seconds"] += time.perf_counter() - start
        sums["generated"] += sum(generated)
        if outcome.layout is None:
            sums["without pictures"] += len(chats)
        else:
            sums["with pictures"] += len(chats)
            sums["before"] += outcome.tokens_before.sum().item()
            sums["after"] += outcome.tokens_after.sum().item()
            sums["layer"] += outcome.mean_tokens_per_layer.sum().item()
        counts = [TokenCounts(input_tokens=i, output_tokens=o) for i, o in zip(lengths, generated, strict=True)]
        return [GenerationResult(text.strip(), count) for text, count in zip(texts, counts, strict=True)]

    def _config(self, options: Mapping[str, Any]) -> GenerationConfig:
        """Return the generation config for the options of a task: greedy unless temperature or do_sample is set."""
        for name in options.keys() - SERVED - {"until"}:
            self._warn(name, f"the generation option {name} of the task is ignored: it is none of {sorted(SERVED)}")
        chosen = {k: v for k, v in {**DEFAULTS, **options}.items() if k in SERVED and v is not None}
        temperature = chosen.get("temperature")
        chosen["do_sample"] = bool(chosen.get("do_sample", temperature)) and temperature != 0
        if not chosen["do_sample"]:
            chosen |= dict.fromkeys(("temperature", "top_p", "top_k"))
        config = copy.deepcopy(self._model.generation_config)
        config.update(**chosen)
        if self.plan is not None and self.plan.llm:
            check_options({}, config)
        return config

    def _warn(self, topic: str, text: str) -> None:
        """Log a warning once for each topic, on the first process."""
        if topic not in self.warned and self.rank == 0:
            logger.warning(f"vtcframe: {text}")
        self.warned.add(topic)


def _add(sums: dict[str, float], values: Mapping[str, float]) -> None:
    for name, value in values.items():
        sums[name] += value


def _padding(request: Instance) -> bool:
    """Whether a request only pads a process to as many requests as the others have."""
    return bool(request.metadata.get("__padding_only__"))


def _is_distributed() -> bool:
    return processes.is_available() and processes.is_initialized()


def _gather(value: Any) -> list[Any]:
    """Return the value of each process."""
    if not _is_distributed():
        return [value]
    values = [None] * processes.get_world_size()
    processes.all_gather_object(values, value)
    return values


def _device(name: str | None, default: torch.device, count: int) -> torch.device:
    """Return the device of the model of this process, one of `count`. UsageError if there is no such device."""
    if name is None:
        return default
    device = device_for(name)
    if count == 1:
        return device
    if device.type != default.type:
        raise UsageError(
            f"{count} processes run on {default.type} here, not on {name}: leave device out, each process has one"
        )
    return default


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _cut(text: str, stops: str | Sequence[str]) -> str:
    """Return the text before the first of the stops."""
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop and stop != PARAGRAPH:
            text = text.partition(stop)[0]
    return text.strip()


def _lengths(new: Tensor, ends: int | list[int] | None) -> list[int]:
    """[P, L] generated ids -> the number of ids of each row up to its end token, inclusive."""
    ended = torch.isin(new, torch.tensor([] if ends is None else ends, device=new.device, dtype=new.dtype))
    return torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1]).tolist()


def _log_statistics(sums: Mapping[str, float], plan: Any) -> None:
    """Log statistics, and add them to the results of lmms-eval under "throughput"."""
    visual, text, failed = (int(sums.get(name, 0)) for name in ("with pictures", "without pictures", "failed"))
    if not visual + text + failed:
        logger.info("vtcframe: no question was answered, the response cache had every answer")
        return
    means = {}
    summary = f"vtcframe under {plan or 'no pruner'}:"
    if visual:
        before, after, layer = (sums[name] / visual for name in ("before", "after", "layer"))
        means = {"visual_tokens_before": before, "visual_tokens": after, "layer_tokens": layer}
        summary += f" {visual} questions with pictures, {before:.1f} visual tokens each before and {after:.1f} after"
        summary += f" ({layer:.1f} in a layer, on average);"
    logger.info(f"{summary} {text} questions without pictures, {failed} without an answer")
    seconds, generated = sums.get("seconds", 0.0), int(sums.get("generated", 0))
    speed = generated / seconds if seconds else 0.0
    log_metrics(seconds, generated, speed, {**means, "failed": failed / (visual + text + failed)})
