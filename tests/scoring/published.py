"""Requests as their publishers wrote them.

From the model descriptions in Azure/azureml-assets (assets/models/system/*/description.md) and the samples in
Azure/azureml-examples (sdk/python and cli/foundation-models/system/inference). Long texts are shortened.
"""

from __future__ import annotations

from typing import Any, NamedTuple

TOWER = "The tower is 324 metres (1,063 ft) tall, about the same height as an 81-storey building."
DAYS = ["Today was an amazing day!", "It was an unfortunate series of events."]
MASKED = ["Paris is the [MASK] of France.", "Today is a [MASK] day!"]
JOHN = {"question": "What's my name?", "context": "My name is John and I live in Seattle"}
PARIS = [
    {"role": "user", "content": "I am going to Paris, what should I see?"},
    {"role": "assistant", "content": "Here are some attractions:\n\n1. The Eiffel Tower\n2. The Louvre Museum"},
    {"role": "user", "content": "What is so great about #1?"},
]
SAMPLED = {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "max_new_tokens": 20}
SEATTLE = ["My name is John and I live in Seattle", "Berlin is the capital of Germany."]


class Published(NamedTuple):
    """One payload, what it was published for, and the form of its answer."""

    source: str
    task: str
    family: str
    payload: dict[str, Any]
    kind: str
    count: int = 1


PUBLISHED = [
    # -- text-generation
    Published(
        "gpt2",
        "text-generation",
        "gpt2",
        {
            "input_data": ["I believe the meaning of life is"],
            "params": {
                "top_p": 1.0,
                "temperature": 0.8,
                "max_new_tokens": 40,
                "do_sample": True,
                "return_full_text": True,
            },
        },
        "texts",
    ),
    Published(
        "Llama-2-7b",
        "text-generation",
        "llama",
        {"input_data": {"input_string": ["I believe the meaning of life is"], "parameters": SAMPLED}},
        "frame",
    ),
    Published(
        "Mistral-7B-v0-1",
        "text-generation",
        "mistral",
        {
            "input_data": {
                "input_string": ["What is your favourite condiment?", "Do you have mayonnaise recipes?"],
                "parameters": {"max_new_tokens": 20, "do_sample": True, "return_full_text": False},
            }
        },
        "frame",
        2,
    ),
    Published(
        "tiiuae-falcon-7b: no parameters",
        "text-generation",
        "gpt_neox",
        {"input_data": {"input_string": ["Explain to me the difference between nuclear fission and fusion."]}},
        "frame",
    ),
    Published(
        "meta-llama-3-8b/sample_completions_score.json: temperature without do_sample",
        "text-generation",
        "llama",
        {
            "inputs": {"input_string": ["she liked to think being surrounded by adults was one reason"]},
            "parameters": {"top_p": 0.8, "temperature": 0.8, "max_new_tokens": 20, "return_full_text": False},
        },
        "frame",
    ),
    Published(
        "sample-inputs/text-generation.json",
        "text-generation",
        "gpt2",
        {"inputs": ["My name is Thomas and my main "]},
        "pipeline lists",
    ),
    # -- chat
    Published(
        "Llama-2-7b-chat",
        "conversational",
        "llama",
        {"input_data": {"input_string": PARIS, "parameters": SAMPLED}},
        "chat",
    ),
    Published(
        "Mistral-7B-Instruct-v0-1: return_full_text",
        "conversational",
        "mistral",
        {"input_data": {"input_string": PARIS, "parameters": SAMPLED | {"return_full_text": False}}},
        "chat",
    ),
    Published(
        "chat-completion/payload.json: max_length shorter than the prompt",
        "conversational",
        "qwen2",
        {
            "input_data": {
                "input_string": PARIS,
                "parameters": {
                    "max_length": 100,
                    "temperature": 0.8,
                    "top_p": 0.7,
                    "do_sample": True,
                    "max_new_tokens": 100,
                },
            }
        },
        "chat",
    ),
    Published(
        "meta-llama-3-8b-instruct/sample_chat_completions_score.json",
        "conversational",
        "qwen2",
        {
            "inputs": {
                "input_string": [
                    {"role": "system", "content": "You are a helpful assistant."},
                    {"role": "user", "content": "Who won the world series in 2020?"},
                ]
            },
            "parameters": {"top_p": 0.8, "temperature": 0.8, "max_new_tokens": 30},
        },
        "chat",
    ),
    # -- fill-mask
    Published("bert-base-cased", "fill-mask", "bert", {"input_data": MASKED}, "texts", 2),
    Published(
        "roberta-base",
        "fill-mask",
        "roberta",
        {"input_data": ["Paris is the <mask> of France.", "Today is a <mask> day!"]},
        "texts",
        2,
    ),
    Published("bert-base-uncased, older", "fill-mask", "bert", {"inputs": {"input_string": MASKED}}, "frame", 2),
    Published(
        "microsoft-deberta-base", "fill-mask", "deberta-v2", {"input_data": {"input_string": MASKED}}, "frame", 2
    ),
    # -- question-answering
    Published(
        "distilbert-base-cased-distilled-squad", "question-answering", "distilbert", {"input_data": JOHN}, "texts"
    ),
    Published(
        "squad-dataset/sample_score.json: columns",
        "question-answering",
        "distilbert",
        {"inputs": {name: [text] for name, text in JOHN.items()}},
        "texts",
    ),
    Published("sample-inputs/question-answering.json", "question-answering", "bert", {"inputs": [JOHN]}, "pipeline"),
    # -- text-classification
    Published(
        "distilbert-base-uncased-finetuned-sst-2-english",
        "text-classification",
        "distilbert",
        {"input_data": DAYS},
        "labels",
        2,
    ),
    Published(
        "Ashishkr-query_wellformedness_score",
        "text-classification",
        "roberta",
        {"input_data": {"input_string": DAYS}},
        "frame of labels",
        2,
    ),
    Published(
        "roberta-large-mnli", "text-classification", "roberta", {"inputs": {"input_string": DAYS}}, "frame of labels", 2
    ),
    Published(
        "glue-mnli-dataset/sample_score.json: special tokens in the text",
        "text-classification",
        "bert",
        {"inputs": {"input_string": ["[CLS] Children like shows. [SEP] They like the gardens. [SEP]"]}},
        "frame of labels",
    ),
    # -- token-classification
    Published(
        "Jean-Baptiste-camembert-ner",
        "token-classification",
        "xlm-roberta",
        {
            "input_data": {
                "input_string": ["Je m'appelle jean-baptiste et je vis à montréal", "george washington est allé"]
            }
        },
        "frame of tags",
        2,
    ),
    Published(
        "sample-inputs/token-classification.json",
        "token-classification",
        "bert",
        {"inputs": {"input_string": ["My name is Wolfgang and I live in Berlin.", "The head office is in Redmond."]}},
        "frame of tags",
        2,
    ),
    # -- summarization, translation
    Published("facebook-bart-large-cnn", "summarization", "bart", {"input_data": [TOWER]}, "texts"),
    Published(
        "t5-base, older",
        "summarization",
        "t5",
        {"input_data": {"input_string": [TOWER, "Paris is large."]}},
        "frame",
        2,
    ),
    Published(
        "sample-inputs/summarization.json", "summarization", "t5", {"inputs": {"input_string": [TOWER]}}, "frame"
    ),
    Published(
        "t5-small",
        "translation",
        "t5",
        {
            "input_data": [
                "translate English to French: Life is so beautiful, once you learn how to live with it",
                "translate English to German: Berlin is the capital of Germany",
            ]
        },
        "texts",
        2,
    ),
    Published(
        "t5-large, older",
        "translation",
        "t5",
        {"inputs": {"input_string": SEATTLE}, "parameters": {"task_type": "translation_en_to_fr"}},
        "frame",
        2,
    ),
    Published(
        "t5-base, older",
        "translation",
        "t5",
        {"input_data": {"input_string": SEATTLE}, "parameters": {"task_type": "translation_en_to_ro"}},
        "frame",
        2,
    ),
    Published(
        "runwayml-stable-diffusion-v1-5",
        "text-to-image",
        "stable-diffusion",
        {
            "input_data": {
                "columns": ["prompt"],
                "data": ["a photograph of an astronaut riding a horse", "lion holding hunted deer in grass fields"],
                "index": [0, 1],
                "parameters": {"num_inference_steps": 4},
            }
        },
        "images",
        2,
    ),
    Published("Helsinki-NLP-opus-mt-en-de", "translation", "marian", {"input_data": SEATTLE}, "texts", 2),
    Published("translation/sample_score.json", "translation", "marian", {"inputs": SEATTLE}, "pipeline lists", 2),
]
