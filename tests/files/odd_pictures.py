"""Pictures as people have them: the same pixels in many containers, and files that are damaged in many ways."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, PngImagePlugin

SIZE = (24, 16)
COLOURS = np.array([[255, 255, 255], [220, 30, 40], [30, 60, 200], [0, 0, 0], [250, 220, 40]], np.uint8)
PIXELS = COLOURS[np.random.default_rng(0).integers(0, 5, (16, 24))]
"""RGB of the picture that all containers hold; few colours, so that a palette holds them, too."""
GREY = np.linspace(0, 255, 24 * 16).round().astype(np.uint8).reshape(16, 24)
LOSSLESS = {
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "dib": ("DIB", {}),
    "tif": ("TIFF", {}),
    "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}),
    "ppm": ("PPM", {}),
    "tga": ("TGA", {}),
    "pcx": ("PCX", {}),
    "sgi": ("SGI", {}),
    "webp": ("WEBP", {"lossless": True}),
    "jp2": ("JPEG2000", {"irreversible": False}),
    "qoi": ("QOI", {}),
    "ico": ("ICO", {"sizes": [SIZE]}),
    "dds": ("DDS", {}),
}
TURNED = {"png": ("PNG", {}), "tif": ("TIFF", {}), "webp": ("WEBP", {"lossless": True})}
BACK = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
"""How a picture is stored that each EXIF orientation turns upright, as a number of `Image.Transpose`."""


def save(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def exif(orientation):
    found = Image.Exif()
    found[0x0112] = orientation
    return found.tobytes()


def chunk(kind, data, check=None):
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body) if check is None else check)


def with_chunk(content, *more):
    """A PNG with chunks after its header."""
    return content[:33] + b"".join(more) + content[33:]


def stored(picture, orientation):
    return picture if BACK[orientation] is None else picture.transpose(Image.Transpose(BACK[orientation]))


def same_pixels():
    """(name, bytes) of files that a viewer shows as PIXELS."""
    picture = Image.fromarray(PIXELS)
    for suffix, (kind, options) in LOSSLESS.items():
        yield f"plain.{suffix}", save(picture, kind, **options)
    yield "palette.png", save(picture.quantize(8), "PNG")
    yield "palette.gif", save(picture.quantize(8), "GIF")
    yield "palette.bmp", save(picture.quantize(8), "BMP")
    yield "cmyk.tif", save(picture.convert("CMYK"), "TIFF")
    yield "wrong-suffix.jpg", save(picture, "PNG")
    for orientation in range(1, 9):
        for suffix, (kind, options) in TURNED.items():
            turned = save(stored(picture, orientation), kind, exif=exif(orientation), **options)
            yield f"turned{orientation}.{suffix}", turned
    xmp = PngImagePlugin.PngInfo()
    xmp.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta tiff:Orientation="6"/>')
    yield "turned-by-xmp.png", save(stored(picture, 6), "PNG", pnginfo=xmp)
    late = save(stored(picture, 8), "PNG")
    yield "exif-after-pixels.png", late[:-12] + chunk(b"eXIf", exif(8)[6:]) + late[-12:]
    yield "damaged-exif.png", with_chunk(save(picture, "PNG"), chunk(b"eXIf", b"MM\0*\xff\xff\xff\xff"))
    yield "odd-orientation.png", save(picture, "PNG", exif=exif(77))
    yield "no-frames.png", with_chunk(save(picture, "PNG"), chunk(b"acTL", struct.pack(">II", 0, 0)))
    opaque = np.dstack([PIXELS, np.full(PIXELS.shape[:2], 255, np.uint8)])
    for suffix in ("png", "tif", "webp", "tga", "qoi", "jp2"):
        kind, options = LOSSLESS[suffix]
        yield f"opaque.{suffix}", save(Image.fromarray(opaque), kind, **options)
    white = (PIXELS == 255).all(-1)
    for hidden in (0, 99):  # what a transparent pixel hides is not shown
        cut = opaque.copy()
        cut[white] = (hidden, hidden, hidden, 0)
        yield f"cut-out-{hidden}.png", save(Image.fromarray(cut), "PNG")
        yield f"cut-out-{hidden}.webp", save(Image.fromarray(cut), "WEBP", lossless=True, exact=True)
        yield f"cut-out-{hidden}.tif", save(Image.fromarray(cut), "TIFF")
    index = picture.quantize(8)
    yield "cut-out-palette.png", save(index, "PNG", transparency=int(np.asarray(index)[white][0]))
    yield "colour-key.png", save(Image.fromarray(np.where(white[..., None], 7, PIXELS).astype(np.uint8)), "PNG",
                                 transparency=(7, 7, 7))  # fmt: skip
    animation = [picture, Image.new("RGB", SIZE, "green")]
    yield "animation.png", save(animation[0], "PNG", save_all=True, append_images=animation[1:])
    yield "animation.webp", save(animation[0], "WEBP", lossless=True, save_all=True, append_images=animation[1:])
    yield "pages.tif", save(animation[0], "TIFF", save_all=True, append_images=animation[1:])


def same_grey():
    """(name, bytes) of files that a viewer shows as GREY."""
    sixteen = GREY.astype(np.uint16) * 257
    yield "grey8.png", save(Image.fromarray(GREY), "PNG")
    for suffix, kind in (("png", "PNG"), ("tif", "TIFF"), ("pgm", "PPM"), ("jp2", "JPEG2000")):
        yield f"grey16.{suffix}", save(Image.fromarray(sixteen), kind)
    big = Image.frombytes("I;16B", SIZE, sixteen.astype(">u2").tobytes())
    yield "grey16-big-endian.tif", save(big, "TIFF")
    yield "grey16-white-is-0.tif", tiff(65535 - sixteen, photometric=0)
    yield "grey32.tif", save(Image.fromarray(sixteen.astype(np.int32)), "TIFF")
    yield "float01.tif", save(Image.fromarray(GREY.astype(np.float32) / 255), "TIFF")
    yield "float255.tif", save(Image.fromarray(GREY.astype(np.float32)), "TIFF")
    yield "float65535.tif", save(Image.fromarray(sixteen.astype(np.float32)), "TIFF")
    yield "float01.pfm", save(Image.fromarray(GREY.astype(np.float32) / 255), "PPM")
    alpha = np.where(GREY == 255, 0, 255).astype(np.uint8)
    yield "grey-alpha.png", save(Image.fromarray(np.dstack([np.where(alpha, GREY, 8), alpha]).astype(np.uint8)), "PNG")
    yield "grey16-key.png", save(Image.fromarray(np.where(alpha, sixteen, 300).astype(np.uint16)), "PNG",
                                 transparency=300)  # fmt: skip


def tiff(values, photometric=1, bits=16, width=None, following=0):
    """A TIFF by hand, of one grey strip."""
    height, real = values.shape
    data = values.astype("<u2").tobytes()
    tags = [(256, width or real), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8 + 2 + 8 * 12 + 4),
            (277, 1), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 8) + entries + struct.pack("<I", following) + data


def damaged():
    """(name, bytes) of files that hold no picture, or half of one."""
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    whole = {suffix: save(noise, kind, **options) for suffix, (kind, options) in LOSSLESS.items()}
    whole |= {"gif": save(noise, "GIF"), "jpg": save(noise, "JPEG"), "avif": save(noise, "AVIF")}
    for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp", "ppm", "avif", "jp2", "tga", "qoi", "ico"):
        content = whole[suffix]
        yield f"head-cut.{suffix}", content[:7]
        yield f"half.{suffix}", content[: len(content) // 2]
        yield f"nulls.{suffix}", bytes(len(content))
    png = whole["png"]
    yield "empty.png", b""
    yield "words.png", b"this is no picture"
    yield "page.jpg", b"<!DOCTYPE html><html>404 Not Found</html>"
    yield "photo.heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    yield "big-text.png", with_chunk(png, chunk(b"zTXt", b"note\0\0" + zlib.compress(b" " * (1 << 21))))
    yield (
        "big-itxt.png",
        with_chunk(png, chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b" " * (1 << 21)))),
    )
    yield "wrong-sum.png", png[:29] + b"\0\0\0\0" + png[33:]
    yield "no-pixels.png", png[:33] + chunk(b"IEND", b"")
    yield "short-header.png", png[:8] + chunk(b"IHDR", b"\0\0\0\x10") + png[33:]
    yield "bad-depth.png", png[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 96, 64, 7, 2, 0, 0, 0)) + png[33:]
    yield "short-frames.png", with_chunk(png, chunk(b"acTL", b"\0\0"), chunk(b"fcTL", b"\0\0\0"))
    late = struct.pack(">IIIIIHHBB", 9, 96, 64, 0, 0, 1, 1, 0, 0)
    yield "frame-out-of-order.png", with_chunk(png, chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", late))
    yield "bomb.png", png[:8] + chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)) + png[33:]
    yield "far-strip.tif", tiff(GREY, width=60000)
    yield "no-tags.tif", b"II*\0\x08\0\0\0\0\0" + bytes(40)
    yield "far-tags.tif", b"II*\0\xff\xff\xff\x7f"
    yield "words.ppm", b"P6\nwide high 255\n"
    yield "negative.ppm", b"P6\n-4 4 255\n" + bytes(48)
    yield "huge.ppm", b"P6\n99999999999999999999 1 255\n"
    yield "no-maximum.pgm", b"P5\n4 4 0\n" + bytes(16)
    yield "scale.pfm", b"Pf\n4 4\nnan\n" + bytes(64)
    yield "not-numbers.tif", save(Image.fromarray(np.full((8, 8), np.nan, np.float32)), "TIFF")
    yield "below-black.tif", save(Image.fromarray(np.full((8, 8), -1, np.float32)), "TIFF")
    yield "no-size.jp2", b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 \0\0\0\0jp2 \0\0\0\x2djp2h"
    yield "no-frame.jpg", b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0\xff\xd9"
    yield "program.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n{} loop\n"
