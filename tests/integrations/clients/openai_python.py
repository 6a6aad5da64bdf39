"""openai of PyPI: images.edit; changed: base_url, api_key, the model's name."""

import base64
import io

import openai
from cases import BROKEN, KEY, URL, photo, refused, report, size

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY)


def sides(result):
    return size(base64.b64decode(result.data[0].b64_json))


def single():
    assert sides(client.images.edit(model="tiny", image=photo(), prompt="")) == (96, 64)


def exact():
    result = client.images.edit(image=[photo()], prompt="", size="48x32", n=1)
    assert sides(result) == (48, 32)


def batch():
    for seed in (1, 2):
        client.images.edit(image=photo(), prompt="", extra_body={"seed": seed, "scale": 2})


def failure():
    broken = io.BytesIO(BROKEN)
    broken.name = "broken.png"
    error = refused(lambda: client.images.edit(image=broken, prompt=""), "422")
    assert isinstance(error, openai.UnprocessableEntityError)


def bad_input():
    edit = client.images.edit
    refused(lambda: edit(image=photo(), prompt="", size="1024x1024"), "1536 x 1024")
    refused(lambda: edit(image=photo(), prompt="", mask=photo()), "mask")
    error = refused(lambda: edit(model="gpt-image-1", image=photo(), prompt=""), "stablesr/tiny")
    assert isinstance(error, openai.NotFoundError)
    stranger = openai.OpenAI(base_url=f"{URL}/v1", api_key="sk-none")
    error = refused(lambda: stranger.images.edit(image=photo(), prompt=""), "key")
    assert isinstance(error, openai.AuthenticationError)


names = {"single": single, "single, exact size": exact, "batch": batch}
report("openai", {**names, "failure": failure, "bad input": bad_input})
