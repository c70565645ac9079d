"""Registry of tasks: their schemas, as data, and the modules that implement them."""

import difflib
import importlib
from typing import Any

from scoring.errors import LoadError
from scoring.schema import requests as s
from scoring.schema import retrieval, speech
from scoring.schema.requests import TaskSchema

_LABEL = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
    "required": ["label", "score"],
}

_SPAN = {"start": {"type": "integer"}, "end": {"type": "integer"}}
_ANSWER = {
    "type": "object",
    "properties": {"score": {"type": "number"}, **_SPAN, "answer": {"type": "string"}},
    "required": ["score", "start", "end", "answer"],
}
_ENTITY = {
    "type": "object",
    "properties": {
        "entity": {"type": "string", "description": "With aggregation_strategy none."},
        "entity_group": {"type": "string", "description": "With any other aggregation_strategy."},
        "score": {"type": "number"},
        "index": {"type": "integer", "description": "Which token; with aggregation_strategy none."},
        "word": {"type": "string"},
        **_SPAN,
    },
    "required": ["score", "word", "start", "end"],
}
_FILLINGS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "score": {"type": "number"},
            "token": {"type": "integer"},
            "token_str": {"type": "string"},
            "sequence": {"type": "string"},
        },
        "required": ["score", "token", "token_str", "sequence"],
    },
}
_VECTOR = {"type": "array", "items": {"type": "number"}}
_ENCODED = {"type": "string", "description": "With encoding_format base64: float32, little-endian."}
_TOKEN_VECTORS = {
    "description": "With pooling none.",
    "type": "array",
    "items": {"type": "array", "items": _VECTOR},
    "maxItems": 1,
}
_SPARSE = {
    "description": "Of a model with sparse vectors: weights by token.",
    "type": "object",
    "additionalProperties": {"type": "number"},
}
_MULTI_VECTOR = {
    "description": "Of a model with a vector for each token.",
    "type": "array",
    "items": _VECTOR,
}

_RANKED = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "index": {"type": "integer", "description": "Which of the texts; they are answered the best first."},
            "score": {"type": "number"},
            "text": {"type": "string", "description": "With return_text."},
            "truncated": {"type": "boolean", "description": "true where the text or its query was cut."},
        },
        "required": ["index", "score"],
    },
}

_SPEECH = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "chunks": {
            "type": "array",
            "description": "With return_timestamps.",
            "items": {
                "type": "object",
                "properties": {
                    "timestamp": {"type": "array", "items": {"type": "number"}, "description": "Seconds, from and to."},
                    "text": {"type": "string"},
                },
                "required": ["timestamp", "text"],
            },
        },
        "language": {"type": "string", "description": "Its code; with return_segments, as the rest."},
        "duration": {"type": "number", "description": "Seconds of sound."},
        "segments": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "id": {"type": "integer"},
                    "start": {"type": "number"},
                    "end": {"type": "number"},
                    "tokens": {"type": "array", "items": {"type": "integer"}},
                    "text": {"type": "string"},
                    "temperature": {"type": "number"},
                },
                "required": ["id", "start", "end", "tokens", "text", "temperature"],
            },
        },
    },
    "required": ["text"],
}

_IMAGES = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {
            "prompt": {"type": "string"},
            "generated_image": {"type": "string", "description": "A PNG file in base64."},
            "nsfw_content_detected": {
                "anyOf": [{"type": "boolean"}, {"type": "null"}],
                "description": "What the model's safety checker says; a marked image is sent black. null: it has none.",
            },
            "seed": {"type": "integer", "description": "Draws this image again; left out in Azure ML's form."},
        },
        "required": ["prompt", "generated_image", "nsfw_content_detected"],
    },
}


def _text_list(key: str) -> dict[str, Any]:
    return {
        "type": "array",
        "items": {"type": "object", "properties": {key: {"type": "string"}}, "required": [key]},
    }


_TABLE = (
    TaskSchema(
        name="text-generation",
        summary="Continues a text.",
        parameters=s.TextGenerationParameters,
        input=s.TextOrTokens,
        tokens=True,
        sample={"inputs": "The capital of France is", "parameters": {"max_new_tokens": 16}},
        response=_text_list("generated_text"),
        generative=True,
    ),
    TaskSchema(
        name="conversational",
        summary="Answers the last message of a conversation, through the tokenizer's chat template.",
        parameters=s.ConversationalParameters,
        input=s.Conversation,
        sample={
            "inputs": [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}],
            "parameters": {"max_new_tokens": 32},
        },
        response={
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "generated_text": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
                    "reasoning_content": {"type": "string", "description": "What a reasoning model thought first."},
                    "tool_calls": {"type": "array", "items": {"type": "object"}, "description": "OpenAI's form."},
                },
                "required": ["generated_text"],
            },
        },
        generative=True,
    ),
    TaskSchema(
        name="question-answering",
        summary="Finds the span of a context that answers a question.",
        parameters=s.QuestionAnsweringParameters,
        input=s.QuestionContext,
        sample={"inputs": {"question": "What is my name?", "context": "My name is John and I live in Seattle."}},
        response={"anyOf": [_ANSWER, {"type": "array", "items": _ANSWER, "description": "With top_k above 1."}]},
    ),
    TaskSchema(
        name="text-classification",
        summary="Gives a text, or a pair of texts, a label.",
        parameters=s.TextClassificationParameters,
        input=s.Text | s.TextPair,
        sample={"inputs": "Today was an amazing day!"},
        response={"type": "array", "items": _LABEL},
    ),
    TaskSchema(
        name="token-classification",
        summary="Finds the named entities of a text.",
        parameters=s.TokenClassificationParameters,
        input=s.Text,
        sample={"inputs": "My name is John and I live in Seattle."},
        response={"type": "array", "items": _ENTITY},
    ),
    TaskSchema(
        name="fill-mask",
        summary="Fills the masks of a text.",
        parameters=s.FillMaskParameters,
        input=s.Text,
        # [MASK] is accepted whatever the tokenizer calls its mask.
        sample={"inputs": "Paris is the [MASK] of France."},
        response={
            "anyOf": [_FILLINGS, {"type": "array", "items": _FILLINGS, "description": "With several masks in a text."}]
        },
    ),
    TaskSchema(
        name="feature-extraction",
        summary="Turns a text into one vector per token.",
        parameters=s.EmbeddingParameters,
        input=s.TextOrTokens,
        embeds=True,
        tokens=True,
        sample={"inputs": "A man is eating food."},
        response={"anyOf": [_TOKEN_VECTORS, _VECTOR, _ENCODED]},
    ),
    TaskSchema(
        name="sentence-embeddings",
        summary="Turns a text into one vector.",
        parameters=s.EmbeddingParameters,
        input=s.TextOrTokens,
        embeds=True,
        tokens=True,
        sample={"inputs": ["A man is eating food.", "A man is eating a piece of bread."]},
        response={"anyOf": [_VECTOR, _TOKEN_VECTORS, _ENCODED, _SPARSE, _MULTI_VECTOR]},
    ),
    TaskSchema(
        name="sentence-similarity",
        summary="Compares sentences with a source sentence.",
        parameters=retrieval.SimilarityParameters,
        input=retrieval.SourceSentences,
        embeds=True,
        sample={
            "inputs": {
                "source_sentence": "A man is eating food.",
                "sentences": ["A man is eating a piece of bread.", "The girl is carrying a baby."],
            }
        },
        response={"type": "array", "items": {"type": "number"}, "description": "Likeness, in the sentences' order."},
    ),
    TaskSchema(
        name="zero-shot-classification",
        summary="Gives a text labels that the request names.",
        parameters=retrieval.ZeroShotParameters,
        input=s.Text,
        sample={
            "inputs": "I have a problem with my phone that must be solved soon.",
            "parameters": {"candidate_labels": ["urgent", "not urgent", "phone", "tablet"]},
        },
        response={
            "type": "object",
            "properties": {
                "sequence": {"type": "string"},
                "labels": {"type": "array", "items": {"type": "string"}, "description": "The likeliest first."},
                "scores": {"type": "array", "items": {"type": "number"}},
            },
            "required": ["sequence", "labels", "scores"],
        },
    ),
    TaskSchema(
        name="text-ranking",
        summary="Scores how well texts answer a query.",
        parameters=retrieval.RankingParameters,
        input=retrieval.RankingInput,
        ranks=True,
        sample={
            "inputs": {
                "query": "How many people live in Berlin?",
                "texts": ["Berlin has 3.7 million inhabitants.", "Berlin is known for its museums."],
            }
        },
        response={"anyOf": [_RANKED, {"type": "number", "description": "Of one pair of texts."}]},
    ),
    TaskSchema(
        name="summarization",
        summary="Shortens a text.",
        parameters=s.SummarizationParameters,
        input=s.Text,
        sample={
            "inputs": "The tower is 324 metres tall, about the same height as an 81-storey building, and the tallest "
            "structure in Paris. Its base is square, measuring 125 metres on each side.",
            "parameters": {"max_new_tokens": 32},
        },
        response=_text_list("summary_text"),
        generative=True,
    ),
    TaskSchema(
        name="translation",
        summary="Translates a text.",
        parameters=s.TranslationParameters,
        input=s.Text,
        sample={"inputs": "The house is wonderful.", "parameters": {"max_new_tokens": 32}},
        response=_text_list("translation_text"),
        generative=True,
    ),
    TaskSchema(
        name="automatic-speech-recognition",
        summary="Writes down what is said.",
        parameters=speech.SpeechParameters,
        input=speech.Sound,
        hears=True,
        sample={"inputs": speech.tone(), "parameters": {"max_new_tokens": 8}},
        response=_SPEECH,
    ),
    TaskSchema(
        name="text-to-image",
        summary="Draws what a text describes.",
        parameters=s.TextToImageParameters,
        input=s.Text | s.PromptPair,
        sample={
            "inputs": "A photo of an astronaut riding a horse on Mars.",
            "parameters": {"num_inference_steps": 20, "seed": 7},
        },
        response=_IMAGES,
    ),
)

TASKS: dict[str, TaskSchema] = {task.name: task for task in _TABLE}

_IMPLEMENTATIONS = {
    "text-generation": "text_generation:TextGeneration",
    "conversational": "conversational:Conversational",
    "question-answering": "question_answering:QuestionAnswering",
    "text-classification": "text_classification:TextClassification",
    "token-classification": "token_classification:TokenClassification",
    "fill-mask": "fill_mask:FillMask",
    "feature-extraction": "embeddings:Embeddings",
    "sentence-embeddings": "embeddings:Embeddings",
    "sentence-similarity": "sentence_similarity:SentenceSimilarity",
    "zero-shot-classification": "zero_shot_classification:ZeroShotClassification",
    "text-ranking": "text_ranking:TextRanking",
    "summarization": "sequence_to_sequence:Summarization",
    "translation": "sequence_to_sequence:Translation",
    "automatic-speech-recognition": "automatic_speech_recognition:AutomaticSpeechRecognition",
    "text-to-image": "text_to_image:TextToImage",
}


def task_schema(name: str) -> TaskSchema:
    """The schema of a task; raises LoadError with the nearest name for one that does not exist."""
    try:
        return TASKS[name]
    except KeyError:
        near = difflib.get_close_matches(name, TASKS, 1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known tasks: {', '.join(TASKS)}."
        raise LoadError(f"Unknown task {name!r}.", hint) from None


def task_class(name: str) -> Any:
    """The class that implements a task; importing it imports torch."""
    task_schema(name)
    module, _, attribute = _IMPLEMENTATIONS[name].partition(":")
    return getattr(importlib.import_module(f"scoring.tasks.{module}"), attribute)


def schema(name: str) -> dict[str, Any]:
    """JSON schemas (draft 2020-12) of a task's request and answer, with its sample and a summary."""
    task = task_schema(name)
    one = task.adapter.json_schema(ref_template="#/$defs/{model}")
    parameters = task.parameters.model_json_schema(ref_template="#/$defs/{model}")
    definitions = {**one.pop("$defs", {}), **parameters.pop("$defs", {})}
    canonical = {
        "type": "object",
        "properties": {
            "inputs": {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]},
            "parameters": parameters,
            **({"stream": {"type": "boolean", "default": False}} if task.generative or task.hears else {}),
            **(parameters["properties"] if task.embeds else {}),
        },
        "required": ["inputs"],
    }
    azure = {
        "type": "object",
        "description": "Azure ML's form; answered in kind.",
        "properties": {"input_data": {}, "params": parameters, "parameters": parameters},
        "required": ["input_data"],
    }
    request: dict[str, Any] = {"anyOf": [canonical, azure]}
    if definitions:
        request["$defs"] = definitions
    answer = {"anyOf": [task.response, {"type": "array", "items": task.response}]}
    return {"request": request, "response": answer, "sample": task.sample, "summary": task.summary}
