"""A server of a tiny model that says what it thinks of given tokens."""

import torch

import loopback
import tiny


def about(ids, *, form, top_k, model, most=20, wrong=None):
    """What a server would reply: vLLM's prompt_logprobs, or the plain echo."""
    with torch.no_grad():
        logs = torch.log_softmax(model(torch.tensor([ids])).logits[0].double(), dim=-1)
    text = tiny.tokenizer()
    places = [None]
    for at in range(len(ids) - 1):
        top = {*logs[at].topk(min(top_k, most)).indices.tolist(), ids[at + 1]}
        places.append({number: logs[at, number].item() for number in top})
    if wrong is not None:
        places = wrong(places)

    def entry(number, value):
        return {"logprob": value, "rank": 1, "decoded_token": text.decode([number])}

    if form == "vllm":
        listed = [
            None if place is None else {str(n): entry(n, value) for n, value in place.items()} for place in places
        ]
        return {"choices": [{"text": "", "prompt_logprobs": listed, "finish_reason": "length"}]}
    name = (lambda number: f"token_id:{number}") if form == "numbers" else (lambda number: text.decode([number]))
    named = [None if place is None else {name(n): value for n, value in place.items()} for place in places]
    echo = {"tokens": [*(name(number) for number in ids), "x"], "top_logprobs": [*named, {"x": -1.0}]}
    return {"choices": [{"text": "", "logprobs": echo}]}


def script(form="vllm", model=None, *, most=20, wrong=None, first=()):
    """A server of a tiny model; ``first`` are replies given before it works, ``wrong`` spoils what it says."""
    model = model or tiny.model(seed=2)
    waiting = [*first]

    def answer(asked, before):
        if asked.path.endswith("/models"):
            return loopback.models("teacher-7b")
        if waiting:
            return waiting.pop(0)
        body = asked.body
        if form == "vllm":
            if "prompt_logprobs" not in body:
                return loopback.Reply({"error": "no"}, status=400)
            if body["prompt_logprobs"] > most:
                return loopback.Reply({"error": f"max allowed: {most}"}, status=400)
        elif not body.get("echo"):
            return loopback.completion("?")
        top_k = body["prompt_logprobs"] if form == "vllm" else body["logprobs"]
        return loopback.Reply(about(body["prompt"], form=form, top_k=top_k, model=model, most=most, wrong=wrong))

    return answer
