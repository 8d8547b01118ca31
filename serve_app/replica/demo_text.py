"""What the demo model's tokenizer is made from: a short text to train it on, and its chat template."""

TRAINING_TEXT = """\
A language model reads a prompt and writes an answer, one token after another. Before the first token it
must read the whole prompt; this step is called prefill. After that it writes token by token, and this step
is called decode. The time to the first token tells a person how long they wait before anything happens, and
the inter-token latency tells them how smooth the answer feels while it arrives.

The server keeps the keys and values of every token it has read in a cache, the KV cache, so that no token
has to be read twice. Memory for the cache is handed out in blocks. When many requests share the beginning
of a prompt, they can share the blocks of that beginning too. When the blocks run out, some requests wait
until others end.

Requests do not wait for each other to finish. In every step the scheduler takes all running requests, puts
them in one batch, and computes one token for each. A new request joins the batch at the next step, and a
request that has ended leaves it. This is why a server with many users can be fast for all of them: the
weights are read from memory once for the whole batch, and reading the weights is what takes the time.

A large model does not fit on one device. Tensor parallel serving cuts every layer into parts and gives each
device one part; the devices add up their results after each layer. Pipeline parallel serving gives each
device some of the layers, and the batch moves from device to device. Both need fast links between the
devices.

The gateway is the door of the service. It checks the key of a caller, counts how many requests the caller
may send, and finds out which model the request is for. Then it renders the messages into a prompt with the
chat template of the model, turns the prompt into tokens, and sends the tokens to a replica. The replica
owns the engine core. It sends every new token back to the gateway, where tokens become text again and the
text goes to the caller as a stream of events. When the caller closes the stream, the gateway tells the
replica to abort the request, so that no work is done for an answer that nobody reads.

What happens when a replica dies in the middle of an answer? The gateway has kept a journal of all tokens
that were delivered. It sends the prompt and the delivered tokens to another replica, which reads them in
one prefill and goes on where the first one stopped. The caller sees a short pause and nothing else. When a
replica has to leave for a new version, it drains: it takes no new request, finishes the ones it has, and
then it stops.

Too many requests make every request slow. A good service says early that it is full, with back-pressure:
the caller gets an error with the number of seconds after which it may try again. A bad service takes every
request, lets the queue grow, and then loses all of them. Limits on keys, on requests and on tokens keep one
caller from taking the place of all others.

Please write a short story about a robot that learns to paint. Once there was a robot who lived in a small
house near the sea. Every morning it went to the window and looked at the water, the boats and the birds.
One day it found a box with colours and paper. It did not know what they were for, but it tried, and the
first picture was only a blue line. The next day there were two lines, then a boat, then a bird above the
boat. People came to look, and the robot was happy, because now other people could see what it had seen.

Explain in simple words how a bicycle stays upright. What is the capital of France? Write a function in
Python that returns the sum of a list of numbers. Translate this sentence into German. Give me three ideas
for dinner. What is the weather like in Paris today? How do I sort a list by the second value? Thank you,
that was helpful. Hello! How can I help you today? Here is an example. First, second, third. Yes, of course.
No, that is not right. I think the answer is 42, because 6 times 7 is 42. The year has 365 days, the week
has 7 days, the day 24 hours.

You are a helpful assistant. You may call one or more functions to help with the question of the user.
For each function call return a JSON object with the name and the arguments of the function.
{"name": "get_weather", "arguments": {"city": "Paris", "unit": "celsius"}}
{"type": "function", "function": {"name": "search", "description": "Search the web.", "parameters":
{"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}}}
{"role": "user", "content": "Hello", "stream": true, "temperature": 0.7, "max_tokens": 256, "stop": null}
[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 0.5, -1, true, false, null]

def add(numbers):
    total = 0
    for number in numbers:
        total += number
    return total

for request in requests:
    if request.finished:
        break
    tokens.append(request.next_token())
print(f"{len(tokens)} tokens in {seconds:.2f} seconds")
"""

# Messages in the ChatML form; tools as the `hermes` tool parser of vLLM expects them.
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- if messages and messages[0].role == 'system' %}
    {%- set system = messages[0].content %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- if system or tools %}
    {{- '<|im_start|>system\\n' + (system or 'You are a helpful assistant.') }}
    {%- if tools %}
        {{- '\\n\\nYou may call one or more of these functions:\\n<tools>' }}
        {%- for tool in tools %}
            {{- '\\n' + tool | tojson }}
        {%- endfor %}
        {{- '\\n</tools>\\nFor each call return a JSON object with its name and arguments:\\n' }}
        {{- '<tool_call>\\n{"name": <name>, "arguments": <arguments>}\\n</tool_call>' }}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + (message.content or '') }}
        {%- for call in message.tool_calls or [] %}
            {%- set arguments = call.function.arguments %}
            {{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}
            {{- (arguments if arguments is string else arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and not enable_thinking %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
