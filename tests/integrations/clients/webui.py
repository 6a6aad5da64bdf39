"""webuiapi, aaa1111, sd-backend-client of PyPI: AUTOMATIC1111's API; changed: address, password."""

import io
import sys

from cases import BROKEN, KEY, PNG, URL, in_thread, refused, report, soon
from PIL import Image

HOST, PORT = URL.removeprefix("http://").split(":")
IMAGE = Image.open(io.BytesIO(PNG))


def with_webuiapi():
    import webuiapi

    def client(password=KEY):
        return webuiapi.WebUIApi(HOST, int(PORT), username="ada", password=password)

    api = client()

    def single():
        result = api.extra_single_image(IMAGE, upscaler_1="tiny", upscaling_resize=2)
        assert result.image.size == (48, 32)

    def batch():
        result = api.extra_batch_images([IMAGE] * 3, upscaler_1="tiny", upscaling_resize=2)
        assert [image.size for image in result.images] == [(48, 32)] * 3

    def exact():
        result = api.extra_single_image(
            IMAGE, upscaler_1="tiny", resize_mode=1, upscaling_resize_w=72, upscaling_resize_h=48
        )
        assert result.image.size == (72, 48)

    def poll():
        names = [upscaler["name"] for upscaler in api.get_upscalers()]
        assert "tiny" in names, names
        assert api.util_get_model_names()
        assert api.util_get_sampler_names()
        assert api.util_get_current_model() == "tiny"
        api.util_wait_for_ready(0.1)

    def cancel():
        thread, outcome = in_thread(
            lambda: api.extra_batch_images([IMAGE] * 40, upscaler_1="tiny", upscaling_resize=16)
        )
        soon(lambda: client().get_progress()["state"]["job_count"] > 0)
        client().interrupt()
        thread.join(60)
        assert "is canceled" in str(outcome), outcome

    def failure():
        class Broken:
            def __init__(self):
                self.info = {}

            def save(self, file, **options):
                file.write(BROKEN)

        refused(lambda: api.extra_single_image(Broken(), upscaler_1="tiny"), "422")

    def bad_input():
        refused(lambda: api.extra_single_image(IMAGE, upscaler_1="R-ESRGAN 4x+"), "upscaler_1")
        refused(lambda: api.extra_single_image(IMAGE), "upscaler_1")
        face = {"upscaler_1": "tiny", "gfpgan_visibility": 1}
        refused(lambda: api.extra_single_image(IMAGE, **face), "gfpgan_visibility")
        refused(lambda: client("x").extra_single_image(IMAGE, upscaler_1="tiny"), "401")

    names = {"single": single, "batch": batch, "single, exact size": exact, "poll": poll}
    report("webuiapi", {**names, "cancel": cancel, "failure": failure, "bad input": bad_input})


def with_aaa1111():
    from aaa1111 import AAA1111
    from aaa1111.types.extras import ExtrasSingleImage

    api = AAA1111(HOST, int(PORT), username="ada", password=KEY)

    def single():
        payload = ExtrasSingleImage(image=IMAGE, upscaler_1="tiny", upscaling_resize=2)
        assert api.extra_single_image(payload).image.size == (48, 32)

    def batch():
        # Its own ExtrasBatchImages cannot be made into JSON.
        images = [{"data": IMAGE, "name": name} for name in ("a", "b")]
        payload = {"imageList": images, "upscaler_1": "tiny"}
        assert [image.size for image in api.extra_batch_images(payload).images] == [(48, 32)] * 2

    def bad_input():
        payload = ExtrasSingleImage(image=IMAGE, upscaler_1="tiny", codeformer_visibility=1)
        refused(lambda: api.extra_single_image(payload), "422")

    report("aaa1111", {"single": single, "batch": batch, "bad input": bad_input})


def with_backend_client():
    from sd_backend_client import connect_to_backend

    api = connect_to_backend(URL, credentials_provider=lambda: ("ada", KEY))

    def single():
        result = api.upscale(IMAGE, 72, 48)
        assert result["images"][0].size == (72, 48)

    def bad_input():
        refused(lambda: api.upscale(IMAGE, 512, 512), "768 x 512")

    report("sd-backend-client", {"single, exact size": single, "bad input": bad_input})


{"webuiapi": with_webuiapi, "aaa1111": with_aaa1111, "sd": with_backend_client}[sys.argv[1]]()
