"""The model that lmms-eval asks: it answers conversations with fewer visual tokens."""

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

DEFAULTS = {"max_new_tokens": 1024}  # where a task says nothing
# what tasks may say of generate; the rest (image_aspect_ratio, say) is meant for other models
SERVED = {"max_new_tokens", "min_new_tokens", "do_sample", "temperature", "top_p", "top_k", "num_beams"}
SERVED |= {"repetition_penalty", "no_repeat_ngram_size", "length_penalty", "early_stopping"}
PARAGRAPH = "\n\n"  # the stop that lmms-eval adds to every task without one; its own models pass over it
DEAD = getattr(torch, "AcceleratorError", ())  # (torch >= 2.8) behind it the device answers nothing any more
SIDE = 448  # pixels of the picture asked about at first: more tokens than most budgets


@dataclass(frozen=True)
class Question:
    """What is asked of a document, and how the answer is generated."""

    id: str
    said: Callable[..., Any]  # decodes pictures, so it is not called before they are needed
    options: Mapping[str, Any]


class VtcFrame(lmms):
    """A checkpoint under a pruner, or untouched; `Settings` has what model_args may say.

    Each process runs a model of its own, and answers the questions that lmms-eval deals out to it.
    """

    is_simple = False

    def __init__(self, **model_args: Any) -> None:
        super().__init__()
        self.settings = Settings.of(model_args)
        self.accelerator = Accelerator()
        if _several():  # not the accelerator's numbers: for it, torchrun on CPUs is one process
            self._rank, self._world_size = processes.get_rank(), processes.get_world_size()
        self._device = _device(self.settings.device, self.accelerator.device, self._world_size)
        self.sums: dict[str, float] = defaultdict(float)  # over what was asked in this process
        self.warned: set[str] = set()
        disable_progress_bar()  # of loading weights
        model, self.processor = self.settings.backbone.load()
        self._model: Any = model.to(self._device).eval()
        self.plan = self.settings.plan
        self.vocabulary = self.settings.backbone.question_vocabulary()
        self._try()

    @classmethod
    def create_from_arg_string(cls, arg_string: Any, additional_config: Any = None) -> "VtcFrame":
        """Make it of model_args, which win over lmms-eval's own --device and --batch_size.

        They are text or, in a file of --config, a mapping.
        """
        own = arg_string if isinstance(arg_string, Mapping) else simple_parse_args_string(arg_string)
        given = {name: value for name, value in (additional_config or {}).items() if value is not None}
        return cls(**{**given, **own})

    def __repr__(self) -> str:
        return f"VtcFrame({self.settings})"  # by which lmms-eval's cache knows a model that it was handed

    @property
    def batch_size(self) -> int:
        """Questions that are answered together."""
        return self.settings.batch_size

    @property
    def device(self) -> torch.device:
        """Where this process's model runs."""
        return self._device

    def generate_until(self, requests: list[Instance]) -> list[Any]:
        """Return a GenerationResult for each request, in their order. One that fails is "", and the log says why."""
        answers = iter(self._answers([self._question(request) for request in requests if not _padding(request)]))
        return [GenerationResult("") if _padding(request) else next(answers) for request in requests]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[Any]:
        """Return each request's answers, one a round. From those the task makes what is asked next, if anything."""
        starts = range(0, len(requests), self.batch_size)
        return [answers for start in starts for answers in self._rounds(requests[start : start + self.batch_size])]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """Not served: lmms-eval asks it of no model that reads conversations."""
        raise NotImplementedError(
            "vtcframe does not score given answers: lmms-eval has models that read conversations generate only. Use a "
            "task with `output_type: generate_until`, seedbench in place of seedbench_ppl"
        )

    def clean(self) -> None:
        """Tell what all processes read, and let go of the model; lmms-eval calls this behind the last answer."""
        sums: dict[str, float] = defaultdict(float)
        for one in _gathered(dict(self.sums)):
            _add(sums, one)
        if self.rank == 0:
            _tell(sums, self.plan)
        del self.session
        super().clean()

    def _try(self) -> None:
        """Ask about a picture, so that what can never work is told before the first question. UsageError if so."""
        scene = Image.open(f"{bundled('vtcframe:questions')}/images/scene-000.png").resize((SIDE, SIDE))
        content = [{"type": "image", "url": scene}, {"type": "text", "text": "what shape is purple ?"}]
        question = Question("the first picture", lambda: [{"role": "user", "content": content}], {"max_new_tokens": 1})
        try:
            self.session = Session(adapter_for(self._model, self.processor), self.plan)
            self._batch([question])
        except Exception as error:  # of processors, models and components alike
            under = "" if self.plan is None else f" under {self.plan}"
            raise UsageError(f"{self.settings.pretrained} cannot be asked{under}: {_reason(error)}") from error
        self.sums.clear()

    def _question(self, request: Instance) -> Question:
        _, doc_to_messages, options, doc, task, split = request.arguments

        def said(**turn: Any) -> Any:
            return doc_to_messages(self.task_dict[task][split][doc], **turn)

        return Question(f"{task} {split} {doc}", said, options)

    def _rounds(self, requests: Sequence[Instance]) -> list[list[str]]:
        """Return the answers of each request, one a round."""
        first = [self._question(request) for request in requests]
        answers: list[list[str]] = [[] for _ in requests]
        known: list[Any] = [None] * len(requests)  # what the task keeps from a round for the next
        asked = {n: question for n, question in enumerate(first) if not _padding(requests[n])}
        while asked:
            for n, answer in zip(list(asked), self._answers(list(asked.values())), strict=True):
                answers[n].append(answer.text)
                said = first[n].said(
                    round_idx=len(answers[n]), previous_output=list(answers[n]), previous_round_info=known[n]
                )
                if not isinstance(said, tuple):  # of a task that has one round
                    del asked[n]
                    continue
                messages, last, so_far, known[n] = said
                answers[n] = answers[n] if so_far is None else list(so_far)
                if last:
                    del asked[n]
                else:
                    asked[n] = replace(first[n], said=lambda messages=messages: messages)
        return answers

    def _answers(self, questions: Sequence[Question]) -> list[GenerationResult]:
        """Answer in batches of questions that are generated alike."""
        alike = defaultdict(list)
        for n, question in enumerate(questions):
            alike[json.dumps(question.options, sort_keys=True, default=str)].append(n)
        answers: dict[int, GenerationResult] = {}
        hidden = self.rank != 0 or len(questions) <= self.batch_size  # no bar for every round
        with tqdm(total=len(questions), disable=hidden, desc="Model Responding") as bar:
            for same in alike.values():
                for start in range(0, len(same), self.batch_size):
                    batch = same[start : start + self.batch_size]
                    answers.update(zip(batch, self._surely([questions[n] for n in batch]), strict=True))
                    bar.update(len(batch))
        return [answers[n] for n in range(len(questions))]

    def _surely(self, questions: Sequence[Question]) -> list[GenerationResult]:
        """Answer a batch; one by one where that fails, so that a question costs no other its answer."""
        try:
            return self._batch(questions)
        except DEAD:
            raise
        except Exception as error:  # whatever it is: lmms-eval keeps no answer before it has all
            if len(questions) > 1:
                return [answer for question in questions for answer in self._surely([question])]
            logger.error(f"vtcframe: {questions[0].id} has no answer. {_reason(error)}")
            self.sums["failed"] += 1
            return [GenerationResult("")]  # which is scored, but not cached

    def _batch(self, questions: Sequence[Question]) -> list[GenerationResult]:
        """Answer questions with pictures together, and those without."""
        settings, config = self.settings, self._config(questions[0].options)
        chats = [
            Chat.of(ChatMessages(messages=question.said()).messages, settings.max_num_frames, settings.system_prompt)
            for question in questions
        ]
        for chat in chats:
            if self.vocabulary and (unknown := self.vocabulary.describe_unknown_words(chat.question)):
                self._warn("vocabulary", f"{unknown}. Its answers to such questions mean nothing")
        answers: dict[int, GenerationResult] = {}
        sums: dict[str, float] = defaultdict(float)
        for visual in (True, False):
            of = [n for n, chat in enumerate(chats) if chat.visual is visual]
            if of:
                made = self._generated([chats[n] for n in of], [questions[n].id for n in of], config, sums)
                answers.update(zip(of, made, strict=True))
        _add(self.sums, sums)  # not before all are answered: a batch that fails is asked again
        stops = questions[0].options.get("until") or []
        return [replace(answers[n], text=_cut(answers[n].text, stops)) for n in range(len(questions))]

    @torch.no_grad()
    def _generated(
        self, chats: Sequence[Chat], ids: Sequence[str], config: GenerationConfig, sums: dict[str, float]
    ) -> list[GenerationResult]:
        """Answer conversations that all show something, or all do not: these untouched. Add to `sums`."""
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
        """Return what a task's options mean to generate: greedy unless a temperature or do_sample says otherwise."""
        for name in options.keys() - SERVED - {"until"}:
            self._warn(name, f"the task's generation option {name} is passed over: it is none of {sorted(SERVED)}")
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

    def _warn(self, about: str, text: str) -> None:
        """Say something once."""
        if about not in self.warned and self.rank == 0:
            logger.warning(f"vtcframe: {text}")
        self.warned.add(about)


def _add(sums: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        sums[name] += value


def _padding(request: Instance) -> bool:
    """Whether a request only fills a process up to as many as the others have."""
    return bool(request.metadata.get("__padding_only__"))


def _several() -> bool:
    return processes.is_available() and processes.is_initialized()


def _gathered(own: Any) -> list[Any]:
    """Return what each process has."""
    if not _several():
        return [own]
    every = [None] * processes.get_world_size()
    processes.all_gather_object(every, own)
    return every


def _device(name: str | None, own: torch.device, count: int) -> torch.device:
    """Return where this one of `count` processes runs its model. UsageError where there is no such place."""
    if name is None:
        return own
    device = device_for(name)
    if count == 1:
        return device
    if device.type != own.type:
        raise UsageError(f"{count} processes run on {own.type} here, not on {name}: leave device out, each has its own")
    return own


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"


def _cut(text: str, stops: str | Sequence[str]) -> str:
    """Return what stands before the first of the stops."""
    for stop in [stops] if isinstance(stops, str) else stops:
        if stop and stop != PARAGRAPH:
            text = text.partition(stop)[0]
    return text.strip()


def _lengths(new: Tensor, ends: int | list[int] | None) -> list[int]:
    """[P, L] generated ids -> how many each row has up to its end token, that included."""
    ended = torch.isin(new, torch.tensor([] if ends is None else ends, device=new.device, dtype=new.dtype))
    return torch.where(ended.any(1), ended.int().argmax(1) + 1, new.shape[1]).tolist()


def _tell(sums: Mapping[str, float], plan: Any) -> None:
    """Log what was read, and leave it to lmms-eval's results, under "throughput"."""
    shown, bare, failed = (int(sums.get(name, 0)) for name in ("with pictures", "without pictures", "failed"))
    if not shown + bare + failed:
        logger.info("vtcframe: nothing was asked, the response cache had every answer")
        return
    means, told = {}, f"vtcframe under {plan or 'no pruner'}:"
    if shown:
        before, after, layer = (sums[name] / shown for name in ("before", "after", "layer"))
        means = {"visual_tokens_before": before, "visual_tokens": after, "layer_tokens": layer}
        told += f" {shown} questions with pictures, {before:.1f} visual tokens each before and {after:.1f} after"
        told += f" ({layer:.1f} read by a layer, in the mean);"
    logger.info(f"{told} {bare} questions without pictures, {failed} without an answer")
    seconds, generated = sums.get("seconds", 0.0), int(sums.get("generated", 0))
    speed = generated / seconds if seconds else 0.0
    log_metrics(seconds, generated, speed, {**means, "failed": failed / (shown + bare + failed)})
