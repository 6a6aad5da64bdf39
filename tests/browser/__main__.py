"""From the upload to the download in headless Chromium, with a mouse, a keyboard and a thumb.

    python -m tests.browser [--folder DIR]

Starts the whole service with the `tiny` preset, uses its page as a person would and leaves
screenshots in DIR (build/browser); README's is desktop-result.png, as WebP of quality 80. Needs a
Chromium: CHROMIUM names it, else the one on PATH is taken.
"""

from __future__ import annotations

import argparse
import io
import itertools
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, FilePayload, Page, Route, expect, sync_playwright

from cli.stack import Stack
from models.layout import Layout
from models.parameters import UpscaleParameters
from models.presets import PRESETS

EXAMPLE = Path(__file__).parents[2] / "client" / "browser.html"
PHOTOGRAPHS = Path(__file__).parents[1] / "photographs"
SECOND = 1000.0
JOB_MS = 120 * SECOND
X = "\N{MULTIPLICATION SIGN}"
COSTS = """async ([cases, catalogue]) => {
    const { costOf } = await import("./page/choices.js");
    return cases.map(([sides, fields]) => {
        const { result, canvas, tiles } = costOf(sides, fields, catalogue);
        return [result, canvas, tiles];
    });
}"""
HEIC = PHOTOGRAPHS.parent / "worker" / "images" / "files" / "rgb.heic"

# Chromium calls home at every start unless told otherwise; the sandbox cannot be had as root.
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def photograph(name: str, side: int = 128) -> bytes:
    """One of the test photographs, small, as a JPEG."""
    file = io.BytesIO()
    with Image.open(PHOTOGRAPHS / f"{name}.webp") as image:
        image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC).save(
            file, "JPEG", quality=92
        )
    return file.getvalue()


def say(sentence: str) -> None:
    print(f"ok: {sentence}", flush=True)


@contextmanager
def opened(browser: Browser, url: str, **options: object) -> Iterator[Page]:
    """The page in a fresh context, which fails on any error it reports and on foreign requests."""
    context = browser.new_context(**options)  # type: ignore[arg-type]  # playwright's own names
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(f"error: {error}"))
    # A refused request is logged as an error too; what must not be refused is checked by itself.
    page.on(
        "console",
        lambda line: (
            faults.append(f"console: {line.text}")
            if line.type == "error" and "Failed to load resource" not in line.text
            else None
        ),
    )
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith((url, "blob:", "data:"))
            else faults.append(f"request to {request.url}")
        ),
    )
    page.goto(url)
    expect(page.locator("#served")).to_contain_text("Ready", timeout=30 * SECOND)
    yield page
    assert not faults, faults
    context.close()


def upload(page: Page, name: str, content: bytes, media_type: str = "image/jpeg") -> None:
    page.locator("#files").set_input_files(payload(name, content, media_type))


def payload(name: str, content: bytes, media_type: str = "image/jpeg") -> FilePayload:
    return {"name": name, "mimeType": media_type, "buffer": content}


def with_a_mouse(browser: Browser, url: str, folder: Path) -> None:
    with opened(browser, url, viewport={"width": 1180, "height": 1000}) as page:
        page.screenshot(path=folder / "desktop-empty.png")
        upload(page, "kitten.jpg", photograph("kitten"))
        page.locator("#fidelity").fill("0.8")
        expect(page.locator("#fidelity-value")).to_have_text("0.80")
        page.locator("#submit").click()
        bar = page.locator(".job progress").first
        expect(bar).to_be_visible()
        expect(page.locator(".job.succeeded")).to_have_count(1, timeout=JOB_MS)
        expect(page.locator("#viewer")).to_be_visible(timeout=10 * SECOND)
        expect(page.locator(".job.succeeded .view")).to_be_visible()
        expect(page.locator(".job.succeeded .cancel")).to_be_hidden()
        expect(page.locator("#older")).to_be_hidden()
        say("upload, live progress, result")

        box = page.locator("#cut").bounding_box()
        assert box is not None
        page.mouse.click(box["x"] + box["width"] * 0.25, box["y"] + box["height"] / 2)
        cut = page.locator("#pictures").evaluate("e => e.style.getPropertyValue('--cut')")
        assert 20 <= float(cut.rstrip("%")) <= 30, cut
        page.locator("#cut").fill("50")
        page.locator("#cut").dispatch_event("input")
        page.screenshot(path=folder / "desktop-result.png", full_page=True)
        say("the slider between before and after follows the mouse")

        with page.expect_download() as waiting:
            page.locator("#download").click()
        saved = waiting.value.path()
        with Image.open(saved) as image:
            assert image.size == (512, 512), image.size
        assert waiting.value.suggested_filename == "kitten-512x512.png"
        say("the download is the picture, 512 x 512")

        upload(page, "long.jpg", photograph("petra"))
        page.locator("summary").click()
        page.locator("#steps").fill("251")
        page.locator("#submit").click()
        line = page.locator(".job", has_text="long.jpg")
        expect(line.locator(".state")).to_contain_text("denoise", timeout=JOB_MS)
        line.locator(".cancel").click()
        expect(page.locator(".job.canceled")).to_have_count(1, timeout=30 * SECOND)
        say("a running job is canceled")

        page.locator("#steps").fill("")
        upload(page, "letter.png", b"This is no picture.", "image/png")
        page.locator("#submit").click()
        line = page.locator("#choices .row", has_text="letter.png")
        expect(line.locator(".cost")).to_contain_text("its content decides, not its name")
        page.screenshot(path=folder / "desktop-refused.png")
        say("a file that is no picture is refused in words: " + line.inner_text())

        page.reload()
        expect(page.locator(".job")).to_have_count(2)
        page.locator(".job.succeeded .view").click()
        expect(page.locator("#viewer")).to_be_visible()
        expect(page.locator("#frame")).to_have_class("frame alone")
        say("the job list survives a reload")


def the_bill(browser: Browser, url: str, folder: Path) -> None:
    """What it will cost is known before the upload, and is what the server says."""
    with opened(browser, url, viewport={"width": 1280, "height": 1000}) as page:
        catalogue = httpx.get(url + "models").json()
        cases: list[object] = []
        right: list[object] = []
        for preset, width, height, size in itertools.product(
            PRESETS,
            (1, 63, 128, 1025, 3000),
            (2, 510, 2047),
            ("scale=1.5", "scale=16", "width=3001", "height=99", "megapixels=8"),
        ):
            fields = {"preset": preset, **dict([size.split("=")])}
            with suppress(ValueError):
                parameters = UpscaleParameters.model_validate(fields).for_image(width, height)
                layout = Layout.of((height, width), parameters)
                right.append([[*layout.size[::-1]], [*layout.canvas[::-1]], layout.tiles])
                cases.append([[width, height], fields])
        assert page.evaluate(COSTS, [cases, catalogue]) == right
        say("the page's arithmetic is the server's")

        upload(page, "portrait.jpg", photograph("kitten", 300))
        upload(page, "icon.png", flat("PNG", (48, 20)), "image/png")
        upload(page, "scan.tif", flat("TIFF", (64, 64)), "image/tiff")
        upload(page, "phone.heic", HEIC.read_bytes(), "image/heic")
        upload(page, "sky.png", flat("PNG", (3000, 2500)), "image/png")
        lines = page.locator("#choices .row")
        expect(lines.nth(0)).to_contain_text(f"300 {X} 300 → 1200 {X} 1200: 16 tiles, 1 step")
        expect(lines.nth(1)).to_contain_text(
            f"computed at 307 {X} 128 (128 a side at least): 1 tile"
        )
        for number in (2, 3):
            expect(lines.nth(number)).to_contain_text("This browser cannot show it")
        limit = f"{catalogue['max_output_pixels'] // 10**6} megapixels are possible"
        expect(lines.nth(4)).to_contain_text(f"12000 {X} 10000 = 120 megapixels; {limit}")
        expect(page.locator("#submit")).to_have_text("Upscale 4 photographs")
        page.locator("#unit").select_option("megapixels")
        page.locator("#amount").fill("0.5")
        expect(lines.nth(0)).to_contain_text(f"300 {X} 300 → 707 {X} 707")
        expect(lines.nth(4)).to_contain_text("would be 0.258 times as large")
        page.locator("#unit").select_option("width")
        page.locator("#amount").fill("256")
        expect(lines.nth(0)).to_contain_text("would be 0.853 times as large; 1 to 16 times")
        page.screenshot(path=folder / "desktop-bill.png", full_page=True)
        say("what is over a limit is said before it is sent")

        page.locator("#format").select_option("jpeg")
        page.locator("#quality").fill("70")
        page.locator("#submit").click()
        names = ["icon.png", "phone.heic", "scan.tif"]
        for name in names:
            line = page.locator(".job.succeeded", has_text=name)
            expect(line).to_be_visible(timeout=JOB_MS)
        expect(lines).to_have_count(2)
        jobs = page.evaluate("fetch('jobs?limit=3').then(answer => answer.json())")["jobs"]
        assert sorted(job["input"]["filename"] for job in jobs) == names
        assert all(job["result"]["width"] == 256 for job in jobs)
        assert all(job["parameters"]["quality"] == 70 for job in jobs)
        page.locator(".job", has_text="phone.heic").locator(".view").click()
        expect(page.locator("#caption")).to_contain_text("cannot show HEIC")
        assert page.locator("#after").evaluate("image => image.naturalWidth") == 256
        page.screenshot(path=folder / "desktop-heic.png", full_page=True)
        say("what the browser cannot show is upscaled all the same, to a width, as JPEG")

        page.locator("#unit").select_option("scale")
        page.locator("#format").select_option("tiff")
        expect(page.locator("#quality")).to_be_hidden()
        for status, words in ((413, "takes no file this large"), (504, "waited too long for it")):
            page.route("**/upscale", partial(as_a_proxy, status=status))
            page.locator("#submit").click()
            expect(page.locator("#choices, #refused").filter(has_text=words)).to_have_count(1)
            page.unroute("**/upscale")
        page.locator("#submit").click()
        expect(page.locator(".job.succeeded", has_text="portrait.jpg")).to_be_visible(
            timeout=JOB_MS
        )
        page.locator(".job", has_text="portrait.jpg").locator(".view").click()
        expect(page.locator("#caption")).to_contain_text("cannot show TIFF; download it")
        say("a proxy's refusal is explained, and a TIFF is to be downloaded")


def as_a_proxy(route: Route, status: int) -> None:
    route.fulfill(status=status, content_type="text/html", body="<h1>Sorry</h1>")


def flat(kind: str, size: tuple[int, int]) -> bytes:
    """A file of one colour."""
    file = io.BytesIO()
    Image.new("RGB", size, (90, 120, 160)).save(file, kind)
    return file.getvalue()


def with_the_keyboard(browser: Browser, url: str) -> None:
    """From the top of the page to the result without a pointer."""
    with opened(browser, url, viewport={"width": 1180, "height": 1000}) as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        with page.expect_file_chooser() as waiting:
            tab_to(page, "files")
            page.keyboard.press("Enter")
        waiting.value.set_files(payload("red_panda.jpg", photograph("red_panda")))
        tab_to(page, "fidelity")
        page.keyboard.press("Home")
        expect(page.locator("#fidelity-value")).to_have_text("0.00")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#fidelity-value")).to_have_text("0.05")
        tab_to(page, "submit")
        page.keyboard.press("Enter")
        expect(page.locator("#viewer")).to_be_visible(timeout=JOB_MS)
        expect(page.locator("#cut")).to_be_focused()
        page.keyboard.press("ArrowRight")
        assert page.locator("#cut").input_value() == "51"
        say("all of it with the keyboard alone")


def tab_to(page: Page, name: str) -> None:
    for _ in range(40):
        if page.evaluate("document.activeElement.id") == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not lead to {name}")


def on_a_phone(browser: Browser, url: str, folder: Path) -> None:
    phone = {"width": 390, "height": 844}
    with opened(
        browser, url, viewport=phone, has_touch=True, is_mobile=True, device_scale_factor=2
    ) as page:
        upload(page, "LadyBird.jpg", photograph("LadyBird"))
        upload(page, "a-very-long-name-that-a-phone-gave-it-20260101.tif", flat("TIFF", (64, 64)))
        upload(page, "sky.png", flat("PNG", (3000, 2500)), "image/png")
        page.locator("#format").select_option("jpeg")
        expect(page.locator("#choices")).to_contain_text("megapixels are possible")
        page.screenshot(path=folder / "phone-chosen.png", full_page=True)
        for _ in range(2):
            page.get_by_label("Remove").last.tap()
        page.locator("#submit").tap()
        expect(page.locator("#viewer")).to_be_visible(timeout=JOB_MS)
        page.screenshot(path=folder / "phone-result.png", full_page=True)
        wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
        assert not wide, "the page is wider than the phone"
        small = page.evaluate(
            """[...document.querySelectorAll('button, .button, select')]
               .filter(e => e.offsetParent && e.getBoundingClientRect().height < 32)
               .map(e => e.id || e.textContent)"""
        )
        assert not small, f"too small for a thumb: {small}"
        say("on a phone, without scrolling sideways")


def the_interface(browser: Browser, url: str, folder: Path) -> None:
    """The page that describes it: with its style, without a script, and nothing refused."""
    with opened(browser, url, viewport={"width": 1180, "height": 1000}) as page:
        answers: list[int] = []
        page.on("response", lambda response: answers.append(response.status))
        page.get_by_role("link", name="API").click()
        expect(page.locator("h1")).to_contain_text("StableSR")
        upscale = page.locator("details").first
        upscale.locator("summary").click()
        expect(upscale.get_by_text("fidelity_weight", exact=True).first).to_be_visible()
        upscale.get_by_role("link", name="JobView").first.click()
        expect(page.locator("#JobView")).to_be_in_viewport()
        assert page.locator("script").count() == 0
        assert page.evaluate("[...document.styleSheets].map(s => s.cssRules.length > 9)") == [True]
        assert all(status in (200, 304) for status in answers), answers
        page.screenshot(path=folder / "interface.png")
        say("the interface is described without a script and without the internet")


@contextmanager
def another_origin() -> Iterator[str]:
    """An origin, whose server has the example page of client/ alone."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(EXAMPLE.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            serving.join()


def from_another_origin(browser: Browser, url: str, origin: str) -> None:
    """The example page upscales an image, and shows in a sentence what is refused."""
    page = browser.new_page()
    page.goto(f"{origin}/{EXAMPLE.name}")
    assert page.evaluate("location.origin") == origin != url
    page.get_by_label("Service").fill(url)
    page.get_by_label("Image").set_input_files(payload("a.txt", b"no image"))
    page.get_by_text("Upscale").click()
    expect(page.locator("output")).to_contain_text("PNG, JPEG")
    page.get_by_label("Image").set_input_files(payload("a.jpg", photograph("kitten", 32)))
    page.get_by_text("Upscale").click()
    page.wait_for_function("document.querySelector('output img')?.naturalWidth", timeout=JOB_MS)
    assert page.evaluate("document.querySelector('output img').naturalWidth") == 128
    page.close()
    say("a page of another origin, which the service names, upscales an image")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.browser")
    parser.add_argument("--folder", type=Path, default=Path("build/browser"))
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        print("There is no chromium on PATH; install it, or name one with CHROMIUM=.")
        return 1
    with another_origin() as origin, ExitStack() as running:
        os.environ["STABLESR_CORS_ORIGINS"] = origin
        data = running.enter_context(tempfile.TemporaryDirectory(prefix="stablesr-browser-"))
        stack = running.enter_context(Stack(Path(data), port=0))
        stack.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
            with_a_mouse(browser, stack.url + "/", folder)
            the_bill(browser, stack.url + "/", folder)
            with_the_keyboard(browser, stack.url + "/")
            on_a_phone(browser, stack.url + "/", folder)
            the_interface(browser, stack.url + "/", folder)
            from_another_origin(browser, stack.url, origin)
            browser.close()
    print(f"screenshots are in {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
