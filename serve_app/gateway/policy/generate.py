"""The tables of the routes that generate from OpenAI's kind of request. Start at table.py."""

from serve_app.gateway.policy import chat, responses
from serve_app.gateway.policy.entries import MODEL, RoutePolicy, internal
from serve_app.gateway.policy.fields import Either, Fields, Json
from serve_app.gateway.policy.lists import ListOf, MapOf
from serve_app.gateway.policy.prompts import Prompts
from serve_app.gateway.policy.rules import Bool, Int, Number, OneOf, Text
from serve_app.gateway.policy.settings import PolicyConfig
from serve_app.gateway.policy.verdicts import Forced, Ignored, Needs, Refused


def sampling(c: PolicyConfig) -> Fields:
    """How the next token is chosen, on the routes of OpenAI's kind."""
    return {
        "temperature": Number(0, 2),
        "top_p": Number(0, 1, above=True),
        "top_k": Int(-1, 100_000),
        "min_p": Number(0, 1),
        "presence_penalty": Number(-2, 2),
        "frequency_penalty": Number(-2, 2),
        "repetition_penalty": Number(0, 2, above=True),
        "logit_bias": MapOf(Number(-100, 100), c.logit_bias, Text(pattern="[0-9]{1,7}")),
        "seed": Int(),
        "stop": Either(Text(c.stop_chars, 1), ListOf(Text(c.stop_chars, 1), c.stop)),
        "stop_token_ids": Refused("use stop", off=([],)),
        "ignore_eos": Needs("benchmark", Bool(), off=(False,)),
        "skip_special_tokens": Bool(),
        "include_stop_str_in_output": Bool(),
    }


def generation(c: PolicyConfig) -> Fields:
    """What chat and plain completions share."""
    return {
        **sampling(c),
        "model": MODEL,
        "n": Int(1, c.choices),
        "stream": Bool(),
        "stream_options": chat.stream_options(),
        "user": Ignored(Text(c.user_chars)),
        "response_format": chat.response_format(c),
        "structured_outputs": chat.structured_outputs(c),
        "thinking_token_budget": Int(-1, c.tokens),
        "min_tokens": Needs("benchmark", Int(0, c.tokens), off=(0,)),
        "return_token_ids": Needs("benchmark", Bool(), off=(False,)),
        "return_tokens_as_token_ids": Needs("benchmark", Bool(), off=(False,)),
        "spaces_between_special_tokens": Bool(),
        "best_of": Refused("use n", off=(1,)),
        "echo": Refused("the prompt is not scored", off=(False,)),
        "prompt_logprobs": Refused("the prompt is not scored"),
        "logprob_token_ids": Refused("use logprobs", off=([],)),
        "use_beam_search": Refused("it multiplies the work of a request", off=(False,)),
        "length_penalty": Refused("it belongs to beam search", off=(1, 1.0)),
        "allowed_token_ids": Refused("use logit_bias"),
        "bad_words": Refused("use logit_bias", off=([],)),
        "logits_processors": Refused("code is not taken"),
        "repetition_detection": Refused("it is not kept when a request moves between replicas"),
        "truncate_prompt_tokens": Refused("it would cut the instructions off the prompt"),
        "truncation_side": Refused("prompts are not cut"),
        "add_special_tokens": Refused("the model's own template is used"),
        **{f"guided_{name}": Refused("use response_format") for name in ("json", "regex", "choice", "grammar")},
        **internal("cache_salt", "priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params"),
        **internal("vllm_xargs", "mm_payload", "return_mm_kwargs", "return_token_offsets", "watermarking"),
        **internal("routed_experts_prompt_start", "stream_interval"),
    }


def openai_account(c: PolicyConfig) -> Fields:
    """What OpenAI's clients send about the account."""
    return {
        "metadata": Ignored(chat.metadata()),
        "service_tier": Ignored(OneOf("auto", "default", "flex", "scale", "priority")),
        "safety_identifier": Ignored(Text(128)),
        "prompt_cache_key": Ignored(Text(128)),
        "prompt_cache_retention": Ignored(Text(32)),
        "prompt_cache_options": Ignored(Json()),
        "moderation": Refused("it is not supported"),
    }


def chat_completions(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **generation(c),
        **openai_account(c),
        "messages": chat.messages(c),
        "max_completion_tokens": Int(1),
        "max_tokens": Int(1),
        "logprobs": Bool(),
        "top_logprobs": Int(0, c.logprobs),
        "tools": chat.tools(c),
        "tool_choice": chat.tool_choice(),
        "parallel_tool_calls": Bool(),
        "reasoning_effort": responses.EFFORT,
        "include_reasoning": Bool(),
        "chat_template_kwargs": chat.chat_template_kwargs(c),
        "add_generation_prompt": Needs("prefill", Bool(), off=(True,)),
        "continue_final_message": Needs("prefill", Bool(), off=(False,)),
        "store": Ignored(Bool()),
        "modalities": Ignored(ListOf(OneOf("text"), 1)),
        "verbosity": Ignored(OneOf("low", "medium", "high")),
        "documents": Refused("put them into a message"),
        "audio": Refused("answers have no audio"),
        "prediction": Refused("it is not supported"),
        "functions": Refused("use tools"),
        "function_call": Refused("use tool_choice"),
        "web_search_options": Refused(responses.NO_SERVER_TOOLS),
        **internal("chat_template", "mm_processor_kwargs", "media_io_kwargs", "return_prompt_text"),
    }
    return RoutePolicy(fields, ("messages",), ("max_completion_tokens", "max_tokens"), chat=True)


def completions(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **generation(c),
        "prompt": Prompts(c.prompts, c.tokens, feature="token_ids"),
        "max_tokens": Int(1),
        "logprobs": Int(0, c.logprobs),
        "suffix": Refused("it is not supported"),
        "prompt_embeds": Refused(chat.NO_EMBEDS),
    }
    return RoutePolicy(fields, ("prompt",), ("max_tokens",), default_length=16)


def responses_api(c: PolicyConfig) -> RoutePolicy:
    fields: Fields = {
        **sampling(c),
        **openai_account(c),
        "model": MODEL,
        "input": responses.input_items(c),
        "instructions": chat.PROMPT,
        "max_output_tokens": Int(1),
        "max_tool_calls": Int(1, c.tools),
        "metadata": chat.metadata(),
        "stream": Bool(),
        "stream_options": Ignored(chat.stream_options()),
        "store": Forced(Bool(), False),
        "text": responses.text(c),
        "reasoning": responses.reasoning(),
        "include_reasoning": Bool(),
        "tools": responses.tools(c),
        "tool_choice": responses.tool_choice(),
        "parallel_tool_calls": Bool(),
        "top_logprobs": Int(0, c.logprobs),
        "include": ListOf(OneOf("message.output_text.logprobs", "reasoning.encrypted_content"), 8),
        "truncation": OneOf("disabled"),
        "user": Ignored(Text(c.user_chars)),
        "chat_template_kwargs": chat.chat_template_kwargs(c),
        "structured_outputs": chat.structured_outputs(c),
        "background": Refused(responses.NO_STORE, off=(False,)),
        "background_options": Refused(responses.NO_STORE),
        "image": Refused("answers have no images"),
        "access_programs": Refused("it is not supported"),
        "previous_response_id": Refused(responses.NO_STORE),
        "conversation": Refused(responses.NO_STORE),
        "prompt": Refused("prompt templates are not stored"),
        "previous_input_messages": Refused("use input"),
        "enable_response_messages": Refused("it would show the rendered prompt", off=(False,)),
        "context_management": Refused("it is not supported"),
        **internal("cache_salt", "priority", "request_id", "session_id", "kv_transfer_params", "ec_transfer_params"),
        **internal("vllm_xargs", "mm_payload", "return_mm_kwargs", "watermarking", "mm_processor_kwargs"),
        **internal("media_io_kwargs"),
    }
    return RoutePolicy(fields, ("input",), ("max_output_tokens",), chat=True)
